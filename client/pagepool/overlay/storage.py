"""An overlay's directory: its lock, its journal, its arena, and the state that they make; opening, syncing, compacting.

Layout: ``journal`` (records), ``blocks`` (the arena), for a moment ``journal.new``. The directory is locked (flock) as
long as it is open. Every change is one record: its blocks are written, it is appended to the journal, and only then is
the state changed, so that an operation that fails has changed nothing, and what was acknowledged survives the
death of the process.

`lock` guards everything here but `sync` and `tend`, which take it themselves. A sync does not hold it while the disk
works: what is done meanwhile belongs to the next one.

An overlay is its process's: in a child that is forked it is closed, and every use an error.

Durability: `sync` flushes arena and journal, and *then* appends a record which says up to where all is on disk. That
record needs no flush of its own: if it is lost, the blocks it spoke for are compared with their checksums
once more, and found good. And if it is there, so is everything before it: a bad record before it is damage, never a
crash. After a failed flush nothing is known about the disk: every further change is EIO until the overlay is opened
again.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
import uuid
import weakref
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pagepool.errors import BusyError, InvalidError, NotFoundError
from pagepool.image.member import Kind
from pagepool.overlay import arena as arenas
from pagepool.overlay import journal as journals
from pagepool.overlay.arena import Arena
from pagepool.overlay.journal import Header, Journal, sync_directory, write_journal
from pagepool.overlay.records import encode_open
from pagepool.overlay.recovery import recover
from pagepool.overlay.snapshot import encode_state

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pagepool.overlay.recovery import Recovered
    from pagepool.overlay.slots import Run
    from pagepool.overlay.state import State
    from pagepool.vfs.interface import FileSystem

    Step = Callable[[], None]

# A journal is compacted from here on, once it is so many times as large as it was after the last compaction.
COMPACT_BYTES: Final = 4 << 20
COMPACT_FACTOR: Final = 4
# A sync is made when so many slots wait for one (64 MiB).
PENDING_SLOTS: Final = 16384
FILES: Final = frozenset({journals.NAME, journals.NAME + ".new", arenas.NAME})

_open: weakref.WeakSet[Storage] = weakref.WeakSet()
"""Overlays that this process has open. A child that it forks lets go of them: both would write to the same slots, and
append at the same place of the journal."""


def _let_go_in_child() -> None:
    for storage in list(_open):
        storage.let_go_in_child()


os.register_at_fork(after_in_child=_let_go_in_child)


class OverlayUnknownError(NotFoundError):
    """A directory that holds no overlay."""

    what = "overlay"

    def __init__(self, name: object) -> None:
        super().__init__(name)
        self.args = (f"{name} is not the directory of an overlay",)


class Storage:
    """An open overlay's files and state. Made by `open_storage`."""

    def __init__(
        self, directory: Path, descriptor: int, journal: Journal, arena: Arena, state: State, boot: bytes
    ) -> None:
        self.directory = directory
        self.journal = journal
        self.arena = arena
        self.state = state
        self.lock = threading.Lock()
        self._boot = boot
        self._descriptor = descriptor
        self._sync_lock = threading.Lock()
        self._clean = journal.position
        self._broken = False
        """Whether the state may not be what the journal says."""
        self._failed = False
        """Whether a flush has failed, so that it is not known what is on disk."""
        self.compact_at = COMPACT_BYTES
        _open.add(self)

    def take_over(self, found: Recovered, time_ns: int) -> None:
        """At the opening: cut what does not count, make the rest durable if no sync has, and note the opening."""
        journal, arena, state = self.journal, self.arena, self.state
        if not found.clean:
            journal.cut(journal.position)
            arena.write_again(found.unsynced)
            journal.write_again(found.durable)
            arena.flush()
            journal.flush()
            journal.append_sync(journal.position)
        state.open(time_ns)
        arena.load(run for node in state.nodes.values() if node.kind is Kind.REGULAR for run in node.blocks.slots())
        state.free = arena.free
        journal.append(encode_open(self._boot, time_ns))
        self._clean = journal.position
        arena.trim()

    def commit(
        self, body: bytes, apply: Callable[..., None], arguments: tuple[Any, ...], *more: tuple[bytes, Step]
    ) -> None:
        """Append a record, and do what it says.

        Args:
            body: of the record.
            apply: what it says.
            arguments: of that.
            more: records that are appended with it, and what they say.

        Raises:
            OSError: it cannot be appended; nothing has changed.
        """
        self._check()
        self._broken = True  # and stays it if this is interrupted between the two
        try:
            self.journal.append(body, *(other for other, _ in more))
        except OSError:
            self._broken = False
            raise
        apply(*arguments)
        for _, step in more:
            step()
        self._broken = False

    def commit_blocks(
        self, runs: list[Run], body: bytes, apply: Callable[..., None], arguments: tuple[Any, ...]
    ) -> None:
        """As `commit`, of a record that refers to slots just written: they are free again if it fails."""
        try:
            self.commit(body, apply, arguments)
        except OSError:
            self.arena.cancel(runs)
            raise

    @property
    def wants_tending(self) -> bool:
        """Whether `tend` has something to do."""
        return self.journal.position > self.compact_at or self.arena.pending_count > PENDING_SLOTS

    def tend(self) -> None:
        """Compact a large journal; sync if much space waits for it. A failure is not one of the operation before."""
        with contextlib.suppress(OSError):
            if self.journal.position > self.compact_at:
                self.compact(due=True)
            else:
                self.sync()

    def sync(self) -> None:
        """Make all that was done durable.

        Raises:
            OSError: it is not known what is durable; every further change is refused with EIO.
        """
        with self._sync_lock:
            with self.lock:
                self._check()
                position = self.journal.position
                if position == self._clean:
                    return
                self.arena.begin_sync()
            try:
                self.arena.flush()
                self.journal.flush()
            except BaseException:
                self._failed = True
                raise
            with self.lock:
                self.arena.end_sync()
                at = self.journal.position
                with contextlib.suppress(OSError):  # only the next opening is slower without it
                    self.journal.append_sync(position)
                if at == position:
                    self._clean = self.journal.position

    def renew(self) -> None:
        """Bring the journal to the newest version, before a record that older ones do not have. Until then an overlay
        can be opened by whoever made it.

        Raises:
            OSError: it cannot be written; the old one goes on.
        """
        if self.journal.header.version < journals.VERSION:
            self.compact()

    def compact(self, *, due: bool = False) -> None:
        """Write the state as a new journal. Everything is durable then. Blocks all other operations.

        Args:
            due: only if the journal is too large still: several threads find that out at the same time.

        Raises:
            OSError: it cannot be written; the old one goes on.
        """
        with self._sync_lock, self.lock:
            self._check()
            if due and self.journal.position <= self.compact_at:
                return
            self.compact_at = 2 * self.journal.position  # if it fails, not at once again
            old = self.journal
            header = Header.new(old.header.tree, old.header.base_inodes, old.header.info)
            # The opening comes first: a replay must not take away what is held now.
            bodies = chain((encode_open(self._boot, 0),), encode_state(self.state))
            self._failed = True
            self.arena.flush()
            try:
                self.journal = write_journal(old.path, header, bodies)
            except OSError:
                self._failed = False
                raise
            old.close()
            sync_directory(self.directory)
            self._failed = False
            self.arena.begin_sync()
            self.arena.end_sync()
            self._clean = self.journal.position
            self.compact_at = max(COMPACT_BYTES, COMPACT_FACTOR * self.journal.position)

    def close(self) -> None:
        """Sync, and let go of the files and the lock."""
        if self._descriptor < 0:
            return
        try:
            if not (self._broken or self._failed or self.journal.torn):
                self.sync()
        finally:
            with self.lock:
                self.let_go()

    def let_go(self) -> None:
        """Close the files, and unlock the directory unless a process that this one was forked from has it open."""
        self.journal.close()
        self.arena.close()
        descriptor, self._descriptor = self._descriptor, -1
        self._broken = True
        if descriptor >= 0:
            os.close(descriptor)

    def let_go_in_child(self) -> None:
        """The same after a fork, where threads that the child does not have may hold the locks, for ever."""
        for lock in (self.lock, self._sync_lock):
            lock._at_fork_reinit()  # type: ignore[attr-defined]
        self.let_go()

    def _check(self) -> None:
        """Refuse to go on where memory may not be what is on disk: EIO, or EBADF after `close`."""
        if self._descriptor < 0:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF), str(self.directory))
        if self._broken or self._failed or self.journal.torn:
            raise OSError(
                errno.EIO, f"{os.strerror(errno.EIO)}: the overlay has to be opened again", str(self.directory)
            )


def open_storage(
    directory: Path,
    base: FileSystem,
    tree: bytes,
    info: Mapping[str, object] | None,
    time_ns: int,
    boot: bytes | None = None,
) -> Storage:
    """Open an overlay's directory, or make it. Arguments and errors are those of `OverlayFileSystem.open`."""
    directory = directory.absolute()  # wherever the process goes
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    boot = read_boot_id() if boot is None else boot
    with contextlib.ExitStack() as undo:
        descriptor = lock_directory(directory)
        undo.callback(os.close, descriptor)
        arena = Arena(_prepare(directory, base, tree, info, time_ns, boot))
        undo.callback(arena.close)
        path = directory / journals.NAME
        found = recover(path, base, tree, arena, boot)
        journal = Journal(path, found.header, found.end)
        undo.callback(journal.close)
        storage = Storage(directory, descriptor, journal, arena, found.state, boot)
        storage.take_over(found, time_ns)
        undo.pop_all()
    return storage


def _prepare(
    directory: Path, base: FileSystem, tree: bytes, info: Mapping[str, object] | None, time_ns: int, boot: bytes
) -> Path:
    """Make the files of a new overlay, if there is none in the directory."""
    names = set(os.listdir(directory))  # noqa: PTH208 (names are all it is about)
    if journals.NAME in names:
        # Whoever put it there may have been killed before its name was on disk; what is written next relies on that.
        sync_directory(directory)
        return directory
    if names - FILES:
        raise InvalidError(str(directory), f"it holds no overlay, and is not empty ({min(names - FILES)!r})")
    # What an overlay left that was discarded, or made, up to a crash.
    (directory / arenas.NAME).unlink(missing_ok=True)
    Arena(directory).close()
    header = Header.new(tree, base.usage().inodes, dict(info or {}))
    write_journal(directory / journals.NAME, header, (encode_open(boot, time_ns),)).close()
    sync_directory(directory)
    sync_directory(directory.parent)
    return directory


def lock_directory(directory: Path) -> int:
    """Lock a directory; closing the descriptor unlocks it.

    Raises:
        BusyError: somebody else has it.
        OverlayUnknownError: there is none.
    """
    while True:
        descriptor = _lock_directory(directory)
        # It may have been removed, and another one made in its place, before it was locked.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), directory.stat()):
                return descriptor
        os.close(descriptor)


def _lock_directory(directory: Path) -> int:
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise OverlayUnknownError(directory) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise BusyError(f"the overlay {directory} is in use") from error
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_boot_id() -> bytes:
    """A number that every start of the machine has of its own."""
    return uuid.UUID(Path("/proc/sys/kernel/random/boot_id").read_text().strip()).bytes
