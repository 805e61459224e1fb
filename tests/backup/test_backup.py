"""Backups: equal when restored, incremental, whole whatever ends them, and what is damaged is named."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from blake3 import blake3

from pagepool.digest import Digest
from pagepool.errors import BusyError, CorruptError, PagepoolError, StoreFormatError, StoreFullError
from pagepool.extents import Role, encode_frame
from pagepool.linux import sync_directory
from pagepool.oci.mediatypes import OCI_LAYER_GZIP
from pagepool_service.backup import repository as repository_module
from pagepool_service.backup import restoring, segments, taking
from pagepool_service.backup.repository import BackupInvalidError, Repository, Snapshot, check_apart, open_repository
from pagepool_service.backup.restoring import check_snapshot, restore
from pagepool_service.backup.taking import take_backup
from pagepool_service.store.environment import Table
from pagepool_service.store.fsck import check_store
from pagepool_service.store.store import Store
from tests.backup.helpers import blobs_of, content
from tests.fault.pushing import Acknowledged, Pusher
from tests.faults import file_size_limit, flip_file, flip_record, in_child, records
from tests.repair.helpers import ROUNDS
from tests.store.checking import check
from tests.store.helpers import REPOSITORY, gzipped, ingest_all, make_tar, push, read, text
from tests.store.samples import BASE, SPOOLED, push_image
from tests.support.server import running_service

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pagepool_service.store.environment import Reader
    from tests.backup.conftest import Made
    from tests.cli.conftest import Run


@pytest.fixture(autouse=True)
def checked_here(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """fsck in this process, but where the commands are tested."""
    if "run" not in request.fixturenames:
        monkeypatch.setattr(restoring, "check_store", check)


def back_up(data: Path, destination: Path) -> str:
    with open_repository(destination, write=True) as repository:
        return take_backup(data, repository)


def restored(destination: Path, data: Path, snapshot: str, *, partial: bool = False) -> restoring.Restored:
    with open_repository(destination, write=False) as repository:
        return restore(repository, repository.load(snapshot), data, partial=partial)


def files_of(destination: Path) -> dict[Path, int]:
    """Files that snapshots share, with the inode of each."""
    found = [path for name in ("segments", "spool") for path in (destination / name).rglob("*") if path.is_file()]
    return {path: path.stat().st_ino for path in found}


# -- round trips -----------------------------------------------------------------------------------------------


def test_a_restored_store_is_equal_and_works(made: Made, tmp_path: Path) -> None:
    name = back_up(made.data, tmp_path / "backup")
    new = tmp_path / "new"
    done = restored(tmp_path / "backup", new, name)
    assert done.clean
    assert done.records == sum(len(records(made.data, table)) for table in Table if table is not Table.EXTENTS)
    assert content(new) == content(made.data)
    assert blobs_of(new, made.sample.blobs) == made.sample.blobs
    with Store.open(new) as store:  # work that waited goes on, and numbers are not used twice
        assert ingest_all(store) > 0
        push(store, gzipped(make_tar({"new": text(300_000, "new")})))
        ingest_all(store)
    assert check_store(new).problems == []


def test_an_empty_store(tmp_path: Path) -> None:
    Store.open(tmp_path / "data").close()
    name = back_up(tmp_path / "data", tmp_path / "backup")
    assert restored(tmp_path / "backup", tmp_path / "new", name).clean


def test_a_second_backup_writes_only_what_is_new(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(segments._MEAN, Table.FRAMES, 2)  # a large store has many segments; this one would have one
    destination = tmp_path / "backup"
    first = back_up(data, destination)
    before, first_content = files_of(destination), content(data)
    assert back_up(data, destination) != first
    assert files_of(destination) == before
    with Store.open(data) as store:
        push_image(store, "lib/new", "1", [(gzipped(make_tar({"a": text(200_000, "a")})), OCI_LAYER_GZIP)])
        ingest_all(store)  # which moves the blob in the spool into frames, too
    third = back_up(data, destination)
    after = files_of(destination)
    assert after.items() >= before.items()
    with open_repository(destination, write=True) as repository:
        assert repository.load(third).statistics["written_bytes"] < len(SPOOLED) + 500_000
        # Each snapshot is whole, also the one whose blob has left the spool since.
        assert restore(repository, repository.load(first), tmp_path / "old").clean
        assert content(tmp_path / "old") == first_content
        gone, freed = repository.forget(1)
        assert (len(gone), repository.list_snapshots()) == (2, [third])
        assert freed > len(SPOOLED)
        assert restore(repository, repository.load(third), tmp_path / "new").clean
    assert content(tmp_path / "new") == content(data)


def test_frames_that_are_replaced_or_removed_change_few_segments(data: Path, tmp_path: Path) -> None:
    from pagepool_service.store.recompress import Recompressor

    destination = tmp_path / "backup"
    back_up(data, destination)
    with Store.open(data) as store:
        recompressor = Recompressor(store.env)
        while recompressor.step():
            pass
    second = back_up(data, destination)
    assert restored(destination, tmp_path / "new", second).clean
    assert content(tmp_path / "new") == content(data)


# -- a store that is in use ------------------------------------------------------------------------------------


def test_backups_of_a_service_that_is_pushed_to(tmp_path: Path) -> None:
    """What was acknowledged before a backup began is in it, whatever goes on while it is taken."""
    noted = Acknowledged()
    expected: list[tuple[str, dict[tuple[str, str], bytes], set[tuple[str, str]]]] = []
    with running_service(tmp_path / "data") as service:
        pushers = [Pusher(service.url, f"pusher{number}", noted, number) for number in range(2)]
        for pusher in pushers:
            pusher.start()
        try:
            for _ in range(2):
                assert noted.wait_for(8)
                tags, blobs = dict(noted.tags), set(noted.blobs)
                expected.append((back_up(tmp_path / "data", tmp_path / "backup"), tags, blobs))
        finally:
            for pusher in pushers:
                pusher.stop()
                pusher.join()
    for number, (name, tags, blobs) in enumerate(expected):
        new = tmp_path / f"new{number}"
        assert restored(tmp_path / "backup", new, name).clean
        with Store.open(new, readonly=True) as store:
            for repository, digest in blobs - noted.deleted:
                found = Digest.parse(digest)
                assert store.registry.stat_blob(repository, found).size == noted.blobs[repository, digest]
                assert Digest.of(b"".join(store.blobs.read(found))) == found
            for (repository, tag), manifest in tags.items():
                if noted.tags[repository, tag] == manifest:  # not pushed anew meanwhile
                    assert store.registry.manifest(repository, tag).raw == manifest
        shutil.rmtree(new)


def test_what_changes_between_the_passes_is_taken_too(
    data: Path, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The blob in the spool is settled, and its file removed, after the first pass: the snapshot is of afterwards."""
    whole = taking._Taking._finish
    done: list[str] = []

    def late(self: taking._Taking) -> str:
        if not done:
            done.append(in_child(_settle_and_push, data).error)
        return whole(self)

    monkeypatch.setattr(taking._Taking, "_finish", late)
    name = back_up(data, tmp_path / "backup")
    assert done == [""]
    assert restored(tmp_path / "backup", tmp_path / "new", name).clean
    assert content(tmp_path / "new") == content(data)
    assert blobs_of(tmp_path / "new", made.sample.blobs) == made.sample.blobs


def test_a_blob_that_is_settled_removed_and_pushed_again_in_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file is not lost: it was another one that the snapshot's record was about."""
    blob = random.Random(2).randbytes(300_000)
    whole, spooled, is_still = taking._Taking._finish, taking._spooled, taking._Taking._is_still
    asked: list[Digest] = []
    begun: list[str] = []

    def finish(self: taking._Taking) -> str:
        if not begun:
            push(store, blob)
        begun.append("")
        return whole(self)

    def look(txn: Reader) -> dict[Digest, int]:
        found = spooled(txn)
        if begun and not asked:
            ingest_all(store)
        return found

    def ask(self: taking._Taking, digest: Digest, *seen: bytes) -> bool:
        asked.append(digest)
        store.registry.delete_blob(REPOSITORY, digest)
        push(store, blob)
        return is_still(self, digest, *seen)

    monkeypatch.setattr(taking._Taking, "_finish", finish)
    monkeypatch.setattr(taking, "_spooled", look)
    monkeypatch.setattr(taking._Taking, "_is_still", ask)
    with Store.open(tmp_path / "data") as store, open_repository(tmp_path / "backup", write=True) as repository:
        name = taking._Taking(store, repository, lambda _: None).run()
    assert asked == [Digest.of(blob)]
    assert restored(tmp_path / "backup", tmp_path / "new", name).clean
    assert blobs_of(tmp_path / "new", asked) == {asked[0]: blob}


def _settle_and_push(data: Path) -> None:
    with Store.open(data) as store:
        ingest_all(store)
        push_image(store, "late", "1", [(gzipped(BASE, 3), OCI_LAYER_GZIP)])


# -- ended, full, in use ---------------------------------------------------------------------------------------


def _killed(data: Path, destination: Path, after: int) -> str:
    """A backup that is killed when it has written so many files."""
    add = Repository.add
    count: list[Path] = []

    def counted(self: Repository, path: Path, pieces: Iterable[bytes]) -> int:
        def watched() -> Iterable[bytes]:
            for piece in pieces:
                yield piece
                if len(count) == after:
                    os.kill(os.getpid(), signal.SIGKILL)

        size = add(self, path, watched())
        count.append(path)
        return size

    Repository.add = counted  # type: ignore[method-assign]
    return back_up(data, destination)


@pytest.mark.parametrize("after", [0, 3][: 1 + ROUNDS // 8])
def test_a_backup_that_is_killed_leaves_every_snapshot_whole(data: Path, tmp_path: Path, after: int) -> None:
    destination = tmp_path / "backup"
    first = back_up(data, destination)
    before = content(data)
    with Store.open(data) as store:
        push_image(store, "lib/new", "1", [(gzipped(make_tar({"a": text(200_000, "a")})), OCI_LAYER_GZIP)])
        ingest_all(store)
    outcome = in_child(_killed, data, destination, after)
    assert outcome.signal is signal.SIGKILL
    with open_repository(destination, write=False) as repository:
        assert repository.list_snapshots() == [first]
        assert restore(repository, repository.load(first), tmp_path / "old").clean
    assert content(tmp_path / "old") == before
    second = back_up(data, destination)
    assert list((destination / "tmp").iterdir()) == []
    assert restored(destination, tmp_path / "new", second).clean
    assert content(tmp_path / "new") == content(data)


def test_what_a_backup_that_was_ended_has_left(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its segments are used, and their names durable before a snapshot is that has them; the rest goes."""
    destination = tmp_path / "backup"
    synced: set[Path] = set()

    def ended(_taking: taking._Taking) -> str:
        raise KeyboardInterrupt

    def sync(path: Path) -> None:
        synced.add(path)
        sync_directory(path)

    with monkeypatch.context() as patch:
        patch.setattr(taking._Taking, "_finish", ended)
        with pytest.raises(KeyboardInterrupt):
            back_up(made.data, destination)
    (destination / "tmp" / "pagepool-check-1" / "data").mkdir(parents=True)  # of one that was killed while it verified
    before = files_of(destination)
    monkeypatch.setattr(repository_module, "sync_directory", sync)
    back_up(made.data, destination)
    assert before.items() <= files_of(destination).items()
    assert {path.parent for path in before} <= synced
    assert list((destination / "tmp").iterdir()) == []


def test_a_full_disk_fails_the_backup_and_nothing_else(data: Path, tmp_path: Path) -> None:
    destination = tmp_path / "backup"
    first = back_up(data, destination)
    with Store.open(data) as store:
        push(store, random.Random(1).randbytes(400_000))
        ingest_all(store)
    with file_size_limit(100_000), pytest.raises(StoreFullError, match="no space left"):
        back_up(data, destination)
    assert list((destination / "tmp").iterdir()) == []
    assert restored(destination, tmp_path / "old", first).clean
    with file_size_limit(100_000), pytest.raises(PagepoolError):
        restored(destination, tmp_path / "new", first)
    assert not (tmp_path / "new" / "format").exists()


def test_one_at_a_time(made: Made, tmp_path: Path) -> None:
    with open_repository(tmp_path / "backup", write=True) as repository:
        with pytest.raises(BusyError, match="in use"):
            back_up(made.data, tmp_path / "backup")
        take_backup(made.data, repository)


# -- damage ----------------------------------------------------------------------------------------------------


def test_a_flipped_byte_anywhere_in_a_backup_is_found_and_named(made: Made, tmp_path: Path) -> None:
    destination = tmp_path / "backup"
    name = back_up(made.data, destination)
    randomness = random.Random("backup")
    concerned: dict[str, set[str]] = {}
    with open_repository(destination, write=False) as repository:
        snapshot = repository.load(name)
        tables = {repository.segment_path(e.name): t for t, found in snapshot.tables.items() for e in found}
        for path in files_of(destination):
            at = randomness.randrange(path.stat().st_size)
            flip_file(path, at)
            done = check_snapshot(repository, snapshot, tmp_path)
            flip_file(path, at)
            assert [damage.path for damage in done.damage] == [str(path)], (path, at)
            images = {image for problem in done.report.problems for image in problem.images}
            concerned[tables.get(path, "spool")] = images
        assert check_snapshot(repository, snapshot, tmp_path).clean
    everything = {"lib/one:1", "lib/two:1", "lib/three:1", "multi:1"}
    for table in ("frames", "recipes", "blobs", "layers", "manifests"):
        assert concerned[table] >= everything, table
    assert not list(tmp_path.glob("pagepool-check-*"))
    (path,) = (destination / "snapshots").iterdir()
    flip_file(path, 100)
    with open_repository(destination, write=True) as repository:
        with pytest.raises(CorruptError, match=path.name):
            repository.load(name)
        with pytest.raises(CorruptError):  # what it names is not known: nothing is removed
            repository.forget(1)


def test_what_can_be_read_of_a_damaged_backup(made: Made, tmp_path: Path) -> None:
    destination = tmp_path / "backup"
    name = back_up(made.data, destination)
    next((destination / "spool").iterdir()).unlink()
    done = restored(destination, tmp_path / "new", name)
    assert not done.clean
    assert list((tmp_path / "new").iterdir()) == []
    done = restored(destination, tmp_path / "new", name, partial=True)
    assert [damage.held for damage in done.damage] == [f"blob {Digest.of(SPOOLED)}"]
    assert {problem.kind for problem in done.report.problems} == {"blob"}
    good = {digest: blob for digest, blob in made.sample.blobs.items() if blob != SPOOLED}
    assert blobs_of(tmp_path / "new", good) == good


@pytest.mark.parametrize("how", ["read", "open", "gone"])
def test_a_file_of_a_store_that_the_disk_does_not_read(data: Path, tmp_path: Path, how: str) -> None:
    """It is named and left out; there was no backup at all as long as it was there."""
    (file,) = (data / "spool").iterdir()
    file.unlink()
    if how != "gone":
        file.symlink_to("/proc/self/mem" if how == "read" else file)  # nothing is at its beginning: EIO; or ELOOP
    name = back_up(data, tmp_path / "backup")
    with open_repository(tmp_path / "backup", write=False) as repository:
        assert repository.load(name).damaged == [("blob", str(Digest.of(SPOOLED)))]
    assert list((tmp_path / "backup" / "spool").iterdir()) == []
    done = restored(tmp_path / "backup", tmp_path / "new", name, partial=True)
    assert {problem.name for problem in done.report.problems} == {str(Digest.of(SPOOLED))}


def test_a_file_of_a_backup_that_the_disk_does_not_read(made: Made, tmp_path: Path) -> None:
    """It is named, and costs what was in it; the restore as a whole failed, also one of what can be read."""
    name = back_up(made.data, tmp_path / "backup")
    (file,) = (tmp_path / "backup" / "spool").iterdir()
    file.unlink()
    file.symlink_to("/proc/self/mem")  # nothing is at its beginning: EIO
    done = restored(tmp_path / "backup", tmp_path / "new", name, partial=True)
    assert [(damage.path, damage.reason) for damage in done.damage] == [(str(file), os.strerror(errno.EIO))]
    assert list((tmp_path / "new" / "spool").iterdir()) == []


def test_of_an_extent_that_was_stored_again_the_last_copy_counts(tmp_path: Path) -> None:
    """As after wrong bytes were written, and a push mended them: the store can be read, and so can the restored one."""
    content = b"content"
    name = blake3(content).digest()
    with Store.open(tmp_path / "data") as store:
        with store.env.write() as txn:
            store.extents.put_frames(txn, [encode_frame([(name, b"CONTENT")], Role.FILES)])
            assert store.extents.forget_unsound(txn, [name]) == 1
        blob = push(store, make_tar({"file": content}))
        ingest_all(store)
        assert read(store, blob) == make_tar({"file": content})
    snapshot = back_up(tmp_path / "data", tmp_path / "backup")
    done = restored(tmp_path / "backup", tmp_path / "new", snapshot, partial=True)
    assert [problem.reason for problem in done.report.problems] == ["frame 1 holds other bytes under its name"]
    assert blobs_of(tmp_path / "new", [blob]) == {blob: make_tar({"file": content})}


def test_damage_in_the_store_is_left_out_and_told(data: Path, tmp_path: Path, run: Run) -> None:
    destination = tmp_path / "backup"
    first = back_up(data, destination)
    frame = next(record for record in records(data, Table.FRAMES) if record.value[1] == 0)
    flip_record(data, frame, -500)
    # Where an earlier backup has the good bytes they stay, and the new one shares them.
    second = back_up(data, destination)
    assert restored(destination, tmp_path / "new", second).clean
    result = run("backup", "--data", data, tmp_path / "other", "--json")
    assert result.code == 5
    assert result.json["damaged"] == [{"kind": "frame", "name": str(int.from_bytes(frame.key, "big"))}]
    assert "lib/one:1" in run("restore", tmp_path / "other", tmp_path / "third").out
    assert restored(destination, tmp_path / "old", first).clean


def test_what_an_earlier_backup_alone_has_is_not_forgotten(data: Path, tmp_path: Path, run: Run) -> None:
    """A store with damage in it goes on being backed up, night by night: the good bytes must outlive that."""
    destination = tmp_path / "backup"
    first = back_up(data, destination)
    frame = next(record for record in records(data, Table.FRAMES) if record.value[1] == 0)
    flip_record(data, frame, -500)
    with Store.open(data) as store:  # what comes is in the segment of what is damaged
        push(store, gzipped(make_tar({"new": text(200_000, "new")})))
        ingest_all(store)
    result = run("backup", "--data", data, "--keep", "1", destination)
    assert result.code == 5
    assert "nothing is forgotten" in result.out
    assert restored(destination, tmp_path / "old", first).clean
    result = run("backup", "--data", data, "--keep", "1", destination, "--json")
    assert (result.code, result.json["forgotten"]) == (5, [])


def test_a_backup_that_was_just_taken_is_not_forgotten_though_the_clock_was_set_back(
    data: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    destination = tmp_path / "backup"
    with monkeypatch.context() as patch:
        ahead = time.time_ns() + 365 * 86_400 * 10**9
        patch.setattr(time, "time_ns", lambda: ahead)
        early = back_up(data, destination)
    result = run("backup", "--data", data, "--keep", "1", destination, "--json")
    assert (result.code, result.json["forgotten"]) == (0, [early])
    assert restored(destination, tmp_path / "new", result.json["snapshot"]).clean


# -- what is refused -------------------------------------------------------------------------------------------


def test_directories_that_cannot_be_meant(made: Made, data: Path, tmp_path: Path) -> None:
    for inner in (data, data / "backup", data / "store" / "x"):
        with pytest.raises(BackupInvalidError, match="lies in the data directory"):
            check_apart(data, inner)
    name = back_up(made.data, tmp_path / "backup")
    with pytest.raises(BackupInvalidError, match="not empty"):
        restored(tmp_path / "backup", data, name)
    assert check_store(data).clean
    # Of a disk that was made just now, and of a node that root has beside his service.
    for beside in ("lost+found", "node", "logs", "ended"):
        (tmp_path / "new" / beside).mkdir(parents=True)
    assert restored(tmp_path / "backup", tmp_path / "new", name).clean
    with pytest.raises(BackupInvalidError, match="lies in the directory of backups"):
        check_apart(tmp_path / "backup" / "data", tmp_path / "backup")
    with pytest.raises(StoreFormatError, match="says 'pagepool store 1'"), open_repository(data, write=True):
        pass
    with pytest.raises(StoreFormatError, match="no directory of backups, and not empty"):
        back_up(made.data, tmp_path)
    with pytest.raises(StoreFormatError, match="no directory of backups"), open_repository(tmp_path, write=False):
        pass
    (data / "format").write_text("pagepool store 99\n")
    with pytest.raises(StoreFormatError, match="pagepool store 99"):
        back_up(data, tmp_path / "backup")
    (tmp_path / "backup" / "format").write_text("pagepool backup 9\n")
    with pytest.raises(StoreFormatError, match="pagepool backup 9"):
        back_up(made.data, tmp_path / "backup")


def test_snapshots_of_another_version_are_refused(made: Made, tmp_path: Path) -> None:
    """What a later pagepool has written may look the same, and mean something else."""
    name = back_up(made.data, tmp_path / "backup")
    with open_repository(tmp_path / "backup", write=True) as repository:
        snapshot = repository.load(name)
        store_of_later = repository.save(replace(snapshot, store_format=snapshot.store_format + 1))
        later = json.loads(snapshot.encode()) | {"format": repository_module.VERSION + 1}
        with pytest.raises(StoreFormatError, match="has format 2"):
            Snapshot.decode(json.dumps(later).encode(), "later")
    with pytest.raises(StoreFormatError, match=r"of store format \d+; this pagepool writes"):
        restored(tmp_path / "backup", tmp_path / "new", store_of_later)
    assert not (tmp_path / "new").exists()


def test_a_restore_that_was_cut_off_is_not_served_and_can_be_done_again(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    destination, new = tmp_path / "backup", tmp_path / "new"
    name = back_up(made.data, destination)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(restoring, "check_store", killed)
        patch.setattr(restoring, "_clear", lambda _: None)  # as if it had been killed
        with pytest.raises(KeyboardInterrupt):
            restored(destination, new, name)
    with pytest.raises(StoreFormatError, match="being restored"):
        Store.open(new)
    assert restored(destination, new, name).clean


def test_one_restore_at_a_time(made: Made, tmp_path: Path) -> None:
    """The second one took what the first had made for what one that was cut off had left, and removed it."""
    destination, new = tmp_path / "backup", tmp_path / "new"
    name = back_up(made.data, destination)
    refused: list[int] = []

    def again(size: int) -> None:
        with pytest.raises(BusyError, match=f"in use by process {os.getpid()}"):
            restored(destination, new, name)
        refused.append(size)

    with open_repository(destination, write=False) as repository:
        assert restore(repository, repository.load(name), new, progress=again).clean
    assert refused
    assert content(new) == content(made.data)


# -- the commands ----------------------------------------------------------------------------------------------


def test_the_commands(data: Path, tmp_path: Path, run: Run) -> None:
    destination = tmp_path / "backup"
    result = run("backup", "--data", data, "--verify", "--json", destination)
    assert result.code == 0, result.err
    told = result.json
    assert told["verified"]["clean"]
    assert told["verified"]["records"] == told["records"]
    assert told["verified"]["checked"]["layers rebuilt"] == 4
    result = run("backup", "--data", data, "--keep", "1", destination)
    assert "0 B of it new" in result.out
    assert "forgot 1 snapshot, " in result.out
    (listed,) = run("backup", "--list", destination, "--json").json["snapshots"]
    assert listed["tags"] == 4
    assert listed["snapshot"] in run("backup", "--list", destination).out
    result = run("restore", "--check", "--scratch", tmp_path, destination)
    assert result.code == 0
    assert "records and" in result.out
    result = run("restore", "--snapshot", listed["snapshot"][:12], destination, tmp_path / "new", "--json")
    assert (result.code, result.json["clean"]) == (0, True)
    assert content(tmp_path / "new") == content(data)
    assert run("restore", destination, tmp_path / "new").code == 4
    assert run("restore", destination).code == 2
    result = run("restore", "--snapshot", "1999", destination, tmp_path / "newer")
    assert (result.code, "1999" in result.err) == (3, True)
    assert run("backup", "--data", data, data / "backup").code == 4
    assert run("backup", "--data", tmp_path / "none", tmp_path / "other").code == 1
    assert not (tmp_path / "other").exists(), "a directory of backups of nothing"


def test_the_example_in_the_documentation_is_what_is_written(tmp_path: Path) -> None:
    from pagepool_service.store.environment import Environment

    page = (Path(__file__).parents[2] / "docs" / "format" / "backup.md").read_text()
    example = re.search(r"<!-- example: segment -->\n```\n([0-9a-f\s]+)```", page)
    assert example is not None
    with Environment.open(tmp_path / "store") as env:
        with env.write() as txn:
            txn.put(Table.TAGS, b"a\0b", b"x")
        with env.read() as txn:
            entries, following = segments.cut_segment(txn, Table.TAGS, b"", frozenset())
            raw = b"".join(segments.encode_segment(txn, Table.TAGS, entries))
    name = segments.name_segment(Table.TAGS, entries)
    assert following is None
    assert bytes.fromhex("".join(example[1].split())) == raw
    assert f"Its name begins with `{name[:16]}`" in page
    assert bytes(segments.decode_segment(raw, name)[1][0].payload) == b"x"
