"""Objects that others use by their names, unseen: what a node's pool owes to the overlays that look into it.

Overlays open objects by name, in the kernel, and keep the files that they have found for as long as they remember their
own inodes. So the one process that owns such a pool

- lets objects go that no mounted tree has before those that one has;
- knows the *second names* below `fetched/`, under which an overlay finds what was brought in during its lookup. `link`
  makes them; an object has its own for `FRESH_S` at least, and is not evicted meanwhile: an overlay is about to have
  it in use, so these bytes are as good as pinned. Both names go together;
- counts what has lost its names and is still in use: *pinned* bytes. Handles tell (`pagepool.pool.handles`), noted in
  RUN/custody before the names go, so that the next process of this boot goes on counting. Where there are no handles
  an object counts as long as a mounted tree has it;
- asks the overlays to forget what nobody has open (`release`) before objects of mounted trees are evicted.

Pinned bytes count against the pool's budget. Once that leaves less than `floor` for everything else the pool goes
beyond its budget: an object that cannot be fetched is an error in a container, and bytes too many are a figure.

The file: a header (`PPCUST`, a byte 0, a byte 1, 16 bytes that name the boot), then records of 176 bytes: length of the
handle (u8), three bytes 0, its type (i32), bytes that count (u64), digest (32 bytes), handle (128 bytes). Records are
appended; those that do not hold any more are left out when it is written anew. A record that a crash has torn, or whose
file still has a name, is none.

For one process. What has to do with counters is called with the ledger's lock held; second names have a lock of their
own, which is taken after that one.
"""

from __future__ import annotations

import errno
import logging
import os
import struct
import threading
import time
from collections import deque
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pagepool import linux
from pagepool.pool.handles import MOST_BYTES, Handle, HandleDoor
from pagepool.pool.secondnames import SecondNames

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

FRESH_S: Final = 10.0
"""A second name is kept for so long in any case: an overlay is about to look for it."""
FLOOR_SHARE: Final = 4
"""What is not pinned has one in so many of the budget at least."""
_RELEASE_S: Final = 10.0  # between two times that overlays are asked to forget, at least
_TELL_S: Final = 60.0  # between two lines in the log about the same
_MOST_RELEASE_S: Final = 5.0  # that they are waited for
_PROBE_S: Final = 1.0  # between two probes of some records
_PROBES: Final = 1024
_SLACK: Final = 4096  # records that are not good any more, before the file is written anew
_MAGIC: Final = b"PPCUST\0\x01"
_RECORD: Final = struct.Struct("<B3xiQ32s128s")
_UNKNOWN: Final = bytes(32)

log = logging.getLogger("pagepool.pool")


@dataclass(frozen=True, slots=True)
class Note:
    """A file that is about to lose its names, or has lost them.

    Args:
        digest: of the object; 32 zero bytes if that is not known.
        charged: bytes that it counts.
        handle: None where there are none.
    """

    digest: bytes
    charged: int
    handle: Handle | None

    def encode(self) -> bytes:
        """As a record of the file."""
        handle = self.handle or Handle(0, b"")
        return _RECORD.pack(len(handle.raw), handle.type, self.charged, self.digest, handle.raw)


class NoCustody:
    """Of a pool that nobody looks into from outside: does nothing."""

    careful = False
    pinned = 0

    @property
    def fresh(self) -> int:
        """Bytes of what overlays are about to look for."""
        return 0

    @property
    def fresh_s(self) -> float:
        """How long that is."""
        return 0.0

    def attach(self, path: Path) -> None:
        """Belong to a pool from now on."""

    def floor(self, _budget: int) -> int:
        """Bytes that are left for what is not pinned."""
        return 0

    def in_use(self, _digest: bytes) -> bool:
        """Whether a mounted tree has an object."""
        return False

    def second_name(self, _digest: bytes, _inode: int) -> float | None:
        """The age in seconds of an object's second name; None if it has none."""
        return None

    def names(self) -> AbstractContextManager[object]:
        """No second name is made meanwhile."""
        return nullcontext()

    def unlink(self, _digest: bytes) -> None:
        """Take an object's second name away."""

    def note(self, _descriptor: int, _digest: bytes, _charged: int) -> Note | None:
        """Note a file that is about to lose its last name."""
        return None

    def settle(self, _note: Note | None) -> bool:
        """Whether a file without names, which nobody here has open, is pinned."""
        return False

    def probe(self, *, everything: bool = False) -> None:
        """Look which of the pinned files are not, any more."""

    def release(self) -> None:
        """Have overlays forget what nobody has open."""

    def close(self) -> None:
        """Let go of everything."""


class Custody(NoCustody):
    """See the module.

    Args:
        run: directory that outlives the process and not the boot.
        fetched: directory of second names, on the pool's file system.
        in_use: whether a mounted tree has an object. Called for every object when room is made: takes microseconds,
            waits for nothing and does not use the pool.
        release: has overlays forget what nobody has open; called in a thread of its own; must not use the pool.
        floor: bytes that what is not pinned has in any case; None: a quarter of the budget.
        fresh_s: how long an object that was just brought in is kept in any case.
        clock: in seconds; never goes back.
    """

    careful = True

    def __init__(
        self,
        run: Path,
        fetched: Path,
        in_use: Callable[[bytes], bool],
        *,
        release: Callable[[], object] = lambda: None,
        floor: int | None = None,
        fresh_s: float = FRESH_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._path = run / "custody"
        self._in_use = in_use
        self._release = release
        self._floor = floor
        self._door: HandleDoor | None = None
        self._notes: deque[Note] = deque()
        self._written = 0
        self._probed = self._next_release = float("-inf")
        self._told = float("-inf")
        self._releasing: threading.Thread | None = None
        self._second = SecondNames(fetched, fresh_s, clock)
        self.pinned = 0
        self._file = -1

    # -- what is pinned ----------------------------------------------------------------------------------------

    def attach(self, path: Path) -> None:
        """Belong to a pool from now on, and take up what an earlier process has noted.

        Raises:
            OSError: files or directories cannot be opened.
        """
        self._second.attach(path)
        self._door = HandleDoor(path)
        if not self._door.usable:
            log.warning("%s has no file handles: what mounted trees have counts when it is removed", path)
        for note in self._read():
            self.settle(note)
        self._rewrite_if_possible()

    def floor(self, budget: int) -> int:
        """Bytes that are left for what is not pinned."""
        return budget // FLOOR_SHARE if self._floor is None else self._floor

    def in_use(self, digest: bytes) -> bool:
        """Whether a mounted tree has an object. If that cannot be told it has."""
        try:
            return self._in_use(digest)
        except Exception:
            if self._clock() > self._told + _TELL_S:
                self._told = self._clock()
                log.exception("who uses object %s, and perhaps others, cannot be told", digest.hex())
            return True

    def note(self, descriptor: int, digest: bytes, charged: int) -> Note | None:
        """Note a file that is about to lose its last name; on disk before this returns.

        Returns:
            what `settle` is given when the name is gone, and the descriptor closed.
        """
        handle = None
        if self._door is not None and self._door.usable:
            with suppress(OSError):
                handle = self._door.name(descriptor)
        note = Note(digest or _UNKNOWN, charged, handle)
        self._append(note)
        return note

    def settle(self, note: Note | None) -> bool:
        """Whether a file without names is pinned. If so it is counted from now on."""
        if note is None or not self._is_pinned(note):
            return False
        self._notes.append(note)
        self.pinned += note.charged
        return True

    def probe(self, *, everything: bool = False) -> None:
        """Look which of the pinned files are not, any more: three microseconds each.

        Args:
            everything: all of them now, and not some now and then.
        """
        now = self._clock()
        if not everything and now < self._probed + _PROBE_S:
            return
        self._probed = now
        for _ in range(len(self._notes) if everything else min(_PROBES, len(self._notes))):
            note = self._notes.popleft()
            if self._is_pinned(note):
                self._notes.append(note)
            else:
                self.pinned -= note.charged
        if self._written > 2 * len(self._notes) + _SLACK:
            self._rewrite_if_possible()

    def release(self) -> None:
        """Have overlays forget what nobody has open, unless they just were asked to; then look again.

        Waits a few seconds at most: a mount may be at a path that does not answer.
        """
        now = self._clock()
        if now < self._next_release or (self._releasing is not None and self._releasing.is_alive()):
            return
        self._releasing = threading.Thread(target=self._release_now, name="pool-release", daemon=True)
        self._releasing.start()
        self._releasing.join(_MOST_RELEASE_S)
        took_s = self._clock() - now
        self._next_release = now + max(_RELEASE_S, 20 * took_s)
        self.probe(everything=True)

    def _release_now(self) -> None:
        try:
            self._release()
        except Exception:
            log.exception("overlays cannot be asked to forget objects")

    def close(self) -> None:
        """Let go of everything; what is noted stays for the next process."""
        if self._door is not None:
            self._door.close()
            self._door = None
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _is_pinned(self, note: Note) -> bool:
        if note.handle is None:
            return note.digest != _UNKNOWN and self.in_use(note.digest)
        try:
            return self._door is not None and self._door.links(note.handle) == 0
        except OSError as error:
            log.warning("whether object %s is in use cannot be told: %s", note.digest.hex(), error)
            return self.in_use(note.digest)

    def _append(self, note: Note) -> None:
        # On a full disk it is lost, and counted by this process only; a part of it would spoil what comes behind.
        with suppress(OSError):
            if os.write(self._file, note.encode()) < _RECORD.size:
                head = len(_MAGIC) + len(linux.boot_id())
                whole = (os.fstat(self._file).st_size - head) // _RECORD.size
                os.ftruncate(self._file, head + whole * _RECORD.size)
            self._written += 1

    def _read(self) -> Iterator[Note]:
        try:
            raw = self._path.read_bytes()
        except FileNotFoundError:
            return
        head = _MAGIC + linux.boot_id()
        if not raw.startswith(head):
            return
        body = raw[len(head) :]
        seen: set[Note] = set()
        for size, kind, charged, digest, handle in _RECORD.iter_unpack(
            body[: len(body) // _RECORD.size * _RECORD.size]
        ):
            note = Note(digest, charged, Handle(kind, handle[: min(size, MOST_BYTES)]) if size else None)
            if note.handle is None or note not in seen:
                seen.add(note)
                yield note

    def _rewrite_if_possible(self) -> None:
        """Write the file anew. On a full disk that is left, and what comes is counted by this process only."""
        try:
            self._rewrite()
        except OSError as error:
            if not linux.is_full(error):
                raise
            log.warning("what is in use without a name is not noted: %s", error)

    def _rewrite(self) -> None:
        """Write the file anew, with what is pinned."""
        part = self._path.with_name(f".{self._path.name}")
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            whole = b"".join((_MAGIC, linux.boot_id(), *(note.encode() for note in self._notes)))
            if os.write(descriptor, whole) < len(whole):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(part))
            part.rename(self._path)
        except BaseException:
            os.close(descriptor)
            part.unlink(missing_ok=True)
            raise
        if self._file >= 0:
            os.close(self._file)
        self._file, self._written = descriptor, len(self._notes)

    # -- second names ------------------------------------------------------------------------------------------

    @property
    def fresh(self) -> int:
        """Bytes of what overlays are about to look for."""
        return self._second.fresh

    @property
    def fresh_s(self) -> float:
        """How long that is."""
        return self._second.fresh_s

    def names(self) -> AbstractContextManager[object]:
        """No second name is made meanwhile."""
        return self._second.lock

    def link(self, digest: bytes) -> bool:
        """Give an object its second name: see `SecondNames.link`."""
        return self._second.link(digest)

    def unlink(self, digest: bytes) -> None:
        """Take an object's second name away."""
        self._second.unlink(digest)

    def unlink_old(self) -> int:
        """Take second names away that were made a while ago: see `SecondNames.unlink_old`."""
        return self._second.unlink_old()

    def second_name(self, digest: bytes, inode: int) -> float | None:
        """The age in seconds of an object's second name; None if it has none."""
        return self._second.age(digest, inode)
