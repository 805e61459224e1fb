"""The power fails of a disk that writes what was not flushed in any order, or in part, or not at all.

What is written goes to a disk that is recorded (`tests.support.volatiledisk`). From the record what it may have had at
some moments is made, and looked at as after the next boot: what was acknowledged or synced by then is there and right.
PAGEPOOL_REORDERED_POINTS (3 by default) is how many moments of each, PAGEPOOL_REORDERED_KIND the file system (ext4,
xfs, btrfs), PAGEPOOL_REORDERED_TEAR the bytes that are written as a whole (4096; 512 for the sectors of an older
disk), PAGEPOOL_KILL_SEED another run.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import os
import random
import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from pagepool import linux
from pagepool.cli.keeping import store_credentials
from pagepool.digest import Digest, blake3_raw
from pagepool.errors import BlobUnknownError
from pagepool.overlay import OverlayFileSystem, storage
from pagepool.pool import Pool
from pagepool_service.auth.htpasswd import hash_password, load_htpasswd
from pagepool_service.store.fsck import check_store
from pagepool_service.store.store import Store
from tests.fault.pushing import Acknowledged, Pusher, read_image
from tests.overlay.harness import TREE, Pair, dump_oracle, dump_overlay
from tests.pool.helpers import check_account, fill, thing
from tests.support.server import Service
from tests.support.volatiledisk import mounted_image, new_file_system, possible_images, recorded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from tests.support.volatiledisk import Recording

POINTS = int(os.environ.get("PAGEPOOL_REORDERED_POINTS", "3"))
KIND = os.environ.get("PAGEPOOL_REORDERED_KIND", "ext4")
TEAR = int(os.environ.get("PAGEPOOL_REORDERED_TEAR", "4096"))
SEED = os.environ.get("PAGEPOOL_KILL_SEED", "1")
ANSWERS = 12 + POINTS  # of the service, at least
STEPS = 80 + 10 * POINTS  # of an overlay, and of a pool
pytestmark = pytest.mark.timeout(120 + 15 * POINTS)


@dataclass
class History(Acknowledged):
    """What was acknowledged, and by when: how much the disk had written by then."""

    position: Callable[[], int] = int
    moments: list[tuple[int, Acknowledged]] = field(default_factory=list)

    def answer(self, note: Any = None) -> None:
        """As of `Acknowledged`; remembers all that it knows."""
        with self._changed:
            super().answer(note)
            known = Acknowledged(dict(self.blobs), dict(self.tags), set(self.deleted))
            self.moments.append((self.position(), known))


def test_what_a_service_acknowledged(tmp_path: Path) -> None:
    print(f"PAGEPOOL_KILL_SEED={SEED}")
    data, history = tmp_path / "data", History()
    with recorded(tmp_path / "disk", new_file_system(tmp_path, 1 << 30, KIND), KIND) as disk:
        history.position = disk.position
        data.symlink_to(disk.mounted)
        service = Service(data, ("--workers", "1"), {"PAGEPOOL_REBUILD_COMPRESSED": "yes"})
        service.start()
        try:
            begin = disk.position()
            _push(service, history)
            end = disk.position()
        finally:
            service.kill()
    positions = [position for position, _ in history.moments]
    data.unlink()
    for point, image in _crashes(disk, begin, end, positions):
        known = history.moments[at][1] if (at := bisect.bisect(positions, point) - 1) >= 0 else Acknowledged()
        with mounted_image(image, tmp_path / "after", KIND) as mounted:
            assert check_store(mounted).problems == []
            with Store.open(mounted) as store:
                _compare(store, known)
    with mounted_image(disk.directory / "disk", tmp_path / "after", KIND) as mounted:
        data.symlink_to(mounted)
        service.start()
        try:
            with httpx.Client(base_url=service.url, timeout=60) as http:
                for (repository, tag), manifest in history.tags.items():
                    assert read_image(http, repository, tag) == manifest
        finally:
            service.stop()
    print(f"{len(history.blobs)} blobs, {len(history.tags)} tags, {end} writes and flushes")


def _push(service: Service, history: History) -> None:
    pushers = [Pusher(service.url, f"pusher-{number}", history, f"{SEED} {number}") for number in range(3)]
    for pusher in pushers:
        pusher.start()
    assert history.wait_for(ANSWERS), service.log()
    for pusher in pushers:
        pusher.stop()
    for pusher in pushers:
        pusher.join()
        assert pusher.refused == []


def _compare(store: Store, known: Acknowledged) -> None:
    for (repository, digest), size in known.blobs.items():
        _check_blob(store, repository, digest, size)
    for (repository, tag), manifest in known.tags.items():
        assert store.registry.manifest(repository, tag).raw == manifest
        document = json.loads(manifest)
        for entry in (document["config"], *document["layers"]):
            _check_blob(store, repository, entry["digest"], entry["size"])
    for repository, digest in known.deleted:
        with pytest.raises(BlobUnknownError):
            store.registry.stat_blob(repository, Digest.parse(digest))


def _check_blob(store: Store, repository: str, name: str, size: int) -> None:
    digest, hasher = Digest.parse(name), hashlib.sha256()
    assert store.registry.stat_blob(repository, digest).size == size
    for piece in store.blobs.read(digest):
        hasher.update(piece)
    assert hasher.digest() == digest.raw


def test_what_an_overlay_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a beginning of what was done after that, if anything."""
    monkeypatch.setattr(storage, "COMPACT_BYTES", 4000)
    monkeypatch.setattr(storage, "PENDING_SLOTS", 10)
    randomness = random.Random(f"overlay {SEED}")
    with recorded(tmp_path / "disk", new_file_system(tmp_path, 512 << 20, KIND), KIND) as disk:
        (disk.mounted / "pair").mkdir()
        linux.sync_directory(disk.mounted)
        pair = Pair(disk.mounted / "pair", randomness.randrange(1 << 30))
        begin = disk.position()
        positions, states = [begin], [dump_oracle(pair.oracle)]
        synced = [(begin, 0)]  # by when, and the state
        for _ in range(STEPS):
            pair.step()
            positions.append(disk.position())
            states.append(dump_oracle(pair.oracle))
            if randomness.random() < 0.05:
                pair.overlay.sync()
                synced.append((disk.position(), len(states) - 1))
            if randomness.random() < 0.02:
                _sync_all(disk)
        end = disk.position()
        pair.overlay.close()
    for point, image in _crashes(disk, begin, end, positions):
        oldest = max(state for position, state in synced if position <= point)
        newest = bisect.bisect(positions, point)  # the one that was being done
        with mounted_image(image, tmp_path / "after", KIND) as mounted:
            found = OverlayFileSystem.open(mounted / "pair" / "0", pair.base, tree=TREE, boot=os.urandom(16))
            try:
                assert dump_overlay(found) in states[oldest : newest + 1]
            finally:
                found.close()


def test_what_a_pool_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no object with other bytes than its own."""
    randomness = random.Random(f"pool {SEED}")
    with (
        recorded(tmp_path / "disk", new_file_system(tmp_path, 512 << 20, KIND), KIND) as disk,
        Pool.open(disk.mounted / "pool", budget=64 << 20, durable=True) as pool,
    ):
        begin = disk.position()
        history = list(_use_pool(pool, disk, randomness))
        end = disk.position()
    positions = [position for position, _ in history]
    for point, image in _crashes(disk, begin, end, positions):
        boot = os.urandom(16)
        monkeypatch.setattr(linux, "boot_id", lambda boot=boot: boot)
        at = bisect.bisect(positions, point) - 1
        with (
            mounted_image(image, tmp_path / "after", KIND) as mounted,
            Pool.open(mounted / "pool", budget=64 << 20) as pool,
        ):
            for digest in list(pool.digests()):
                _is_right(pool, digest)
            for digest in history[at][1] if at >= 0 else ():
                assert _is_right(pool, digest)
            check_account(mounted / "pool", pool.stats())


def _use_pool(pool: Pool, disk: Recording, randomness: random.Random) -> Iterator[tuple[int, frozenset[bytes]]]:
    """Put, begin, remove and sync objects. Says by when the disk has which, which nobody has begun to remove."""
    there: set[bytes] = set()
    synced: frozenset[bytes] = frozenset()
    for number in range(STEPS):
        step = randomness.random()
        one = thing(number, randomness.choice((100, 5000, 200_000)) if step < 0.6 else 300_000)
        if step < 0.6:
            with pool.put(one.digest, one.data) or pytest.fail("not kept"):
                there.add(one.digest)
        elif step < 0.75:
            with pool.partial(one.digest, one.size, one.extents) as partial:
                fill(partial, one) if step < 0.68 else partial.write(1, one.parts[1])
        elif step < 0.83 and there:
            gone = randomness.choice(sorted(there))
            there.discard(gone)
            synced -= {gone}
            yield disk.position(), synced
            pool.remove(gone)
        elif step < 0.9:
            _sync_all(disk)
        else:
            pool.sync()
            synced = frozenset(there)
            yield disk.position(), synced


def _is_right(pool: Pool, digest: bytes) -> bool:
    """Whether an object is there; then it is right."""
    file = pool.get(digest)
    if file is None:
        return False
    with file:
        assert blake3_raw(bytes(file.view)) == digest
    return True


def test_users_and_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """XFS has the new name of a file on the disk long before what is in it, where nobody syncs that."""
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    with recorded(tmp_path / "disk", new_file_system(tmp_path, 512 << 20, "xfs"), "xfs") as disk:
        monkeypatch.setenv("DOCKER_CONFIG", str(disk.mounted))
        users = disk.mounted / "users"
        users.write_text(f"alice:{hash_password('secret', 5)}\n")
        store_credentials("first.example", "alice", "secret")
        _sync_all(disk)
        command = [sys.executable, "-m", "pagepool.cli", "auth", "hash", "bob", "--password-stdin"]
        subprocess.run([*command, "--file", str(users)], input=b"secret\n", check=True, timeout=60)
        added = disk.position()
        store_credentials("second.example", "alice", "secret")
        linux.sync_directory(disk.mounted)
        stored = disk.position()
    for point, _, image in possible_images(disk.directory, [added, stored], random.Random(SEED)):
        with mounted_image(image, tmp_path / "after", "xfs") as mounted:
            assert set(load_htpasswd(mounted / "users").hashes) == {"alice", "bob"}
            servers = set(json.loads((mounted / "config.json").read_bytes())["auths"])
            assert servers == {"first.example", "second.example"} or (point == added and "first.example" in servers)


def _sync_all(disk: Recording) -> None:
    """Have the file system written, as sync(1) has all of the machine."""
    descriptor = os.open(disk.mounted, os.O_RDONLY)
    try:
        linux.syncfs(descriptor)
    finally:
        os.close(descriptor)


def _crashes(disk: Recording, begin: int, end: int, positions: Sequence[int]) -> Iterator[tuple[int, Path]]:
    """Moments between a begin and an end, every other one right after something was answered; and the disk's bytes."""
    randomness = random.Random(f"crashes {SEED}")
    some = [position for position in positions if begin <= position <= end]
    points = [randomness.choice(some) if n % 2 else randomness.randint(begin, end) for n in range(POINTS)]
    for point, how, image in possible_images(disk.directory, sorted(points), randomness, TEAR):
        print(f"after {point} writes and flushes, of the last ones {how}")
        yield point, image
