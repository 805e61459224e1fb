"""Blobs: admitted whole or not at all, and read back bit for bit from the spool, from frames and from recipes."""

from __future__ import annotations

import errno
import os
import random
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pagepool.digest import Digest
from pagepool.errors import (
    BlobUnknownError,
    BusyError,
    CorruptError,
    PagepoolError,
    RangeInvalidError,
    StoreFullError,
)
from pagepool.extents import EXTENT_SIZE
from pagepool_service.store.environment import Table
from pagepool_service.store.schema import ContentKind, LayerState
from pagepool_service.store.store import Store
from pagepool_service.store.sums import Summer, sum_file
from tests.store.helpers import REPOSITORY, gzipped, ingest_all, make_tar, noise, push, read, text, zstd

if TYPE_CHECKING:
    from collections.abc import Callable

LARGE_TAR = make_tar({"usr/lib/a": text(700_000, 1), "usr/lib/b": text(3000, 2), "etc/c": noise(300_000, 3)})
SMALL_TAR = make_tar({"etc/c": text(3000, 3)})

# Contents, and where the blob's bytes are after everything was done with it.
BLOBS: dict[str, tuple[bytes, ContentKind]] = {
    "empty": (b"", ContentKind.RECIPE),
    "one byte": (b"x", ContentKind.OBJECT),
    "json": (b'{"architecture":"amd64"}', ContentKind.OBJECT),
    "one extent": (noise(EXTENT_SIZE), ContentKind.OBJECT),
    "one extent and a byte": (noise(EXTENT_SIZE + 1), ContentKind.OBJECT),
    "many extents": (noise(3_000_000), ContentKind.OBJECT),
    "extents again, in another order": (
        b"".join(noise(EXTENT_SIZE, seed) for seed in "xyyxzzxyz") + b"x",
        ContentKind.OBJECT,
    ),
    "zeros": (bytes(2_000_000), ContentKind.RECIPE),
    "small tar": (SMALL_TAR, ContentKind.RECIPE),
    "small gzip": (gzipped(SMALL_TAR), ContentKind.OBJECT),
    "large tar": (LARGE_TAR, ContentKind.RECIPE),
    "large gzip": (gzipped(LARGE_TAR), ContentKind.OBJECT),
    "large zstd": (zstd(LARGE_TAR), ContentKind.OBJECT),
    "cut gzip": (gzipped(LARGE_TAR)[:-1000], ContentKind.OBJECT),
}


def ranges(size: int) -> list[tuple[int, int]]:
    """Ranges at and around every boundary there is, and some others."""
    edges = {0, 1, size // 2, size - 1, size, EXTENT_SIZE, 2 * EXTENT_SIZE, 1 << 20, 512, 4096}
    points = sorted({point + by for point in edges for by in (-1, 0, 1) if 0 <= point + by <= size})
    randomness = random.Random(f"ranges {size}")
    some = [(start, end) for start in points for end in points if start <= end]
    more = [sorted((randomness.randint(0, size), randomness.randint(0, size))) for _ in range(30)]
    return randomness.sample(some, min(len(some), 60)) + [(start, end) for start, end in more]


@pytest.mark.parametrize("name", BLOBS)
@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_every_range_comes_back_before_and_after_settling(store: Store, name: str, algorithm: str) -> None:
    data, settled = BLOBS[name]
    digest = push(store, data, algorithm=algorithm)
    assert digest == Digest.of(data, algorithm)
    first = ContentKind.SPOOL if len(data) > EXTENT_SIZE else ContentKind.OBJECT
    for content in (first, settled):
        record = store.blobs.stat(digest)
        assert (record.content, record.size) == (content, len(data))
        assert read(store, digest) == data
        for start, end in ranges(len(data)):
            assert read(store, digest, start, end) == data[start:end], (start, end)
        ingest_all(store)
    assert list((store.data / "spool").iterdir()) == []
    assert list(store.uploads.iterdir()) == []


@pytest.mark.parametrize("name", ["many extents", "large tar", "large gzip"])
def test_pieces_are_of_bounded_size(store: Store, name: str) -> None:
    digest = push(store, BLOBS[name][0])
    for _ in range(2):
        assert max(map(len, store.blobs.read(digest))) <= 2 << 20
        ingest_all(store)


@pytest.mark.parametrize(("start", "end"), [(-1, 1), (2, 1), (0, 101), (101, 101), (101, None)])
def test_a_range_outside_is_refused(store: Store, start: int, end: int | None) -> None:
    digest = push(store, noise(100))
    with pytest.raises(RangeInvalidError):
        store.blobs.read(digest, start, end)


def test_an_unknown_blob_is_unknown(store: Store) -> None:
    digest = Digest.of(b"none")
    assert not store.blobs.exists(digest)
    for ask in (store.blobs.stat, store.blobs.read):
        with pytest.raises(BlobUnknownError, match=str(digest)):
            ask(digest)


# -- admitting -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1000, 500_000])
def test_admitting_again_changes_nothing(store: Store, size: int) -> None:
    digest = push(store, noise(size))
    before = store.blobs.stat(digest)
    assert push(store, noise(size), repository="other") == digest
    assert store.blobs.stat(digest) == before
    with store.env.read() as txn:
        assert store.registry.holders(txn, digest) == ["other", REPOSITORY]
        assert store.jobs.count(txn) == 1
    ingest_all(store)
    push(store, noise(size))
    assert store.blobs.stat(digest).state is LayerState.UNMOUNTABLE
    assert list(store.uploads.iterdir()) == []


@pytest.mark.parametrize("size", [1000, 500_000])
def test_a_blob_over_the_quota_leaves_nothing(data: Path, size: int) -> None:
    with Store.open(data, quota_bytes=100) as store:
        path = store.uploads / "upload"
        path.write_bytes(noise(size))
        sums = sum_file(path, "sha256").sums()
        with pytest.raises(StoreFullError, match="quota is 100"):
            store.blobs.admit(path, sums, lambda _: pytest.fail("linked"))
        assert path.read_bytes() == noise(size)
        _assert_nothing_kept(store, sums.digest)


@pytest.mark.parametrize("size", [1000, 500_000])
def test_what_fails_in_the_transaction_leaves_the_upload_and_nothing_else(store: Store, size: int) -> None:
    """As a disk does that is full when the transaction is committed, after the file was moved."""
    path = store.uploads / "upload"
    path.write_bytes(noise(size))
    sums = sum_file(path, "sha256").sums()

    def fail(_: object) -> None:
        raise StoreFullError("the disk, says the test")

    with pytest.raises(StoreFullError, match="says the test"):
        store.blobs.admit(path, sums, fail)
    assert path.read_bytes() == noise(size)
    _assert_nothing_kept(store, sums.digest)
    store.blobs.admit(path, sums, store.registry.linker(REPOSITORY, sums.digest))
    assert read(store, sums.digest) == noise(size)


def test_a_small_upload_that_is_read_back_as_other_bytes_is_not_kept(store: Store) -> None:
    """It is stored from its file, which was hashed on its way in: a disk may give other bytes back."""
    path = store.uploads / "upload"
    path.write_bytes(noise(1000))
    sums = sum_file(path, "sha256").sums()
    path.write_bytes(noise(1000, "other"))
    with pytest.raises(CorruptError, match="what was uploaded"):
        store.blobs.admit(path, sums, lambda _: pytest.fail("linked"))
    assert path.exists()
    _assert_nothing_kept(store, sums.digest)


@pytest.mark.parametrize("call", ["fsync", "rename"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_disk_that_refuses_is_a_full_store(
    store: Store, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    path = store.uploads / "upload"
    path.write_bytes(noise(500_000))
    sums = sum_file(path, "sha256").sums()
    with monkeypatch.context() as patched:
        patched.setattr(os if call == "fsync" else Path, call, _refusing(number))
        with pytest.raises(StoreFullError, match=os.strerror(number)):
            store.blobs.admit(path, sums, store.registry.linker(REPOSITORY, sums.digest))
    assert path.read_bytes() == noise(500_000)
    _assert_nothing_kept(store, sums.digest)


def _refusing(number: int) -> Callable[..., None]:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return refuse


def _assert_nothing_kept(store: Store, digest: Digest) -> None:
    assert not store.blobs.exists(digest)
    assert list((store.data / "spool").iterdir()) == []
    with store.env.read() as txn:
        for table in (Table.EXTENTS, Table.FRAMES, Table.OBJECTS, Table.JOBS, Table.LINKS):
            assert txn.count(table) == 0, table


def test_pushing_a_blob_again_mends_a_spool_file_that_the_disk_cannot_read(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one whose sectors have gone bad: whoever only reads is told to come again, and who brings it is heard."""
    content = noise(500_000)
    digest = push(store, content)
    bad = store.blobs.spool_path(digest).stat().st_ino
    pread = os.pread

    def read_disk(fd: int, size: int, offset: int) -> bytes:
        if os.fstat(fd).st_ino == bad and offset >= EXTENT_SIZE:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return pread(fd, size, offset)

    monkeypatch.setattr(os, "pread", read_disk)
    with pytest.raises(BusyError, match="reading the spool failed"):
        read(store, digest)
    with store.blobs.spool_path(digest).open("rb"):  # held, so that its number is not given to the new file
        assert push(store, content) == digest
        assert read(store, digest) == content
        ingest_all(store)
        assert read(store, digest) == content


def test_admitting_wakes_the_maintenance(store: Store) -> None:
    woken: list[int] = []
    store.blobs.on_job = lambda: woken.append(1)
    push(store, noise(1000))
    push(store, noise(500_000))
    assert len(woken) == 2


@pytest.mark.parametrize("again", ["sha512", "sha256"])
@pytest.mark.parametrize("size", [1000, 500_000])
def test_pushing_a_damaged_extent_again_mends_it(data: Path, size: int, again: str) -> None:
    """The same bytes, as another blob or the same one, must not be taken for stored where they are damaged."""
    from tests.faults import flip_record, records

    content = noise(size)
    with Store.open(data) as store:
        push(store, content, algorithm="sha256")
        ingest_all(store)
    flip_record(data, records(data, Table.FRAMES)[0], 500)
    with Store.open(data) as store:
        with pytest.raises(CorruptError):
            read(store, Digest.of(content))
        push(store, content, algorithm=again)
        ingest_all(store)
        assert read(store, Digest.of(content, again)) == content
        assert read(store, Digest.of(content)) == content


# -- settling while someone reads -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["many extents", "large tar", "large gzip"])
def test_a_read_that_began_goes_on_while_the_blob_is_settled(store: Store, name: str) -> None:
    data, _ = BLOBS[name]
    digest = push(store, data)
    pieces = store.blobs.read(digest)
    got = next(pieces)
    ingest_all(store)
    assert not store.blobs.spool_path(digest).exists()
    assert got + b"".join(pieces) == data


@pytest.mark.parametrize("name", ["many extents", "large tar", "large gzip"])
def test_a_record_that_is_outdated_when_the_file_is_opened_is_read_again(store: Store, name: str) -> None:
    """`read` looks at the record at once, and opens the file when the first piece is asked for."""
    data, _ = BLOBS[name]
    digest = push(store, data)
    pieces = store.blobs.read(digest, 10, len(data) - 10)
    ingest_all(store)
    assert b"".join(pieces) == data[10:-10]


def test_a_blob_that_is_removed_and_pushed_again_meanwhile_is_read(store: Store) -> None:
    data = noise(400_000)
    digest = push(store, data)
    pieces = store.blobs.read(digest)
    spool = store.blobs.spool_path(digest)
    aside = spool.rename(spool.with_name("aside"))
    real_stat = store.blobs.stat

    def stat_after_second_push(wanted: Digest) -> object:
        store.registry.delete_blob(REPOSITORY, digest)
        push(store, data)
        return real_stat(wanted)

    store.blobs.stat = stat_after_second_push  # type: ignore[method-assign, assignment]
    assert b"".join(pieces) == data
    aside.unlink()


def test_a_missing_spool_file_is_corrupt(store: Store) -> None:
    digest = push(store, noise(400_000))
    store.blobs.spool_path(digest).unlink()
    with pytest.raises(CorruptError, match=digest.hex):
        read(store, digest)


@pytest.mark.parametrize("change", ["flip", "cut", "grow"])
def test_a_changed_spool_file_is_never_served(store: Store, change: str) -> None:
    data = noise(400_000)
    digest = push(store, data)
    path = store.blobs.spool_path(digest)
    changed = {"flip": data[:200_000] + b"?" + data[200_001:], "cut": data[:200_000], "grow": data + b"more"}[change]
    path.write_bytes(changed)
    got: list[bytes] = []
    if change == "grow":  # what was pushed is there, and no more is read
        got.extend(store.blobs.read(digest))
        assert b"".join(got) == data
    else:
        with pytest.raises(CorruptError, match="corrupt extent"):
            got.extend(store.blobs.read(digest))
        assert data.startswith(b"".join(got))


def test_reading_while_settling_and_removing(store: Store) -> None:
    """Readers at full speed beside everything that moves a blob: the right bytes, or that it is unknown."""
    data = LARGE_TAR
    digest = push(store, data)
    done = threading.Event()
    failures: list[str] = []

    def read_on() -> None:
        while not done.is_set():
            try:
                if read(store, digest) != data:
                    failures.append("wrong bytes")
            except BlobUnknownError:
                continue
            except PagepoolError as error:
                failures.append(repr(error))

    threads = [threading.Thread(target=read_on) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(12):
        ingest_all(store)
        store.registry.delete_blob(REPOSITORY, digest)
        push(store, data)
    done.set()
    for thread in threads:
        thread.join()
    assert failures == []


# -- the spool -----------------------------------------------------------------------------------------------


def test_the_sweep_takes_only_what_no_record_refers_to(store: Store) -> None:
    kept = push(store, noise(400_000))
    settled = push(store, noise(300_000))
    unknown = Digest.of(b"unknown")
    store.blobs.spool_path(unknown).write_bytes(b"left by a crash")
    ingest_all(store)
    again = push(store, noise(200_000))
    store.blobs.spool_path(settled).write_bytes(b"left by a crash")
    assert store.blobs.sweep_spool() == 2
    assert [path.name for path in (store.data / "spool").iterdir()] == [store.blobs.spool_path(again).name]
    for digest, size in ((kept, 400_000), (settled, 300_000), (again, 200_000)):
        assert read(store, digest) == noise(size)


def test_the_sweep_leaves_what_is_not_ours(store: Store) -> None:
    """A spool on a file system of its own has a lost+found."""
    (store.data / "spool" / "lost+found").mkdir()
    (store.data / "spool" / "notes.txt").write_text("of the administrator")
    assert store.blobs.sweep_spool() == 0
    assert len(list((store.data / "spool").iterdir())) == 2


def test_the_sweep_goes_on_behind_a_damaged_record(data: Path) -> None:
    from tests.faults import flip_record, records

    with Store.open(data) as store:
        digest = push(store, noise(400_000))
        store.blobs.spool_path(Digest.of(b"unknown")).write_bytes(b"left by a crash")
    flip_record(data, records(data, Table.BLOBS)[0], 5)
    with Store.open(data) as store:
        assert store.blobs.sweep_spool() == 1
        assert store.blobs.spool_path(digest).exists()


def test_removing_a_blob_removes_its_file_and_open_readers_keep_it(store: Store) -> None:
    digest = push(store, noise(400_000))
    pieces = store.blobs.read(digest)
    got = next(pieces)
    store.registry.delete_blob(REPOSITORY, digest)
    assert not store.blobs.spool_path(digest).exists()
    assert got + b"".join(pieces) == noise(400_000)
    with pytest.raises(BlobUnknownError):
        read(store, digest)
    assert ingest_all(store) == 1  # the job finds no blob, and is done
    with store.env.read() as txn:
        assert store.jobs.count(txn) == 0


# -- sums ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, EXTENT_SIZE - 1, EXTENT_SIZE, EXTENT_SIZE + 1, 3 * EXTENT_SIZE, 1_000_000])
@pytest.mark.parametrize("step", [1 << 16, EXTENT_SIZE, 100_003, 1 << 20])
def test_sums_do_not_depend_on_the_pieces(size: int, step: int) -> None:
    import hashlib

    from blake3 import blake3

    data = noise(size)
    summer = Summer()
    for start in range(0, size, step):
        summer.update(data[start : start + step])
    sums = summer.sums()
    assert (sums.size, sums.digest.raw, sums.object) == (size, hashlib.sha256(data).digest(), blake3(data).digest())
    pieces = [data[start : start + EXTENT_SIZE] for start in range(0, size, EXTENT_SIZE)]
    assert list(sums.extents) == [blake3(piece).digest() for piece in pieces]
    assert summer.sums() == sums
