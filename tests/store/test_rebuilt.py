"""The cache of blobs that were made again: made once for all who ask, never believed, bounded."""

from __future__ import annotations

import errno
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pagepool.digest import Digest, blake3_raw
from pagepool.errors import BusyError, CorruptError
from pagepool.extents import EXTENT_SIZE
from pagepool_service.store import rebuilt
from pagepool_service.store.rebuilt import RebuiltBlob, RebuiltCache
from pagepool_service.store.schema import ObjectRecord
from tests.store.helpers import noise

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SIZE = 10 * EXTENT_SIZE + 77


class Blob:
    """A blob that can be made, and how often that was begun.

    Args:
        gate: what making it waits for before each extent.
    """

    def __init__(self, number: int = 0, size: int = SIZE, gate: Callable[[int], object] = lambda _: None) -> None:
        self.data = noise(size, number)
        self.digest = Digest.of(self.data)
        pieces = [self.data[at : at + EXTENT_SIZE] for at in range(0, size, EXTENT_SIZE)]
        self.pieces = pieces
        self.extents = ObjectRecord(size, tuple((1, blake3_raw(piece)) for piece in pieces))
        self.begun = 0
        self.gate = gate
        self._lock = threading.Lock()

    def make(self, look: Callable[[], None]) -> Iterator[bytes]:
        with self._lock:
            self.begun += 1
        for number, piece in enumerate(self.pieces):
            self.gate(number)
            look()
            yield piece

    @property
    def remade(self) -> RebuiltBlob:
        return RebuiltBlob(self.digest, self.extents, self.make)

    def read(self, cache: RebuiltCache, start: int = 0, end: int | None = None) -> bytes:
        """What the cache gives; on return nothing is being made any more."""
        data = b"".join(cache.read(self.remade, start, SIZE if end is None else end))
        for thread in list(cache._threads):
            thread.join(60)
        return data

    def path(self, directory: Path) -> Path:
        return directory / f"sha256-{self.digest.hex}"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "rebuilt"


@pytest.fixture
def cache(directory: Path) -> Iterator[RebuiltCache]:
    made = RebuiltCache(directory)
    made.limit = 100 << 20
    yield made
    made.close()


def test_what_was_made_is_not_made_again(cache: RebuiltCache, directory: Path) -> None:
    blob = Blob()
    for start, end in ((0, SIZE), (0, 1), (SIZE - 1, SIZE), (EXTENT_SIZE - 1, EXTENT_SIZE + 1), (5, SIZE - 5), (7, 7)):
        assert blob.read(cache, start, end) == blob.data[start:end]
    assert blob.begun == 1
    assert [path.name for path in directory.iterdir()] == [f"sha256-{blob.digest.hex}"]
    assert cache.used() == SIZE
    other = RebuiltCache(directory)  # another process, or the next start
    other.limit = 100 << 20
    assert blob.read(other) == blob.data
    assert blob.begun == 1
    cache.forget(blob.digest)
    assert list(directory.iterdir()) == []


def test_many_who_ask_at_once_wait_for_one(cache: RebuiltCache) -> None:
    """And have what is there already before the rest is made."""
    go_on = threading.Event()
    blob = Blob(gate=lambda number: number < 3 or go_on.wait(60))
    first = cache.read(blob.remade, 0, SIZE)
    assert [next(first) for _ in range(3)] == blob.pieces[:3]
    with ThreadPoolExecutor(8) as pool:
        others = [pool.submit(blob.read, cache, 1000 * number) for number in range(8)]
        go_on.set()
        assert [other.result(60) for other in others] == [blob.data[1000 * number :] for number in range(8)]
    assert b"".join(first) == b"".join(blob.pieces[3:])
    assert blob.begun == 1


def test_other_processes_wait_for_the_one_that_makes_it(cache: RebuiltCache, directory: Path) -> None:
    """They could make it only wrong: their `make` is not called."""
    go_on = threading.Event()
    blob = Blob(gate=lambda number: number < 2 or go_on.wait(60))
    ours = cache.read(blob.remade, 0, SIZE)
    next(ours)
    pids = [_fork(lambda: _read_only(directory, blob)) for _ in range(3)]
    go_on.set()
    assert b"".join(ours) == b"".join(blob.pieces[1:])
    assert [_wait(pid) for pid in pids] == [0, 0, 0]


def test_when_the_one_that_makes_it_is_killed_another_goes_on(cache: RebuiltCache, directory: Path) -> None:
    blob = Blob()
    ready, told = os.pipe()

    def make_half() -> None:
        stuck = Blob(gate=lambda number: number < 5 or (os.write(told, b"x"), threading.Event().wait()))
        _read_only(directory, stuck, may_make=True)

    pid = _fork(make_half)
    assert os.read(ready, 1) == b"x"
    ours = cache.read(blob.remade, 0, SIZE)
    assert [next(ours) for _ in range(5)] == blob.pieces[:5]  # of the other's
    assert blob.begun == 0
    os.kill(pid, signal.SIGKILL)
    assert _wait(pid) == -signal.SIGKILL
    assert b"".join(ours) == b"".join(blob.pieces[5:])
    join(cache)
    assert blob.begun == 1
    assert [path.name for path in directory.iterdir()] == [f"sha256-{blob.digest.hex}"]
    os.close(ready)
    os.close(told)


@pytest.mark.parametrize("place", [0, 3 * EXTENT_SIZE, SIZE - 1])
def test_wrong_bytes_in_a_file_are_never_handed_out(cache: RebuiltCache, directory: Path, place: int) -> None:
    blob = Blob()
    blob.read(cache)
    path = blob.path(directory)
    damaged = bytearray(path.read_bytes())
    damaged[place] ^= 1
    path.write_bytes(damaged)
    assert blob.read(cache) == blob.data
    assert blob.read(cache) == blob.data
    assert path.read_bytes() == blob.data


@pytest.mark.parametrize("size", [0, 1, EXTENT_SIZE, SIZE - 1])
def test_a_file_that_was_cut_short_is_made_again(cache: RebuiltCache, directory: Path, size: int) -> None:
    blob = Blob()
    blob.read(cache)
    os.truncate(blob.path(directory), size)
    assert blob.read(cache) == blob.data
    assert blob.read(cache) == blob.data
    assert blob.path(directory).read_bytes() == blob.data


def test_an_error_reaches_everybody_who_waits(cache: RebuiltCache, directory: Path) -> None:
    def fail(number: int) -> None:
        if number == 4:
            raise CorruptError("extent", "ab" * 32, "it is missing")

    blob = Blob(gate=fail)
    given = bytearray()

    def read() -> None:
        for piece in cache.read(blob.remade, 0, SIZE):
            given.extend(piece)

    with pytest.raises(CorruptError, match="it is missing"):
        read()
    assert blob.data.startswith(given)
    assert list(directory.iterdir()) == []
    with pytest.raises(CorruptError):
        blob.read(cache)  # nor is it stuck
    blob.gate = lambda _: None
    assert blob.read(cache) == blob.data


def test_the_limit_holds_and_the_oldest_go_first(cache: RebuiltCache, directory: Path) -> None:
    cache.limit = 3 * SIZE
    blobs = [Blob(number) for number in range(5)]
    for number, blob in enumerate(blobs):
        assert blob.read(cache) == blob.data
        os.utime(blob.path(directory), (number, number))
        assert cache.used() <= cache.limit
        blobs[0].read(cache)  # asked for again and again
    kept = {path.name for path in directory.iterdir()}
    assert f"sha256-{blobs[0].digest.hex}" in kept
    assert f"sha256-{blobs[1].digest.hex}" not in kept
    assert len(kept) == 3
    assert blobs[0].begun == 1


def test_what_is_larger_than_the_limit_is_not_kept(cache: RebuiltCache, directory: Path) -> None:
    for limit in (0, SIZE - 1):
        cache.limit = limit
        blob = Blob()
        assert blob.read(cache, 10) == blob.data[10:]
        assert not directory.exists()


def test_a_reader_keeps_what_is_evicted(cache: RebuiltCache) -> None:
    cache.limit = SIZE
    first, second = Blob(1), Blob(2)
    first.read(cache)
    pieces = cache.read(first.remade, 0, SIZE)
    next(pieces)
    second.read(cache)
    assert b"".join(pieces) == b"".join(first.pieces[1:])
    assert first.begun == 1


def test_a_full_disk_only_costs_the_keeping(
    cache: RebuiltCache, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real thing, on a small file system, is in tests/fault."""

    def full(_fd: int, _data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(rebuilt, "_write", full)
    blob = Blob()
    assert blob.read(cache) == blob.data
    assert list(directory.iterdir()) == []


def test_what_a_killed_process_left_is_swept(cache: RebuiltCache, directory: Path) -> None:
    blob = Blob()
    blob.read(cache)
    (directory / f"sha256-{'ab' * 32}.part").write_bytes(b"half")
    cache.sweep()
    assert [path.name for path in directory.iterdir()] == [f"sha256-{blob.digest.hex}"]
    cache.limit = 0
    cache.sweep()
    assert list(directory.iterdir()) == []


def test_what_a_killed_process_left_takes_no_room(cache: RebuiltCache, directory: Path) -> None:
    """A worker, while the service goes on: what others make keeps its place."""
    cache.limit = 3 * SIZE
    first, second = Blob(1), Blob(2)
    first.read(cache)
    left = directory / f"sha256-{'ab' * 32}.part"
    left.write_bytes(bytes(3 * SIZE))
    second.read(cache)
    assert not left.exists()
    assert {path.name for path in directory.iterdir()} == {first.path(directory).name, second.path(directory).name}


def test_what_is_removed_while_it_is_made_is_not_kept(cache: RebuiltCache, directory: Path) -> None:
    """Who reads it already has all of it."""
    go_on = threading.Event()
    blob = Blob(gate=lambda number: number < 3 or go_on.wait(60))
    reader = cache.read(blob.remade, 0, SIZE)
    assert next(reader) == blob.pieces[0]
    cache.forget(blob.digest)
    go_on.set()
    for thread in list(cache._threads):
        thread.join(60)
    assert list(directory.iterdir()) == []
    assert b"".join(reader) == b"".join(blob.pieces[1:])
    assert list(directory.iterdir()) == []


def test_who_may_not_wait_is_given_nothing_for_now(cache: RebuiltCache, directory: Path) -> None:
    """Until there is more: made here, or by another process."""
    go_on = threading.Event()
    blob = Blob(gate=lambda number: number < 2 or go_on.wait(60))
    for own in (cache, RebuiltCache(directory)):
        own.limit = 100 << 20
        pieces = own.read(blob.remade, SIZE - 1, SIZE, wait=False)
        assert [next(pieces) for _ in range(3)] == [b""] * 3
        pieces.close()
    pieces = cache.read(blob.remade, 0, SIZE, wait=False)
    go_on.set()
    assert b"".join(pieces) == blob.data
    assert blob.begun == 1


def test_few_are_made_at_a_time_and_those_asked_for_first(cache: RebuiltCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many are asked for: nothing is held for those that wait, and one that nobody asks for is not made."""
    go_on = threading.Event()
    blobs = [Blob(number, gate=lambda _: go_on.wait(60)) for number in range(8)]
    readers = [cache.read(blob.remade, 0, SIZE, wait=False) for blob in blobs]
    assert [next(reader) for reader in readers] == [b""] * 8
    assert len(cache._threads) == 2
    readers[2].close()
    monkeypatch.setattr(rebuilt, "_ASKING_S", 0.0)
    next(readers[7])
    monkeypatch.setattr(rebuilt, "_ASKING_S", 60.0)
    for reader in (*readers[3:7], readers[7]):
        assert next(reader) == b""
    go_on.set()
    for reader in (*readers[:2], *readers[3:]):
        assert len(b"".join(reader)) == SIZE
    assert [blob.begun for blob in blobs] == [1, 1, 0, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("wait", [True, False])
def test_what_is_not_kept_is_made_for_few_at_a_time(cache: RebuiltCache, wait: bool) -> None:
    cache.limit = 0
    blob = Blob()
    some = [cache.read(blob.remade, 0, SIZE) for _ in range(2)]
    assert [next(reader) for reader in some] == blob.pieces[:1] * 2
    with ThreadPoolExecutor(1) as pool:
        another = cache.read(blob.remade, 0, SIZE, wait=wait)
        if not wait:
            assert next(another) == b""
        rest = pool.submit(b"".join, another)
        assert b"".join(some[0]) == b"".join(blob.pieces[1:])
        assert rest.result(60) == blob.data
    some[1].close()
    assert blob.begun == 3
    assert blob.read(cache) == blob.data


def test_who_may_not_wait_is_given_nothing_of_what_lies_before(cache: RebuiltCache) -> None:
    """So it can be noticed that he left."""
    cache.limit = 0
    blob = Blob()
    pieces = cache.read(blob.remade, 5 * EXTENT_SIZE, SIZE, wait=False)
    assert [next(pieces) for _ in range(6)] == [b""] * 5 + blob.pieces[5:6]
    pieces.close()
    pieces = cache.read(blob.remade, 5 * EXTENT_SIZE, SIZE)
    assert next(pieces) == blob.pieces[5]
    pieces.close()


def test_the_limit_holds_when_several_are_made_at_a_time(cache: RebuiltCache) -> None:
    cache.limit = SIZE + 1
    go_on = threading.Event()
    blobs = [Blob(number, gate=lambda _: go_on.wait(60)) for number in range(2)]
    readers = [cache.read(blob.remade, 0, SIZE, wait=False) for blob in blobs]
    assert [next(reader) for reader in readers] == [b""] * 2
    go_on.set()
    assert [b"".join(reader) for reader in readers] == [blob.data for blob in blobs]
    for thread in list(cache._threads):
        thread.join(60)
    assert cache.used() <= cache.limit


def test_after_closing_nothing_is_begun(cache: RebuiltCache, directory: Path) -> None:
    cache.close()
    blob = Blob()
    with pytest.raises(BusyError):
        blob.read(cache)
    assert blob.begun == 0
    assert not directory.exists()


def test_an_encoder_that_has_made_nothing_yet_does_not_keep_it_open(cache: RebuiltCache) -> None:
    """One that takes in zeros by the gigabyte says little."""
    begun = threading.Event()

    def nothing(look: Callable[[], None]) -> Iterator[bytes]:
        while True:
            begun.set()
            look()
        yield b""

    reader = cache.read(replace(Blob().remade, make=nothing), 0, 1)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(next, reader)
        assert begun.wait(60)
        cache.close()
        with pytest.raises(BusyError):
            waiting.result(60)


def test_closing_ends_what_is_being_made(directory: Path) -> None:
    cache = RebuiltCache(directory)
    cache.limit = 100 << 20
    go_on = threading.Event()
    blob = Blob(gate=lambda number: number < 2 or go_on.wait(60))
    pieces = cache.read(blob.remade, 0, SIZE)
    next(pieces)
    threading.Timer(0.1, go_on.set).start()
    cache.close()
    assert list(directory.iterdir()) == []
    assert cache._threads == set()


# -- nobody reads it any more ------------------------------------------------------------------------------------


def be_impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody reads is made no further from one piece to the next."""
    for name in ("_READERS_S", "_AWAY_S", "_LINGER_S"):
        monkeypatch.setattr(rebuilt, name, 0.0)


def join(cache: RebuiltCache) -> None:
    for thread in list(cache._threads):
        thread.join(60)
        assert not thread.is_alive()


@pytest.mark.parametrize("wait", [True, False])
def test_what_nobody_reads_any_more_is_made_no_further(
    cache: RebuiltCache, directory: Path, wait: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    blob = Blob(gate=lambda number: number < 3 or go_on.wait(60))
    readers = [cache.read(blob.remade, 0, SIZE, wait=wait) for _ in range(2)]
    for reader in readers:
        assert next(filter(None, reader)) == blob.pieces[0]
    readers[0].close()
    with monkeypatch.context() as soon:
        be_impatient(soon)
        go_on.set()
        assert b"".join(readers[1]) == b"".join(blob.pieces[1:])  # one of them was still there
    join(cache)
    assert blob.begun == 1
    cache.forget(blob.digest)
    go_on.clear()
    reader = cache.read(blob.remade, 0, SIZE, wait=wait)
    assert next(filter(None, reader)) == blob.pieces[0]
    reader.close()
    with monkeypatch.context() as soon:
        be_impatient(soon)
        go_on.set()
        join(cache)
    assert list(directory.iterdir()) == []
    assert blob.read(cache) == blob.data
    assert blob.begun == 3


def test_readers_in_other_processes_count(
    cache: RebuiltCache, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    blob = Blob(gate=lambda number: number < 3 or go_on.wait(60))
    ours = cache.read(blob.remade, 0, SIZE)
    assert next(ours) == blob.pieces[0]
    ready, told = os.pipe()

    def read_on() -> None:
        other = RebuiltCache(directory)
        other.limit = 100 << 20
        pieces = other.read(blob.remade, 0, SIZE)
        data = next(pieces)
        os.write(told, b"x")
        assert data + b"".join(pieces) == blob.data
        assert blob.begun == 1  # by the other process, before this one came to be

    pid = _fork(read_on)
    assert os.read(ready, 1) == b"x"
    ours.close()
    be_impatient(monkeypatch)
    go_on.set()
    assert _wait(pid) == 0
    os.close(ready)
    os.close(told)


def test_who_comes_as_it_is_given_up_has_it_made_again(cache: RebuiltCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """He was not seen when it was decided."""
    be_impatient(monkeypatch)
    seen = iter([True, True, False])
    monkeypatch.setattr(rebuilt, "is_held", lambda _: next(seen, True))
    blob = Blob()
    assert blob.read(cache) == blob.data
    assert blob.begun == 2


def made_without_its_reader(cache: RebuiltCache, directory: Path) -> None:
    """A blob is made to its end, though its only reader leaves in the middle."""
    go_on = threading.Event()
    blob = Blob(gate=lambda number: number < 3 or go_on.wait(60))
    reader = cache.read(blob.remade, 0, SIZE)
    next(reader)
    reader.close()
    go_on.set()
    join(cache)
    assert blob.path(directory).read_bytes() == blob.data


def test_where_readers_cannot_be_seen_it_is_made_to_its_end(
    cache: RebuiltCache, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their locks mean nothing there."""
    be_impatient(monkeypatch)
    monkeypatch.setattr(rebuilt, "can_be_held", lambda *_: False)
    made_without_its_reader(cache, directory)


def test_who_lost_his_connection_finds_it_when_he_comes_back(cache: RebuiltCache, directory: Path) -> None:
    """It is made on for a while."""
    made_without_its_reader(cache, directory)


def test_what_nobody_reads_makes_room_for_what_somebody_waits_for(
    cache: RebuiltCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("_READERS_S", 0.0), ("_AWAY_S", 0.0), ("_LINGER_S", 1e9), ("_AT_ONCE", 1)):
        monkeypatch.setattr(rebuilt, name, value)
    ended = threading.Event()
    endless, wanted = Blob(1, gate=lambda _: ended.wait(0.01)), Blob(2)
    endless.pieces *= 100_000
    reader = cache.read(endless.remade, 0, SIZE, wait=False)
    while next(reader) == b"":
        pass
    assert next(cache.read(wanted.remade, 0, SIZE, wait=False)) == b""
    reader.close()
    assert wanted.read(cache) == wanted.data
    assert (endless.begun, wanted.begun) == (1, 1)


def _read_only(directory: Path, blob: Blob, *, may_make: bool = False) -> None:
    def refuse(_look: Callable[[], None]) -> Iterator[bytes]:
        raise AssertionError("somebody else makes it")

    cache = RebuiltCache(directory)
    cache.limit = 100 << 20
    asked = blob.remade if may_make else replace(blob.remade, make=refuse)
    assert b"".join(cache.read(asked, 0, SIZE)) == blob.data


def _fork(work: Callable[[], None]) -> int:
    pid = os.fork()
    if not pid:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return pid


def _wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
