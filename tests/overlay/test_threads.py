"""Several threads in one overlay."""

from __future__ import annotations

import random
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

from pagepool.image import Kind
from pagepool.overlay import journal as journals
from pagepool.overlay import storage
from pagepool.vfs import Changes, MutableRootfs
from tests.overlay.harness import PAGE
from tests.overlay.test_operations import make

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from pagepool.overlay import OverlayFileSystem
    from pagepool.overlay.journal import Journal


class Worker:
    """Changes files in a directory of its own, and knows what must be in them."""

    def __init__(self, overlay: OverlayFileSystem, number: int) -> None:
        self.directory = make(overlay, b"dir%d" % number, Kind.DIRECTORY)
        self.files: dict[bytes, bytes] = {}
        self._overlay = overlay
        self._source = random.Random(number)

    def work(self) -> None:
        """Make, write and remove files."""
        for step in range(400):
            name = b"%d" % self._source.randrange(20)
            if name in self.files and step % 3 == 0:
                self._overlay.unlink(self.directory, name)
                del self.files[name]
                continue
            if name not in self.files:
                make(self._overlay, name, parent=self.directory)
                self.files[name] = b""
            data = self._source.randbytes(self._source.randrange(3 * PAGE))
            self._overlay.write(self._overlay.lookup(self.directory, name), 0, data)
            self.files[name] = data + self.files[name][len(data) :]

    def check(self, overlay: OverlayFileSystem) -> None:
        """All of it is there."""
        entries = overlay.entries(self.directory)
        assert {entry.name: bytes(overlay.read(entry.ino, 0, 4 * PAGE)) for entry in entries} == self.files


def run(*functions: Callable[[], None]) -> None:
    """Run functions in threads; what any of them raises is raised."""
    failures: list[BaseException] = []

    def guarded(function: Callable[[], None]) -> None:
        try:
            function()
        except BaseException as error:  # noqa: BLE001 (raised below)
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def test_threads_that_change_and_sync(opened: Callable[..., OverlayFileSystem]) -> None:
    """Beside one that syncs and compacts all the time."""
    overlay = opened()
    workers = [Worker(overlay, number) for number in range(3)]
    ended: list[Worker] = []

    def work(worker: Worker) -> None:
        try:
            worker.work()
        finally:
            ended.append(worker)

    def tend() -> None:
        while len(ended) < len(workers):
            overlay.sync()
            overlay._storage.compact()

    run(*(partial(work, worker) for worker in workers), tend)
    for worker in workers:
        worker.check(overlay)
    overlay.close()
    overlay = opened()
    for worker in workers:
        worker.check(overlay)


def test_a_journal_that_several_find_too_large_is_compacted_once(
    overlay: OverlayFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody else can do anything meanwhile."""
    root = MutableRootfs(overlay)
    together, compact = threading.Barrier(4), overlay._storage.compact
    compacted: list[None] = []

    def compact_together(**given: bool) -> None:
        together.wait(60)
        compact(**given)

    def write_journal(*arguments: Any) -> Journal:
        compacted.append(None)
        return journals.write_journal(*arguments)

    monkeypatch.setattr(overlay._storage, "compact", compact_together)
    monkeypatch.setattr(storage, "write_journal", write_journal)
    overlay._storage.compact_at = 0
    run(*(partial(root.mkdir, b"/%d" % number) for number in range(4)))
    assert len(compacted) == 1


def test_appending_at_once(overlay: OverlayFileSystem) -> None:
    """By several open files: nobody writes over what another one appended."""
    line, times = 100, 300
    root = MutableRootfs(overlay)

    def append(letter: bytes) -> None:
        with root.open("/log", "ab", buffering=0) as file:
            for _ in range(times):
                assert file.write(letter * line) == line
                assert file.tell() <= file.size

    run(*(partial(append, letter) for letter in (b"a", b"b", b"c")))
    found = root.read_bytes("/log")
    lines = [found[at : at + line] for at in range(0, len(found), line)]
    assert sorted(lines) == [letter * line for letter in (b"a", b"b", b"c") for _ in range(times)]


def test_a_read_that_is_overtaken(overlay: OverlayFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at the table and the read, the block is written anew, and its old slot is another file's."""
    ino, other = make(overlay), make(overlay, b"other")
    overlay.write(ino, 0, b"a" * PAGE)
    arena, read = overlay._storage.arena, overlay._storage.arena.read
    slots = []

    def overtaken(slot: int, start: int, size: int) -> bytes:
        slots.append(slot)
        if len(slots) == 1:
            overlay.write(ino, 0, b"b" * PAGE)
            overlay.write(other, 0, b"c" * PAGE)
            assert read(slot, 0, PAGE) == b"c" * PAGE
        return read(slot, start, size)

    monkeypatch.setattr(arena, "read", overtaken)
    assert bytes(overlay.read(ino, 0, PAGE)) == b"b" * PAGE
    assert len(slots) == 2


def test_a_read_that_is_overtaken_before_it_begins(overlay: OverlayFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same at the moment when the lock is given back: the next who has it is a writer."""
    ino, other = make(overlay), make(overlay, b"other")
    overlay.write(ino, 0, b"a" * PAGE)
    lock = overlay._lock
    reads: list[None] = []

    class Lock:
        def __enter__(self) -> None:
            lock.acquire()

        def __exit__(self, *_: object) -> None:
            lock.release()
            reads.append(None)
            if len(reads) == 1:
                with monkeypatch.context() as undone:
                    undone.setattr(overlay, "_lock", lock)
                    overlay.write(ino, 0, b"b" * PAGE)
                    overlay.write(other, 0, b"c" * PAGE)

    monkeypatch.setattr(overlay, "_lock", Lock())
    assert bytes(overlay.read(ino, 0, PAGE)) == b"b" * PAGE
    assert len(reads) == 2


def test_a_read_that_is_overtaken_by_a_truncation(overlay: OverlayFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slots that become free may lose their bytes at once: those were never zeros in the file."""
    ino, other = make(overlay), make(overlay, b"other")
    for number in range(2):  # not all in a row
        overlay.write(ino, number * 300 * PAGE, b"a" * 300 * PAGE)
        overlay.write(other, number * PAGE, b"b" * PAGE)
    arena, lock = overlay._storage.arena, overlay._lock
    read, punch = arena.read, arena._punch
    punched, compared = threading.Event(), threading.Event()
    writer = threading.Thread(target=overlay.set_attributes, args=(ino, Changes(size=0)))

    def overtaken(slot: int, start: int, size: int) -> bytes:
        if not writer.ident:
            writer.start()
            assert punched.wait(60)
            assert read(slot, start, size) == bytes(size)
        return read(slot, start, size)

    def stand_still(start: int, count: int) -> None:
        punch(start, count)
        punched.set()
        compared.wait(60)

    class Lock:
        def __enter__(self) -> None:
            if threading.current_thread() is threading.main_thread() and punched.is_set():
                compared.set()
            lock.acquire()

        def __exit__(self, *_: object) -> None:
            lock.release()

    monkeypatch.setattr(arena, "read", overtaken)
    monkeypatch.setattr(arena, "_punch", stand_still)
    monkeypatch.setattr(overlay, "_lock", Lock())
    found = bytes(overlay.read(ino, 0, PAGE))
    compared.set()
    writer.join()
    assert found == b""


def test_a_reader_sees_whole_blocks(overlay: OverlayFileSystem) -> None:
    """Blocks that are written over, and whose slots are used again at once, while others read without the lock."""
    ino, other = make(overlay), make(overlay, b"other")
    overlay.write(ino, 0, bytes(2 * PAGE))
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            data = bytes(overlay.read(ino, 0, 2 * PAGE))
            assert data == data[:1] * 2 * PAGE

    def write() -> None:
        try:
            for number in range(3000):
                overlay.write(ino, 0, bytes([number % 255]) * 2 * PAGE)
                overlay.write(other, 0, b"\xff" * PAGE + b"\xfe" * PAGE)
        finally:
            done.set()

    run(read, read, write)
