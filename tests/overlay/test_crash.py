"""The death of the process at any moment, and power loss at any moment: what was acknowledged, or synced, is there."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pagepool.image import Kind
from pagepool.overlay import OverlayFileSystem, storage
from pagepool.vfs import RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT, Changes
from tests.faults import cut_power, small_file_system
from tests.overlay.harness import PAGE, TREE, Disk, Pair, dump_oracle, dump_overlay

if TYPE_CHECKING:
    from collections.abc import Callable

    from pagepool.vfs import FileSystem


class Moments:
    """Calls back before every call that changes a file, and in the middle of every write."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, call: Callable[[], None]) -> None:
        self._call = call
        self._inside = False
        self.count = 0
        write = os.pwrite

        def in_halves(descriptor: int, data: bytes, offset: int) -> int:
            self._moment()
            half = len(data) // 2
            write(descriptor, memoryview(data)[:half], offset)
            self._moment()
            return half + write(descriptor, memoryview(data)[half:], offset + half)

        monkeypatch.setattr(os, "pwrite", in_halves)
        for name in ("ftruncate", "fsync", "fdatasync", "rename"):
            monkeypatch.setattr(os, name, self._before(getattr(os, name)))

    def _before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any) -> Any:
            self._moment()
            return function(*arguments)

        return wrapped

    def _moment(self) -> None:
        if not self._inside:
            self._inside = True
            try:
                self.count += 1
                self._call()
            finally:
                self._inside = False


@pytest.mark.parametrize("power", [False, True], ids=["killed", "power"])
def test_a_crash_in_the_middle_of_anything(power: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Operations, syncs and compactions are cut off before each call to the kernel, and within each write."""
    monkeypatch.setattr(storage, "COMPACT_BYTES", 4000)
    monkeypatch.setattr(storage, "PENDING_SLOTS", 10)
    disk = Disk(monkeypatch)
    pair = Pair(tmp_path / "pair", 77)
    source = random.Random(78)
    crashed = tmp_path / "crashed"

    def crash() -> None:
        flushed = dict(disk.flushed)
        if power:
            disk.lose_power(pair.overlay.directory, crashed, source)
            allowed = [*pair.history, pair.oracle]
        else:
            shutil.copytree(pair.overlay.directory, crashed)
            allowed = [pair.history[-1], pair.oracle]
        boot = (pair.boot + power).to_bytes(16, "big")
        found = OverlayFileSystem.open(crashed, pair.base, tree=TREE, boot=boot, clock=lambda: pair.now)
        try:
            assert dump_overlay(found) in [dump_oracle(oracle) for oracle in allowed]
        finally:
            found.close()
            shutil.rmtree(crashed)
            disk.flushed = flushed

    with monkeypatch.context() as watched:
        moments = Moments(watched, crash)
        for number in range(240):
            pair.step()
            if number % 20 == 10:
                pair.sync()
            if number % 60 == 30:
                pair.overlay._storage.compact()
                pair.note(synced=True)
            if number % 60 == 50:
                pair.reopen()
    pair.overlay.close()
    print(f"{moments.count} crashes")
    assert moments.count > 250


def operations(overlay: OverlayFileSystem) -> list[Callable[[], object]]:
    """One of every kind, to be done in order."""
    new = overlay._state.next_ino
    return [
        lambda: overlay.create(1, b"f", Kind.REGULAR, 0o644, 1, 2),
        lambda: overlay.create(1, b"l", Kind.SYMLINK, 0o777, 1, 2, target=b"to"),
        lambda: overlay.link(new, 1, b"g"),
        lambda: overlay.write(new, 0, b"x" * 2 * PAGE),
        lambda: overlay.write(new, 100, b"y"),
        lambda: overlay.allocate(new, 50, PAGE + 70, 3),
        lambda: overlay.set_attributes(new, Changes(size=PAGE + 9, mode=0o600, mtime_ns=-1)),
        lambda: overlay.set_xattr(new, b"user.a", b"value"),
        lambda: overlay.remove_xattr(new, b"user.a"),
        lambda: overlay.rename(1, b"f", 2, b"h"),
        lambda: overlay.rename(2, b"h", 1, b"l", RENAME_EXCHANGE),
        lambda: overlay.hold(new),
        lambda: overlay.unlink(1, b"g"),
        lambda: overlay.unlink(1, b"l"),
        lambda: overlay.release(new),
        lambda: overlay.rename(1, b"b", 1, b"c"),
        lambda: overlay.unlink(1, b"c"),
        lambda: overlay.create_unnamed(1, 0o600, 1, 2),
        lambda: overlay.write(new + 2, 0, b"z"),
        lambda: overlay.link(new + 2, 1, b"linked"),
        lambda: overlay.release(new + 2),
        lambda: overlay.rename(1, b"linked", 2, b"moved", RENAME_WHITEOUT, owner=(3, 4)),
        lambda: overlay.rename(2, b"moved", 1, b"back", RENAME_WHITEOUT | RENAME_NOREPLACE),
    ]


def test_the_last_record_cut_at_every_byte(tmp_path: Path, base: FileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the whole record counts."""
    Disk(monkeypatch)  # nothing waits for the real one
    overlay = OverlayFileSystem.open(tmp_path / "upper", base, tree=TREE)
    path, copy = tmp_path / "upper" / "journal", tmp_path / "copy"
    cuts = 0
    try:
        for operation in operations(overlay):
            before, start = dump_overlay(overlay), path.stat().st_size
            operation()
            after, end = dump_overlay(overlay), path.stat().st_size
            for size in range(start, end + 1):
                shutil.copytree(tmp_path / "upper", copy)
                os.truncate(copy / "journal", size)
                found = OverlayFileSystem.open(copy, base, tree=TREE)
                assert dump_overlay(found) == (after if size == end else before), size
                found.close()
                shutil.rmtree(copy)
                cuts += 1
    finally:
        overlay.close()
    assert cuts > 500


CHILD = """
import os, sys
from pathlib import Path
from tests.overlay.harness import Pair
pair = Pair(Path(sys.argv[1]), int(sys.argv[2]))
while True:
    pair.step()
    os.write(1, b".")
"""


@pytest.mark.parametrize("steps", [1, 40, 300])
def test_a_process_killed(steps: int, tmp_path: Path) -> None:
    """SIGKILL while it works: all that it acknowledged is there, and at most one operation more."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path / "child"), "5"],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert child.stdout is not None
    done = len(child.stdout.read(steps))
    child.send_signal(signal.SIGKILL)
    done += len(child.stdout.read())
    child.stdout.close()
    child.wait()
    assert done >= steps
    twin = Pair(tmp_path / "twin", 5)
    for _ in range(done):
        twin.step()
    expected = [dump_oracle(twin.oracle)]
    twin.step()
    expected.append(dump_oracle(twin.oracle))
    found = OverlayFileSystem.open(tmp_path / "child" / "0", twin.base, tree=TREE, boot=(1).to_bytes(16, "big"))
    try:
        assert dump_overlay(found) in expected
    finally:
        found.close()
        twin.overlay.close()


def test_a_slot_that_was_freed_while_a_sync_went_on(
    tmp_path: Path, base: FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What that sync made durable needs it, should the block that came in its place be lost."""
    disk = Disk(monkeypatch)
    overlay = OverlayFileSystem.open(tmp_path / "upper", base, tree=TREE)
    ino, other = (overlay.create(1, name, Kind.REGULAR, 0o644, 0, 0) for name in (b"f", b"g"))
    overlay.write(ino, 0, b"a" * PAGE)
    disk.during = lambda: overlay.write(ino, 0, b"b" * PAGE)
    overlay.sync()
    overlay.write(other, 0, b"c" * PAGE)
    blocks = (tmp_path / "upper" / "blocks").read_bytes()
    shutil.copytree(tmp_path / "upper", tmp_path / "lost")
    overlay.close()
    (tmp_path / "lost" / "blocks").write_bytes(blocks.replace(b"b" * PAGE, bytes(PAGE)))
    found = OverlayFileSystem.open(tmp_path / "lost", base, tree=TREE, boot=b"x" * 16)
    assert bytes(found.read(ino, 0, PAGE)) == b"a" * PAGE
    found.close()


def test_memory_that_changes_while_it_is_written(
    tmp_path: Path, base: FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller's own threads do that. Opened after a kill, the overlay has what reached the file."""
    overlay = OverlayFileSystem.open(tmp_path / "upper", base, tree=TREE)
    ino = overlay.create(1, b"new", Kind.REGULAR, 0o644, 0, 0)
    data, write = bytearray(2 * PAGE), os.pwrite

    def overtaken(descriptor: int, written: bytes, offset: int) -> int:
        done = write(descriptor, written, offset)
        data[:] = b"later" + bytes(2 * PAGE - 5)
        return done

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", overtaken)
        overlay.write(ino, 0, data)
    shutil.copytree(tmp_path / "upper", tmp_path / "killed")
    overlay.close()
    found = OverlayFileSystem.open(tmp_path / "killed", base, tree=TREE)
    assert bytes(found.read(ino, 0, 2 * PAGE)) == bytes(2 * PAGE)
    found.close()


@pytest.mark.parametrize("seed", [1, 2])
def test_an_ext4_that_loses_power(seed: int, tmp_path: Path) -> None:
    """The file system itself is shut down without writing anything back, and mounted again."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    with small_file_system(first, 64 << 20) as mounted:
        pair = Pair(mounted, seed)
        for number in range(300):
            pair.step()
            if pair.source.random() < 0.02 or number == 200:
                pair.sync()
        cut_power(mounted)
        with pytest.raises(OSError, match="Input/output error"):
            pair.overlay.sync()
        with pytest.raises(OSError, match="opened again"):
            pair.overlay.write(pair.overlay.create(1, b"more", Kind.REGULAR, 0o644, 0, 0), 0, b"x")
        pair.overlay.close()
    with small_file_system(second, 64 << 20, image=first / "small.img") as mounted:
        found = OverlayFileSystem.open(mounted / "0", pair.base, tree=TREE, boot=(9).to_bytes(16, "big"))
        try:
            assert dump_overlay(found) in [dump_oracle(oracle) for oracle in pair.history]
        finally:
            found.close()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_an_ext4_that_loses_power_after_a_compaction_that_was_killed(tmp_path: Path, base: FileSystem) -> None:
    """The name of the new journal is not on the disk when the process dies. Who opens it next uses slots that only the
    old journal refers to."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    with small_file_system(first, 64 << 20) as mounted:
        overlay = OverlayFileSystem.open(mounted / "upper", base, tree=TREE)
        removed, kept = (overlay.create(1, name, Kind.REGULAR, 0o644, 0, 0) for name in (b"removed", b"kept"))
        overlay.write(removed, 0, b"a" * PAGE)
        overlay.close()
        os.sync()
        child = os.fork()
        if not child:
            try:
                overlay = OverlayFileSystem.open(mounted / "upper", base, tree=TREE)
                overlay.unlink(1, b"removed")
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(storage, "sync_directory", lambda _: os.kill(os.getpid(), signal.SIGKILL))
                    overlay._storage.compact()
            finally:
                os._exit(255)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        overlay = OverlayFileSystem.open(mounted / "upper", base, tree=TREE)
        overlay.write(kept, 0, b"b" * PAGE)
        overlay._storage.arena.flush()  # the kernel writes back what it likes, when it likes
        cut_power(mounted)
        with pytest.raises(OSError, match="Input/output error"):
            overlay.close()
    with small_file_system(second, 64 << 20, image=first / "small.img") as mounted:
        overlay = OverlayFileSystem.open(mounted / "upper", base, tree=TREE, boot=(9).to_bytes(16, "big"))
        for entry in overlay.entries(1):
            if entry.ino == removed:
                assert bytes(overlay.read(removed, 0, PAGE)) == b"a" * PAGE
        assert overlay.lookup(1, b"kept") == kept
        overlay.close()
