"""Repair beside a service, a collection and pushes; and repair that is killed."""

from __future__ import annotations

import os
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from pagepool.digest import Digest
from pagepool.errors import BusyError
from pagepool.oci import parse_manifest
from pagepool_service.backup.repository import open_repository
from pagepool_service.backup.taking import take_backup
from pagepool_service.repair import context as acting
from pagepool_service.repair import run as running
from pagepool_service.repair.sources import BackupSource
from pagepool_service.store.catalogue import link_key, tag_key
from pagepool_service.store.collect.collector import lock_collection
from pagepool_service.store.environment import Table
from pagepool_service.store.store import Store
from tests.backup.helpers import blobs_of
from tests.faults import flip_pages, flip_record, in_child, replace_record
from tests.repair.helpers import ROUNDS, file_frames, first, repair, wreck, wreck_all
from tests.store.checking import check
from tests.store.samples import OPAQUE
from tests.support.server import running_service

if TYPE_CHECKING:
    from collections.abc import Callable

    from pagepool_service.repair.context import Action, Context
    from tests.backup.conftest import Made
    from tests.cli.conftest import Run

pytestmark = pytest.mark.usefixtures("checked_here")


def test_beside_a_service(data: Path, made: Made, run: Run) -> None:
    """The service's own maintenance reads the layers again that the repair asks for."""
    wreck_all(data, file_frames(data))
    wreck(data, first(data, Table.LAYERS), random.Random(3))
    with running_service(data) as service:
        result = run("fsck", "--repair", "--json", "--data", data)
        assert result.code == 0, result.out
        assert result.json["live"]
        for digest, blob in made.sample.blobs.items():
            for repository in ("lib/one", "lib/two", "lib/three", "multi", "waiting"):
                answer = httpx.get(f"{service.url}/v2/{repository}/blobs/{digest}")
                assert answer.status_code in (200, 404)
                assert answer.status_code == 404 or answer.content == blob
        assert service.faults() == ""
    assert check(data).problems == []
    assert blobs_of(data, made.sample.blobs) == made.sample.blobs


def test_it_waits_for_a_collection_and_keeps_others_from_beginning(data: Path) -> None:
    record = first(data, Table.TAGS)
    flip_record(data, record, 2)
    said: list[str] = []
    busy: list[bool] = []

    def hear(text: str) -> None:
        said.append(text)
        if text == "repairing frames":
            with pytest.raises(BusyError, match="collects"), lock_collection(data):
                pytest.fail("a collection began")
            busy.append(True)

    with ThreadPoolExecutor(1) as pool:
        with lock_collection(data):
            repairing = pool.submit(repair, data, tell=hear)
            while not said and not repairing.done():
                time.sleep(0.01)
            time.sleep(0.3)
            assert said == ["waiting until no collection runs"]
            assert not repairing.done()
        assert repairing.result().clean
    assert busy == [True]
    assert first(data, Table.TAGS) == record


def meanwhile(monkeypatch: pytest.MonkeyPatch, kind: str, act: Callable[[Store], None]) -> list[str]:
    """Have somebody do something once a repair has decided what to do about a record. Returns that record's name."""
    keep = acting.Context._keep
    acted: list[str] = []

    def act_first(self: Context, action: Action, *rest: object) -> None:
        if not acted and action.kind == kind:
            acted.append(action.name)
            act(self.store)
        keep(self, action, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(acting.Context, "_keep", act_first)
    return acted


@pytest.mark.parametrize("table", [Table.MANIFESTS, Table.TAGS])
def test_what_is_pushed_while_it_is_taken_out_stays(data: Path, table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.open(data) as store:
        image = store.registry.listings.images(1)[0][0]
        raw = store.registry.manifest(image.repository, image.tag)
    key = tag_key(image.repository, image.tag) if table is Table.TAGS else image.digest.key
    wreck_all(data, [first(data, table, lambda record: record.key == key)])

    def push(store: Store) -> None:
        document = parse_manifest(raw.raw, raw.media_type)
        store.registry.put_manifest(image.repository, image.digest, document, [image.tag])

    pushed = meanwhile(monkeypatch, table.label.rstrip("s"), push)
    assert repair(data).clean
    assert pushed
    with Store.open(data) as store:
        assert store.registry.manifest(image.repository, image.tag).raw == raw.raw


def test_a_tag_that_is_pushed_while_it_is_mended_is_the_pushed_one(
    data: Path, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = first(data, Table.TAGS, lambda record: record.key == tag_key("lib/one", "1"))
    replace_record(data, Table.TAGS, record.key, bytes(8) + record.value[8:])
    pushed = made.sample.images["about"]

    def push(store: Store) -> None:
        stored = store.registry.manifest("lib/one", pushed)
        store.registry.put_manifest("lib/one", pushed, parse_manifest(stored.raw, stored.media_type), ["1"])

    acted = meanwhile(monkeypatch, "tag", push)
    done = repair(data)
    assert acted == ["lib/one:1"]
    assert done.clean, "there is nothing left to do, and it has seen that"
    with Store.open(data) as store:
        assert store.registry.manifest("lib/one", "1").digest == pushed


@pytest.mark.parametrize("table", [Table.MANIFEST_LINKS, Table.LINKS])
def test_what_is_deleted_while_it_is_mended_does_not_come_back(
    data: Path, made: Made, monkeypatch: pytest.MonkeyPatch, table: Table
) -> None:
    digest = Digest.of(OPAQUE) if table is Table.LINKS else made.sample.images["about"]
    wreck_all(data, [first(data, table, lambda record: record.key == link_key("lib/one", digest))])

    def delete(store: Store) -> None:
        (store.registry.delete_blob if table is Table.LINKS else store.registry.delete_manifest)("lib/one", digest)

    acted = meanwhile(monkeypatch, table.label.replace("_", " ").rstrip("s"), delete)
    done = repair(data)
    assert acted == [f"lib/one@{digest}"]
    assert done.clean
    with Store.open(data) as store, store.env.read() as txn:
        assert store.registry.link_record(txn, table, "lib/one", digest) is None


def test_a_blob_that_is_deleted_while_it_is_fetched_does_not_come_back(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has it then, and nobody would ever remove it."""
    digest = Digest.of(OPAQUE)
    with open_repository(tmp_path / "backup", write=True) as backups:
        name = take_backup(data, backups)
    wreck_all(data, [first(data, Table.BLOBS, lambda record: record.key == digest.key)])
    holders = acting.Context.holders
    deleted: list[str] = []

    def delete_then(self: Context, wanted: Digest) -> list[str]:
        found = holders(self, wanted)
        if wanted == digest and not deleted:
            deleted.extend(found)
            self.store.registry.delete_blob("lib/one", digest)
        return found

    monkeypatch.setattr(acting.Context, "holders", delete_then)
    with open_repository(tmp_path / "backup", write=False) as backups:
        done = repair(data, sources=[BackupSource(backups, backups.load(name))])
    assert deleted == ["lib/one"]
    assert done.clean
    with Store.open(data) as store:
        assert not store.blobs.exists(digest)


def test_a_damaged_database_needs_the_service_stopped(data: Path, run: Run) -> None:
    flip_pages(data, random.Random("live"), 40, trees=True)
    lock = os.open(data / "lock", os.O_RDWR | os.O_CREAT)
    import fcntl

    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        before = (data / "store" / "data.mdb").read_bytes()
        result = run("fsck", "--repair", "--data", data)
        assert result.code == 9
        assert "stop the service" in result.err
        assert (data / "store" / "data.mdb").read_bytes() == before
    finally:
        os.close(lock)


def _killed(data: Path, after: int, before_writing: bool) -> str:
    """A repair that is killed at its n-th change."""
    keep, count = acting.Context._keep, []

    def counted(self: Context, action: Action, lost: object, files: object) -> None:
        count.append(action)
        if len(count) == after and not before_writing:
            os.kill(os.getpid(), signal.SIGKILL)
        keep(self, action, lost, files)  # type: ignore[arg-type]
        if len(count) == after:
            os.kill(os.getpid(), signal.SIGKILL)

    acting.Context._keep = counted  # type: ignore[method-assign]
    setattr(running, "check_store", lambda data, quick, watch: check(data, quick=quick))  # noqa: ARG005, B010
    repair(data)
    return "not killed"


@pytest.mark.parametrize(("after", "before_writing"), [(2, True), (5, False)][: 1 + ROUNDS // 8])
def test_a_repair_that_is_killed_is_done_again(data: Path, made: Made, after: int, before_writing: bool) -> None:
    randomness = random.Random("killed")
    wreck_all(data, file_frames(data))
    for table in (Table.BLOBS, Table.LINKS, Table.OBJECTS, Table.REFERRERS, Table.JOBS):
        wreck(data, first(data, table), randomness)
    assert in_child(_killed, data, after, before_writing).signal is signal.SIGKILL
    done = repair(data)
    assert done.after.problems == []
    with Store.open(data) as store:
        for digest, blob in made.sample.blobs.items():
            if store.blobs.exists(digest):
                assert b"".join(store.blobs.read(digest)) == blob
    assert repair(data).actions == []
