"""Damage under a layer that is being read is mended by it; attempts that fail are counted, or not, as they should."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pagepool.digest import Digest, blake3_raw
from pagepool.errors import CorruptError, StoreFullError
from pagepool.extents import EXTENT_SIZE, Role, encode_frame
from pagepool_service import inflate as inflating
from pagepool_service import maintenance
from pagepool_service.maintenance import Maintenance
from pagepool_service.store.environment import Table
from pagepool_service.store.fsck import check_store
from pagepool_service.store.schema import ContentKind, LayerState, Location
from pagepool_service.store.store import Store
from tests.faults import Record, flip_record, in_child, records, replace_record
from tests.store.helpers import REPOSITORY, gzipped, ingest_all, make_tar, noise, push, read, text, zstd

if TYPE_CHECKING:
    from collections.abc import Iterator

SHARED = {"shared/large": text(700_000, 1), "shared/noise": noise(200_000, 2), "shared/small": text(3000, 3)}
FIRST = make_tar({**SHARED, "first": text(100_000, 4)})
SECOND = make_tar({**SHARED, "second": text(120_000, 5)})


def rebuilt(store: Store, digest: Digest) -> bytes:
    from pagepool_service.store.rebuild import rebuild

    with store.env.read() as txn:
        layer = store.blobs.layer(txn, store.blobs.record(txn, digest))
    assert layer is not None
    return b"".join(rebuild(store.env, store.extents, layer.recipe, 0, layer.plain_size))


def _shared_frame(data: Path) -> Record:
    return next(record for record in records(data, Table.FRAMES) if record.value[1] == 0)


def _shared_extent(data: Path) -> Record:
    """The first of a frame: the others are found in the frame itself, once it is at hand."""
    places = ((Location.decode(record.value[:16]), record) for record in records(data, Table.EXTENTS))
    return next(record for place, record in places if (place.frame, place.offset) == (1, 0))


def _shared_object(data: Path) -> Record:
    wanted = (700_000).to_bytes(8, "big")
    return next(record for record in records(data, Table.OBJECTS) if record.value[:8] == wanted)


@pytest.mark.parametrize("find", [_shared_frame, _shared_extent, _shared_object], ids=["frame", "extent", "object"])
@pytest.mark.parametrize("gone", [False, True], ids=["flipped", "gone"])
def test_a_layer_that_shares_damaged_data_mends_it(data: Path, find: object, gone: bool) -> None:
    with Store.open(data) as store:
        first = push(store, gzipped(FIRST))
        ingest_all(store)
    record = find(data)  # type: ignore[operator]
    if gone:
        replace_record(data, record.table, record.key, None)
    else:
        flip_record(data, record, -20)
    with Store.open(data) as store:
        with pytest.raises(CorruptError):
            rebuilt(store, first)
        second = push(store, gzipped(SECOND))
        ingest_all(store)
        assert store.blobs.stat(second).state is LayerState.READY, store.blobs.stat(second).reason
        assert rebuilt(store, second) == SECOND
        # What the second layer does not have may still be lost with the frame; what it has is back.
        if find is not _shared_frame:
            assert rebuilt(store, first) == FIRST
    if find is not _shared_frame:
        # Taking a record out by hand leaves the totals as they were.
        problems = check_store(data).problems
        assert [problem.kind for problem in problems] == (["totals"] if gone and find is _shared_extent else [])


def test_wrong_bytes_in_a_sound_record_are_stored_anew(store: Store) -> None:
    """As a bit of memory makes them, while they are written. No layer that has them could be read any more."""
    content = SHARED["shared/large"][:EXTENT_SIZE]
    wrong = bytes([content[0] ^ 1]) + content[1:]
    with store.env.write() as txn:
        store.extents.put_frames(txn, [encode_frame([(blake3_raw(content), wrong)], Role.FILES)])
    digest = push(store, FIRST)
    ingest_all(store)
    assert store.blobs.stat(digest).state is LayerState.READY
    assert read(store, digest) == FIRST


def test_the_first_image_is_readable_again(data: Path) -> None:
    """A frame of which the second layer has every file."""
    with Store.open(data) as store:
        first = push(store, make_tar(SHARED))
        ingest_all(store)
        assert store.blobs.stat(first).content is ContentKind.RECIPE
    for record in records(data, Table.FRAMES):
        flip_record(data, record, len(record.value) // 2)
    with Store.open(data) as store:
        with pytest.raises(CorruptError):
            read(store, first)
        push(store, zstd(SECOND))
        ingest_all(store)
        assert read(store, first) == make_tar(SHARED)
    report = check_store(data)
    assert report.problems == []
    assert any("nothing refers to any more" in note for note in report.notes)


@pytest.mark.parametrize("table", [Table.LAYERS, Table.RECIPES])
@pytest.mark.parametrize("pack", [bytes, zstd], ids=["plain", "zstd"])
def test_the_same_tar_again_mends_its_layer(data: Path, table: Table, pack: object) -> None:
    """Its recipe was there, so nothing seems to be new; what was acknowledged must not rest on damaged records."""
    with Store.open(data) as store:
        first = push(store, gzipped(FIRST))
        ingest_all(store)
    flip_record(data, records(data, table)[0], 20)
    with Store.open(data) as store:
        again = push(store, pack(FIRST))  # type: ignore[operator]
        ingest_all(store)
        assert store.blobs.stat(again).state is LayerState.READY
        assert read(store, again) == pack(FIRST)  # type: ignore[operator]
        for digest in (first, again):
            assert rebuilt(store, digest) == FIRST
    assert check_store(data).problems == []


def test_a_blob_that_is_damaged_itself_is_given_up(data: Path) -> None:
    with Store.open(data) as store:
        digest = push(store, gzipped(FIRST))
        path = store.blobs.spool_path(digest)
        path.write_bytes(path.read_bytes()[:-1] + b"?")
        assert ingest_all(store) < 10, "it was read again and again"
        record = store.blobs.stat(digest)
        assert record.state is LayerState.UNMOUNTABLE
        assert record.reason.startswith("its bytes are damaged where they are kept: corrupt extent ")
        # Its file stays: what is right in it is all there is.
        assert record.content is ContentKind.SPOOL
        assert path.exists()
        with pytest.raises(CorruptError):
            read(store, digest)
        with store.env.read() as txn:
            assert store.jobs.count(txn) == 0
            assert txn.count(Table.RECIPES) == 0


def test_a_damaged_blob_does_not_hurt_what_is_sound(data: Path) -> None:
    """The spool file of one blob is damaged where its bytes are stored, and right, for another."""
    content = noise(600_000, "both")
    with Store.open(data) as store:
        sound = push(store, content)
        ingest_all(store)
        damaged = push(store, content, algorithm="sha512")
        path = store.blobs.spool_path(damaged)
        path.write_bytes(content[:300_000] + b"?" + content[300_001:])
        ingest_all(store)
        assert read(store, sound) == content


def test_a_damaged_record_of_a_blob_does_not_keep_others_waiting(data: Path) -> None:
    with Store.open(data) as store:
        lost = push(store, gzipped(FIRST))
        good = push(store, gzipped(SECOND))
    flip_record(data, next(record for record in records(data, Table.BLOBS) if record.key == lost.key), 4)
    with Store.open(data) as store:
        ingest_all(store)
        assert store.blobs.stat(good).state is LayerState.READY
        with pytest.raises(CorruptError):
            store.blobs.stat(lost)


# -- attempts ------------------------------------------------------------------------------------------------


def _die_while_reading(data: Path) -> None:
    """In a child: begin to read a layer, and be killed after its first megabyte was split."""

    def dying(chunks: Iterator[bytes]) -> Iterator[bytes]:
        yield next(chunks)
        os.kill(os.getpid(), signal.SIGKILL)

    real = inflating.inflate

    def inflate(*arguments: object) -> object:
        compression, chunks = real(*arguments)  # type: ignore[arg-type]
        return compression, dying(chunks)

    vars(maintenance)["inflate"] = inflate
    with Store.open(data) as store:
        Maintenance(store).run_one()


@pytest.mark.parametrize("opens", [True, False])
def test_a_file_that_the_disk_does_not_read_keeps_no_others_waiting(store: Store, *, opens: bool) -> None:
    """Nothing was ever settled while it was there, nor any image made ahead: its job came first, time and again."""
    digests = [push(store, gzipped(layer)) for layer in (FIRST, SECOND)]
    path = store.blobs.spool_path(digests[0])
    path.unlink()
    path.symlink_to("/proc/self/mem" if opens else path)  # nothing is at its beginning: EIO; or ELOOP
    assert ingest_all(store) == 3
    records = [store.blobs.stat(digest) for digest in digests]
    assert [(record.state, record.content) for record in records] == [
        (LayerState.PENDING, ContentKind.SPOOL),
        (LayerState.READY, ContentKind.OBJECT),
    ]
    push(store, gzipped(FIRST))
    ingest_all(store)
    assert store.blobs.stat(digests[0]).state is LayerState.READY


def test_a_layer_that_kills_its_process_is_given_up_after_three_times(data: Path) -> None:
    large = make_tar({"file": noise(2_000_000)})
    with Store.open(data) as store:
        killer = push(store, gzipped(large))
        good = push(store, gzipped(FIRST))
    for attempt in (1, 2, 3):
        assert in_child(_die_while_reading, data).signal is signal.SIGKILL
        with Store.open(data) as store:
            job = store.jobs.peek()
            assert job is not None
            assert (job.blob, job.attempts) == (killer, attempt)
    with Store.open(data) as store:
        ingest_all(store)
        record = store.blobs.stat(killer)
        assert record.state is LayerState.UNMOUNTABLE
        assert "3 times" in record.reason
        assert read(store, killer) == gzipped(large)
        assert store.blobs.stat(good).state is LayerState.READY
    report = check_store(data)
    assert report.problems == []
    # Nothing of the three attempts is left: each next one has removed the recipe of the one before.
    assert not any("recipes" in note for note in report.notes), report.notes


def test_a_layer_whose_process_was_killed_once_is_read(data: Path) -> None:
    large = make_tar({"file": noise(2_000_000)})
    with Store.open(data) as store:
        digest = push(store, gzipped(large))
    assert in_child(_die_while_reading, data).signal is signal.SIGKILL
    with Store.open(data) as store:
        ingest_all(store)
        assert store.blobs.stat(digest).diff_id == Digest.of(large)
    assert check_store(data).notes == []


def test_a_full_store_is_no_fault_of_the_layer(data: Path) -> None:
    """However often the quota refuses, the job waits, and succeeds when there is room."""
    tar = make_tar({"file": noise(3_000_000)})
    with Store.open(data) as store:
        digest = push(store, zstd(tar))
    with Store.open(data, quota_bytes=1 << 20) as store:
        for _ in range(8):
            with pytest.raises(StoreFullError):
                Maintenance(store).run_one()
        assert store.blobs.stat(digest).state is LayerState.PENDING
        assert read(store, digest) == zstd(tar)
        with store.env.read() as txn:
            assert txn.count(Table.RECIPES) == 0
    with Store.open(data) as store:
        ingest_all(store)
        assert store.blobs.stat(digest).diff_id == Digest.of(tar)
    assert check_store(data).problems == []


@pytest.mark.parametrize("batch", range(6))
def test_a_store_that_fills_up_in_the_middle_never_hangs(
    data: Path, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever batch the disk refuses, also the last while others wait behind it: an error, soon, and a retry."""
    from pagepool_service.committing import Committer

    tar = make_tar({f"{number}": noise(9_000_000, number) for number in range(8)})
    real = Committer._commit
    calls: list[int] = []

    def refuse(self: Committer, given: object) -> None:
        calls.append(1)
        if len(calls) > batch:
            raise StoreFullError("says the test")
        real(self, given)  # type: ignore[arg-type]

    with Store.open(data) as store:
        digest = push(store, tar)
        with monkeypatch.context() as patched:
            patched.setattr(Committer, "_commit", refuse)
            with pytest.raises(StoreFullError, match="says the test"):
                Maintenance(store).run_one()
        assert len(calls) > batch
        with store.env.read() as txn:
            assert txn.count(Table.RECIPES) == 0
        ingest_all(store)
        assert store.blobs.stat(digest).diff_id == Digest.of(tar)


def test_a_blob_that_is_removed_while_it_is_read_stays_removed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = push(store, gzipped(FIRST))
    real = inflating.inflate

    def inflate(*arguments: object) -> object:
        store.registry.delete_blob(REPOSITORY, digest)
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(maintenance, "inflate", inflate)
    ingest_all(store)
    assert not store.blobs.exists(digest)
    with store.env.read() as txn:
        assert store.jobs.count(txn) == 0
    assert list((store.data / "spool").iterdir()) == []
