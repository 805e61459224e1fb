"""Random operations on an overlay and on the oracle, side by side; comparing all that both show; crashes.

A `Disk` notes what was flushed, by file, so that power loss can be played: each page that was not flushed since it
changed is there or not, as chance has it.
"""

from __future__ import annotations

import contextlib
import copy
import os
import random
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pagepool.image import Kind
from pagepool.overlay import OverlayFileSystem, storage
from pagepool.vfs import Changes
from tests.overlay.oracle import File, Oracle
from tests.support.trees import TreeBuilder

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from pagepool.vfs import FileSystem

PAGE = 4096
TREE = b"\x01" * 32
KINDS = ("regular", "regular", "regular", "directory", "directory", "symlink", "char", "block", "fifo", "socket")
NAMES = (b"a", b"b", b"c", b"d", b"\xff", b"e" * 255)
XATTRS = (b"user.a", b"user.b", b"security.capability")
CAPABILITY = b"\1\0\0\2" + bytes(16)


def build_image(seed: int) -> TreeBuilder:
    """A small image with everything in it: hard links, devices, xattrs, files of several blocks."""
    source = random.Random(seed)
    builder = TreeBuilder()
    builder.root.mtime_ns = 5
    builder.directory("a", 0o2755, gid=7, mtime_ns=11)
    builder.directory("a/b/c")
    builder.directory("d", 0o1777)
    shared = builder.file("a/a", source.randbytes(3 * PAGE + 100), 0o6755, xattrs={b"security.capability": CAPABILITY})
    builder.add("d/b", shared)
    builder.file("a/b/b", source.randbytes(2 * PAGE), uid=3, gid=4, mtime_ns=-5)
    builder.file("b", source.randbytes(70_000), mtime_ns=10**18 + 1)
    builder.file("d/a", b"")
    builder.file("d/c", b"short", xattrs={b"user.a": b"x" * 300})
    builder.symlink("c", "a/b")
    builder.device("d/d", Kind.CHAR, (1, 3))
    builder.device("a/b/a", Kind.FIFO, (0, 0))
    return builder


class Disk:
    """What of each file has reached the disk: its bytes at the last flush, by inode number."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.flushed: dict[int, bytes] = {}
        self.during: Callable[[], object] | None = None
        """What happens, once, while the disk works: after a file's bytes were taken, before the flush returns."""
        for name in ("fsync", "fdatasync"):
            monkeypatch.setattr(os, name, self._flush)

    def _flush(self, descriptor: int) -> None:
        found = os.fstat(descriptor)
        with contextlib.suppress(IsADirectoryError):
            self.flushed[found.st_ino] = Path(f"/proc/self/fd/{descriptor}").read_bytes()
        during, self.during = self.during, None
        if during is not None:
            during()

    def lose_power(self, directory: Path, to: Path, source: random.Random) -> None:
        """Make a copy of a directory as it may look after power loss; names are as they are."""
        to.mkdir()
        for path in directory.iterdir():
            now, before = path.read_bytes(), self.flushed.get(path.stat().st_ino, b"")
            after = bytearray(now)
            odds = source.choice((0.0, 0.1, 0.5, 0.9, 1.0))
            for at in range(0, len(now), PAGE):
                page = now[at : at + PAGE]
                if page != before[at : at + PAGE] and source.random() < odds:
                    after[at : at + PAGE] = before[at : at + PAGE].ljust(len(page), b"\0")
            if len(now) > len(before) and source.random() < 0.5:
                del after[source.randrange(len(before), len(now)) :]
            (to / path.name).write_bytes(after)
        self.take_over(to)

    def take_over(self, directory: Path, old: Path | None = None) -> None:
        """A directory stands for what was another one; or all of it is on disk."""
        for path in directory.iterdir():
            before = None if old is None else self.flushed.get((old / path.name).stat().st_ino, b"")
            self.flushed[path.stat().st_ino] = path.read_bytes() if before is None else before


class Pair:
    """An overlay and the oracle, and random things done to both.

    Args:
        directory: an empty one, for overlays and copies of them.
        seed: of all that is random.
    """

    def __init__(self, directory: Path, seed: int) -> None:
        self.source = random.Random(seed)
        builder = build_image(seed)
        self.base: FileSystem = builder.file_system()
        self.oracle = Oracle(builder)
        self.now = 10**15
        self.boot = 1
        self._directory = directory
        self._copies = 0
        self.overlay = self._open(directory / "0")
        self.history = [copy.deepcopy(self.oracle)]
        """The oracle at the last sync, and after each operation since."""

    # -- opening and crashing ----------------------------------------------------------------------------------

    def _open(self, path: Path) -> OverlayFileSystem:
        return OverlayFileSystem.open(
            path, self.base, tree=TREE, clock=lambda: self.now, boot=self.boot.to_bytes(16, "big")
        )

    def _next(self) -> Path:
        self._copies += 1
        return self._directory / str(self._copies)

    def reopen(self) -> None:
        """Close, and open again."""
        path = self.overlay.directory
        self.overlay.close()
        self.oracle.crash()
        self.overlay = self._open(path)
        self.note(synced=True)

    def kill(self, disk: Disk) -> None:
        """Go on with what the files hold, as after SIGKILL."""
        old, path = self.overlay, self._next()
        shutil.copytree(old.directory, path)
        disk.take_over(path, old.directory)
        # What the old one still does is nobody's business; its own directory goes away with it.
        old.close()
        shutil.rmtree(old.directory)
        self.oracle.crash()
        self.overlay = self._open(path)
        # An opening makes durable what it found.
        self.note(synced=True)

    def lose_power(self, disk: Disk) -> int:
        """Go on with what power loss leaves; returns how many operations were lost."""
        old, path = self.overlay, self._next()
        disk.lose_power(old.directory, path, self.source)
        old.close()
        shutil.rmtree(old.directory)
        self.boot += 1
        self.overlay = self._open(path)
        found = dump_overlay(self.overlay)
        for lost, oracle in enumerate(reversed(self.history)):
            oracle.crash()
            if dump_oracle(oracle) == found:
                self.oracle = oracle
                # Numbers that were lost may be given again; whether one of a file without a name was, nothing shows.
                oracle.last = self.overlay._state.next_ino - 1
                self.note(synced=True)
                return lost
        raise AssertionError(f"after power loss it is none of {len(self.history)} states since the last sync")

    def sync(self, disk: Disk | None = None) -> None:
        """Sync; on a disk that is given, while other threads go on."""
        start = len(self.history) - 1
        if disk is not None:
            disk.during = self._meanwhile
        self.overlay.sync()
        if disk is not None:
            disk.during = None
        # What was done meanwhile may be durable, or not.
        del self.history[:start]

    def _meanwhile(self) -> None:
        """A few operations that another thread does during a sync; none of them syncs itself: it would wait."""
        most, storage.PENDING_SLOTS = storage.PENDING_SLOTS, 1 << 40  # type: ignore[misc]
        self.overlay._storage.compact_at = 1 << 40
        try:
            for _ in range(self.source.randrange(8)):
                self.step()
        finally:
            storage.PENDING_SLOTS = most  # type: ignore[misc]
            self.overlay._storage.compact_at = storage.COMPACT_BYTES

    def note(self, *, synced: bool = False) -> None:
        """Remember the oracle as it is."""
        if synced:
            self.history.clear()
        self.history.append(copy.deepcopy(self.oracle))

    # -- operations --------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Do something random to both: the same result, or the same refusal."""
        self.now += 1
        names = [name for name in dir(self) if name.startswith("op_")]
        operation: Callable[[], tuple[Callable[[], Any], Callable[[], Any]]] = getattr(self, self.source.choice(names))
        ours, theirs = operation()
        expected, got = attempt(theirs), attempt(ours)
        assert got == expected, (operation.__name__, got, expected)
        self.note()

    def some(self, *kinds: str) -> int:
        """A number: mostly of an inode that is there, of a kind if one is named, sometimes of none."""
        if self.source.random() < 0.03:
            return self.source.choice((self.oracle.last + 1, 10**6, *self.oracle.known))
        alive = [
            ino
            for ino, found in self.oracle.known.items()
            if (found.names or found.holders or ino == 1)
            and (not kinds or found.kind in kinds or self.source.random() < 0.03)
        ]
        return self.source.choice(alive or [1])

    def entry(self) -> tuple[int, bytes]:
        """A directory and a name, of an entry that is there in three of four cases."""
        parent = self.some("directory")
        found = self.oracle.known.get(parent)
        if found is not None and found.children and self.source.random() < 0.75:
            return parent, self.source.choice(list(found.children))
        return parent, self.source.choice((*NAMES, b"n" * 256))

    def place(self) -> int:
        """An offset or a size: near a page's edge, or anywhere."""
        return max(0, self.source.randrange(20) * PAGE + self.source.choice((0, 0, 1, -1, 100, 2000)))

    def op_create(self) -> Any:
        parent, name = self.some("directory"), self.source.choice((*NAMES, b"n" * 256))
        kind = self.source.choice(KINDS)
        mode, owner = self.source.randrange(0o10000), self.source.randrange(3)
        target, device = self.source.randbytes(9).replace(b"\0", b"0"), (self.source.randrange(300), 7)
        ours = lambda: self.overlay.create(  # noqa: E731
            parent, name, Kind(kind), mode, owner, owner + 1, target=target, device=device
        )
        return ours, lambda: self.oracle.create(self.now, parent, name, kind, mode, owner, owner + 1, target, device)

    def op_create_unnamed(self) -> Any:
        parent, mode, owner = self.some("directory"), self.source.randrange(0o10000), self.source.randrange(3)
        linkable = self.source.random() < 0.8
        return (
            lambda: self.overlay.create_unnamed(parent, mode, owner, owner + 1, linkable=linkable),
            lambda: self.oracle.create_unnamed(self.now, parent, mode, owner, owner + 1, linkable),
        )

    def op_link_unnamed(self) -> Any:
        unnamed = [ino for ino, found in self.oracle.known.items() if found.holders and not found.names and ino != 1]
        ino = self.source.choice(unnamed) if unnamed else self.some()
        parent, name = self.some("directory"), self.source.choice(NAMES)
        return lambda: self.overlay.link(ino, parent, name), lambda: self.oracle.link(self.now, ino, parent, name)

    def op_link(self) -> Any:
        ino, parent, name = self.some(), self.some("directory"), self.source.choice(NAMES)
        return lambda: self.overlay.link(ino, parent, name), lambda: self.oracle.link(self.now, ino, parent, name)

    def op_unlink(self) -> Any:
        parent, name = self.entry()
        return lambda: self.overlay.unlink(parent, name), lambda: self.oracle.unlink(self.now, parent, name)

    def op_rmdir(self) -> Any:
        parent, name = self.entry()
        return lambda: self.overlay.rmdir(parent, name), lambda: self.oracle.rmdir(self.now, parent, name)

    def op_rename(self) -> Any:
        where = (*self.entry(), *self.entry(), self.source.choice((0, 0, 0, 1, 2, 4, 5, 6)))
        owner = self.source.randrange(3), self.source.randrange(3)
        return (
            lambda: self.overlay.rename(*where, owner=owner),
            lambda: self.oracle.rename(self.now, *where, owner),
        )

    def op_set_attributes(self) -> Any:
        ino = self.some(*self.source.choice(((), ("regular",))))
        choices: dict[str, Callable[[], Any]] = {
            "mode": lambda: self.source.randrange(0o10000),
            "uid": lambda: self.source.randrange(2**32 - 1),
            "gid": lambda: self.source.randrange(2**32 - 1),
            "size": self.place,
            "atime_ns": lambda: self.source.randrange(-(2**63), 2**63),
            "mtime_ns": lambda: self.source.randrange(-(2**63), 2**63),
            "kill_privileges": lambda: True,
        }
        names = self.source.sample(list(choices), self.source.randrange(4))
        given: dict[str, Any] = {name: choices[name]() for name in names}
        return (
            lambda: self.overlay.set_attributes(ino, Changes(**given)),
            lambda: self.oracle.set_attributes(self.now, ino, given),
        )

    def op_truncate(self) -> Any:
        ino, size = self.some("regular"), self.place()
        return (
            lambda: self.overlay.set_attributes(ino, Changes(size=size)),
            lambda: self.oracle.set_attributes(self.now, ino, {"size": size}),
        )

    def op_write(self) -> Any:
        ino, offset, kill = self.some("regular"), self.place(), self.source.random() < 0.3
        data = self.source.randbytes(self.source.choice((0, 1, 100, PAGE, PAGE, 3 * PAGE, self.place())))
        return (
            lambda: self.overlay.write(ino, offset, data, kill_privileges=kill),
            lambda: self.oracle.write(self.now, ino, offset, data, kill),
        )

    op_write_more = op_write

    def op_allocate(self) -> Any:
        ino, offset, size = self.some("regular"), self.place(), self.place() + 1
        mode = self.source.choice((0, 1, 3, 3, 16, 17))
        return (
            lambda: self.overlay.allocate(ino, offset, size, mode),
            lambda: self.oracle.allocate(self.now, ino, offset, size, mode),
        )

    def op_set_xattr(self) -> Any:
        ino, name, flags = self.some(), self.source.choice(XATTRS), self.source.choice((0, 0, 1, 2))
        value = self.source.randbytes(self.source.randrange(200))
        return (
            lambda: self.overlay.set_xattr(ino, name, value, flags),
            lambda: self.oracle.set_xattr(self.now, ino, name, value, flags),
        )

    def op_remove_xattr(self) -> Any:
        ino, name = self.some(), self.source.choice(XATTRS)
        return (
            lambda: self.overlay.remove_xattr(ino, name),
            lambda: self.oracle.remove_xattr(self.now, ino, name),
        )

    def op_hold(self) -> Any:
        ino = self.some()
        return lambda: self.overlay.hold(ino), lambda: self.oracle.hold(ino)

    def op_release(self) -> Any:
        held = [(ino, found.holders) for ino, found in self.oracle.known.items() if found.holders]
        if not held:
            return self.op_hold()
        ino, count = self.source.choice(held)
        count = self.source.randrange(1, count + 1)
        return lambda: self.overlay.release(ino, count), lambda: self.oracle.release(ino, count)

    def op_read(self) -> Any:
        ino, offset, size = self.some("regular"), self.place(), self.place()
        return (
            lambda: bytes(self.overlay.read(ino, offset, size)),
            lambda: self.oracle.regular(ino).data[offset : offset + size],
        )

    def op_lookup(self) -> Any:
        parent, name = self.entry()
        return lambda: self.overlay.lookup(parent, name), lambda: self.oracle.child(parent, name).ino

    def check(self) -> None:
        """All that both show is the same."""
        assert dump_overlay(self.overlay) == dump_oracle(self.oracle)


def attempt(call: Callable[[], Any]) -> Any:
    """What a call returns, or the errno that it fails with."""
    try:
        return call()
    except OSError as error:
        return f"errno {error.errno}"


def dump_oracle(oracle: Oracle) -> dict[bytes, Any]:
    """Everything by path."""
    found: dict[bytes, Any] = {}

    def walk(path: bytes, file: File) -> None:
        children = sorted(file.children)
        up = file.up.ino if file.kind == "directory" and file.up is not None else None
        shown = (file.ino, file.kind, file.mode, file.uid, file.gid, file.size, file.nlink, *file.times, *file.device)
        found[path] = (shown, up, file.target, file.data, dict(file.xattrs), children)
        for name in children:
            walk(path + b"/" + name, file.children[name])

    walk(b"", oracle.root)
    return found


def dump_overlay(overlay: FileSystem) -> dict[bytes, Any]:
    """Everything by path."""
    found: dict[bytes, Any] = {}

    def walk(path: bytes, ino: int) -> None:
        shown = overlay.attributes(ino)
        kind = shown.kind
        entries = list(overlay.entries(ino)) if kind is Kind.DIRECTORY else []
        data = bytes(overlay.read(ino, 0, shown.size + 1)) if kind is Kind.REGULAR else b""
        up = overlay.parent(ino) if kind is Kind.DIRECTORY else None
        target = overlay.readlink(ino) if kind is Kind.SYMLINK else b""
        fields = (shown.ino, kind.value, *shown[2:12])
        found[path] = (fields, up, target, data, dict(overlay.xattrs(ino)), [entry.name for entry in entries])
        for entry in entries:
            assert overlay.lookup(ino, entry.name) == entry.ino
            assert overlay.attributes(entry.ino).kind is entry.kind
            walk(path + b"/" + entry.name, entry.ino)

    walk(b"", 1)
    return found
