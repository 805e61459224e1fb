"""Upload sessions: what happens to one when the disk, the process or another request gets in the way."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import httpx
import pytest

from pagepool.digest import Digest
from pagepool.errors import (
    DigestMismatchError,
    LimitError,
    ReadOnlyError,
    StoreFailedError,
    StoreFullError,
    UploadBusyError,
    UploadUnknownError,
)
from pagepool_service.settings import Settings
from pagepool_service.store.clock import Moment, Timeline, note_clock
from pagepool_service.store.store import Store
from pagepool_service.supervisor import prepare
from pagepool_service.uploadfiles import sweep
from pagepool_service.uploads import OpenUpload, Uploads
from tests.service.pushes import begin_upload, finishing, push_blob
from tests.store.helpers import REPOSITORY, noise, push, read
from tests.support.server import running_service

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A store of its own."""
    with Store.open(tmp_path / "data") as opened:
        yield opened


@pytest.fixture
def uploads(store: Store) -> Uploads:
    """The sessions of it."""
    return Uploads(store, max_size=10 << 20)


def test_hash_is_kept_between_requests(store: Store, uploads: Uploads, monkeypatch: pytest.MonkeyPatch) -> None:
    """A blob that came through one process is not read again."""
    session = uploads.begin("a")
    for piece in (b"hello ", b"world"):
        upload = uploads.open("a", session.id)
        upload.write([piece])
        upload.close()
    monkeypatch.setattr("pagepool_service.uploads.sum_file", None)
    upload = uploads.open("a", session.id)
    digest = Digest.of(b"hello world")
    upload.finish(digest, store.registry.linker("a", digest))
    upload.close()
    assert b"".join(store.blobs.read(digest)) == b"hello world"


def test_session_goes_on_in_another_process(store: Store, uploads: Uploads) -> None:
    """Whose hash begins with reading what is there."""
    session = uploads.begin("a")
    upload = uploads.open("a", session.id)
    upload.write([b"hello "])
    upload.close()
    other = Uploads(store, max_size=10 << 20)
    upload = other.open("a", session.id)
    upload.write([b"world"])
    digest = Digest.of(b"hello world")
    upload.finish(digest, store.registry.linker("a", digest))
    upload.close()
    # The first process still has a hash of "hello ", for a session that is gone.
    with pytest.raises(UploadUnknownError):
        uploads.open("a", session.id)


def test_hash_of_another_size_is_not_used(store: Store, uploads: Uploads) -> None:
    """The file grew through another process meanwhile."""
    session = uploads.begin("a")
    other = Uploads(store, max_size=10 << 20)
    for number, part in enumerate((b"one", b"two", b"three")):
        upload = (uploads, other)[number % 2].open("a", session.id)
        upload.write([part])
        upload.close()
    upload = uploads.open("a", session.id)
    digest = Digest.of(b"onetwothree")
    upload.finish(digest, store.registry.linker("a", digest))
    upload.close()


def test_one_writer(store: Store, uploads: Uploads) -> None:
    """Over processes too: the lock is the file's."""
    session = uploads.begin("a")
    upload = uploads.open("a", session.id)
    for manager in (uploads, Uploads(store, max_size=1)):
        with pytest.raises(UploadBusyError):
            manager.open("a", session.id)
    upload.close()
    uploads.open("a", session.id).close()


def test_finished_file_cannot_be_written_to(store: Store, uploads: Uploads) -> None:
    """Not even by who had the right to."""
    session = uploads.begin("a")
    data = os.urandom(200_000)
    upload = uploads.open("a", session.id)
    upload.write([data])
    digest = Digest.of(data)
    upload.finish(digest, store.registry.linker("a", digest))
    upload.close()
    with pytest.raises(UploadUnknownError):
        uploads.open("a", session.id)
    with pytest.raises(UploadUnknownError):
        upload.write([b"more"])
    assert b"".join(store.blobs.read(digest)) == data


def test_file_that_becomes_a_blob_while_it_is_opened_cannot_be_written_to(
    store: Store, uploads: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By who opens it before it is renamed into the spool, and has the lock after that."""
    session = uploads.begin("a")
    data = os.urandom(200_000)
    upload = uploads.open("a", session.id)
    upload.write([data])
    digest = Digest.of(data)
    real = os.open

    def open_before(path: Path, flags: int) -> int:
        monkeypatch.undo()
        descriptor = real(path, flags)
        upload.finish(digest, store.registry.linker("a", digest))
        upload.close()
        return descriptor

    monkeypatch.setattr(os, "open", open_before)
    with pytest.raises(UploadUnknownError):
        uploads.open("a", session.id)
    assert b"".join(store.blobs.read(digest)) == data


def test_mismatch_removes_the_session(store: Store, uploads: Uploads) -> None:
    """And nothing is stored."""
    session = uploads.begin("a")
    upload = uploads.open("a", session.id)
    upload.write([b"x"])
    with pytest.raises(DigestMismatchError):
        upload.finish(Digest.of(b"y"), store.registry.linker("a", Digest.of(b"y")))
    upload.close()
    assert not list(store.uploads.iterdir())
    assert not store.blobs.exists(Digest.of(b"x"))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_disk_that_fills_up(store: Store, uploads: Uploads, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """After a part of a piece was taken: the caller goes back, and can go on when there is room."""
    session = uploads.begin("a")
    upload = uploads.open("a", session.id)
    upload.write([b"before"])
    with monkeypatch.context() as patch:
        real = os.pwrite
        patch.setattr(os, "pwritev", lambda fd, pieces, offset: real(fd, pieces[0][:3], offset))

        def refuse(*_: object) -> int:
            raise OSError(number, os.strerror(number))

        patch.setattr(os, "pwrite", refuse)
        with pytest.raises(StoreFullError):
            upload.write([b"lost", b"bytes"])
    upload.truncate(6)
    upload.write([b" and after"])
    digest = Digest.of(b"before and after")
    upload.finish(digest, store.registry.linker("a", digest))
    upload.close()
    assert b"".join(store.blobs.read(digest)) == b"before and after"


def test_short_writes_are_completed(store: Store, uploads: Uploads, monkeypatch: pytest.MonkeyPatch) -> None:
    """Byte by byte if it must be."""
    real = os.pwrite
    monkeypatch.setattr(os, "pwritev", lambda fd, pieces, offset: real(fd, pieces[0][:1], offset))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, bytes(data)[:2], offset))
    session = uploads.begin("a")
    upload = uploads.open("a", session.id)
    upload.write([b"hello", b" ", b"world"])
    upload.close()
    assert (store.uploads / session.id).read_bytes() == b"hello world"


def test_what_could_not_be_synced_is_not_synced_again(
    store: Store, uploads: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel says once that it dropped what it could not write; whoever asks again is told that all is well."""
    data = os.urandom(300_000)
    digest = Digest.of(data)
    session = uploads.begin("a")
    upload = uploads.open("a", session.id)
    upload.write([data])

    def fail(_descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(StoreFailedError, match="disk under the store fails"):
            upload.finish(digest, store.registry.linker("a", digest))
    upload.close()
    with pytest.raises(UploadUnknownError):
        uploads.open("a", session.id)
    assert not store.blobs.exists(digest)
    assert list(store.uploads.iterdir()) == []


def test_what_the_repository_has_is_only_hashed(store: Store, uploads: Uploads) -> None:
    """All of it: where a part has come before it was said what it is, the rest is written behind that."""
    digest = push(store, b"hello world", repository="a")

    def begin(repository: str, *before: bytes) -> OpenUpload:
        upload = uploads.open(repository, uploads.begin(repository).id)
        for piece in before:
            upload.write([piece])
        return upload

    empty, begun, wrong, elsewhere = begin("a"), begin("a", b"hello "), begin("a"), begin("b")
    asked = [upload.keep_nothing(digest) for upload in (empty, begun, wrong, elsewhere)]
    assert asked == [True, False, True, False]
    for upload, piece in ((empty, b"hello world"), (begun, b"world"), (wrong, b"hello"), (elsewhere, b"hello world")):
        upload.write([piece])
    sizes = {path.stat().st_size for path in store.uploads.iterdir() if path.suffix != ".json"}
    assert sizes == {0, len(b"hello world")}
    with pytest.raises(DigestMismatchError):
        wrong.finish(digest, store.registry.linker("a", digest))
    for upload, repository in ((empty, "a"), (begun, "a"), (elsewhere, "b")):
        upload.finish(digest, store.registry.linker(repository, digest))
    for upload in (empty, begun, wrong, elsewhere):
        upload.close()
    assert list(store.uploads.iterdir()) == []
    assert read(store, digest) == b"hello world"


def test_limit(uploads: Uploads) -> None:
    """Is of the whole blob, not of a piece; nothing of the piece too many is written."""
    session = uploads.begin("a")
    upload = uploads.open("a", session.id)
    piece = bytes(1 << 20)
    for _ in range(10):
        upload.write([piece])
    with pytest.raises(LimitError):
        upload.write([b"x"])
    assert upload.size == 10 << 20
    upload.close()


def test_closing_waits_for_a_write(uploads: Uploads, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the descriptor could be another file's by then."""
    session = uploads.begin("a")
    upload = uploads.open("a", session.id)
    writing, go_on = threading.Event(), threading.Event()
    real = os.pwritev

    def slow(fd: int, pieces: list[bytes], offset: int) -> int:
        writing.set()
        go_on.wait(60)
        return real(fd, pieces, offset)

    monkeypatch.setattr(os, "pwritev", slow)
    writer = threading.Thread(target=upload.write, args=([b"0123456789"],))
    writer.start()
    writing.wait(60)
    closer = threading.Thread(target=upload.close, args=(0,))
    closer.start()
    go_on.set()
    writer.join(60)
    closer.join(60)
    assert uploads.size("a", session.id) == 0


def test_going_back_does_not_cut_what_has_become_the_file_of_a_blob(store: Store, uploads: Uploads) -> None:
    """The blob was stored, and not to be read; its new file had its place when the transaction failed."""
    content = noise(500_000)
    digest = push(store, content)
    path = store.blobs.spool_path(digest)
    path.write_bytes(bytes(len(content)))
    session = uploads.begin(REPOSITORY)
    upload = uploads.open(REPOSITORY, session.id)
    upload.write([content])

    def fail(_: object) -> None:
        raise StoreFullError("the disk, says the test")

    with pytest.raises(StoreFullError, match="says the test"):
        upload.finish(digest, fail)
    upload.truncate(0)  # as the route does: the last bytes came with the request that failed
    upload.close(0)
    assert read(store, digest) == content


def test_sweep_leaves_what_is_being_written_to(store: Store, uploads: Uploads) -> None:
    """Though it looks old."""
    sessions = [uploads.begin("a") for _ in range(2)]
    held = uploads.open("a", sessions[0].id)
    for path in store.uploads.iterdir():
        os.utime(path, (0, 0))
    assert sweep(store.uploads, 10) == 1
    held.close()
    assert uploads.size("a", sessions[0].id) == 0
    with pytest.raises(UploadUnknownError):
        uploads.size("a", sessions[1].id)
    assert sweep(store.uploads / "nowhere", 10) == 0


@pytest.mark.parametrize("years", [10, -10])
def test_none_is_idle_because_the_clock_was_set(store: Store, uploads: Uploads, years: int) -> None:
    uploads.begin("a")
    before = Moment.now()
    after = replace(before, wall_ns=before.wall_ns + years * 365 * 86400 * 10**9)
    timeline = Timeline(before).at(after)
    assert sweep(store.uploads, 60, timeline) == 0
    if years > 0:
        later = timeline.at(after.at(after.wall_ns + 70 * 10**9))
        assert sweep(store.uploads, 60, later) == 1


def test_nor_because_the_service_starts_again_after_that(tmp_path: Path) -> None:
    """The store has noted what passed; only then is the clock believed."""
    two_days = 2 * 86400
    now = Moment.now()
    before = replace(now, wall_ns=now.wall_ns - two_days * 10**9)  # as it was a moment ago
    with Store.open(tmp_path) as store:
        with store.env.write() as txn:
            note_clock(txn, before)
        session = Uploads(store, max_size=1 << 20).begin("a")
        for path in store.uploads.iterdir():
            os.utime(path, (before.wall_ns / 1e9, before.wall_ns / 1e9))
    settings = Settings(tmp_path, upload_idle_s=3600)
    timeline = prepare(settings)
    assert (tmp_path / "uploads" / session.id).exists()
    assert sweep(tmp_path / "uploads", 3600, timeline.at(Moment.now())) == 0
    os.utime(tmp_path / "uploads" / session.id, (before.wall_ns / 1e9 - 7200, before.wall_ns / 1e9 - 7200))
    prepare(settings)
    assert not (tmp_path / "uploads" / session.id).exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"repository": "a"}', "\0"])
def test_damaged_record_is_an_unknown_session(store: Store, uploads: Uploads, text: str) -> None:
    """A crash may leave one."""
    session = uploads.begin("a")
    (store.uploads / f"{session.id}.json").write_text(text)
    with pytest.raises(UploadUnknownError):
        uploads.size("a", session.id)


def test_record_without_a_file_is_an_unknown_session(store: Store, uploads: Uploads) -> None:
    """A crash may leave that, too: the record is written first."""
    session = uploads.begin("a")
    (store.uploads / session.id).unlink()
    for ask in (uploads.size, uploads.open, uploads.cancel):
        with pytest.raises(UploadUnknownError):
            ask("a", session.id)


def test_read_only_store(tmp_path: Path, store: Store) -> None:
    """Takes no sessions."""
    store.close()
    with Store.open(tmp_path / "data", readonly=True) as opened:
        uploads = Uploads(opened, max_size=1)
        with pytest.raises(ReadOnlyError):
            uploads.begin("a")
        with pytest.raises(ReadOnlyError):
            uploads.open("a", "x")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 MiB; or skips."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small file system")
    directory = tmp_path / "small"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", directory], check=True)
    yield directory
    subprocess.run(["umount", directory], check=True)


def test_full_disk(small_disk: Path) -> None:
    """Every way of pushing answers 507 and keeps nothing; what was stored is still there; then there is room again."""
    with (
        running_service(small_disk / "data", "--workers", "2") as service,
        httpx.Client(base_url=service.url) as http,
    ):
        kept = push_blob(http, "disk", os.urandom(300_000))
        large = os.urandom(40 << 20)
        location = begin_upload(http, "disk")
        digest = Digest.of(large)
        for answer in (
            http.patch(location, content=large),
            http.patch(location, content=iter([large])),
            http.put(finishing(location, digest), content=large),
            http.post("/v2/disk/blobs/uploads/", params={"digest": str(digest)}, content=large),
        ):
            assert (answer.status_code, answer.json()["errors"][0]["code"]) == (507, "STORE_FULL")
        assert http.get(location).headers["range"] == "0-0"
        assert Digest.of(http.get(f"/v2/disk/blobs/{kept}").content) == kept
        assert http.put(finishing(location, Digest.of(b"small")), content=b"small").status_code == 201
