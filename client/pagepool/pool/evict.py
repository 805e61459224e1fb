"""Keeping a pool within its budget: what goes, and that it may go.

Works with the ledger's lock held, so one process evicts at a time, and nobody publishes meanwhile. Room is made in
batches: the queue of 250 000 objects takes about half a second to read and write, and one batch frees a fraction of the
budget. An object that somebody holds is passed over, and counts as used. The queue is saved in `queue`, with a
generation in the ledger that tells a process whether what it remembers is still that. A queue that is lost or out of
date (a crash, records that the log has lost) is completed by walking the pool.

Of a pool that overlays look into (`pagepool.pool.custody`) objects of no mounted tree go first, then those that are not
in memory, and what is still in use without a name counts as pinned.

A process killed in the middle has unlinked files that the account still has; the ledger notices, and `recount` makes
account and queue anew.
"""

from __future__ import annotations

import os
import re
import struct
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from pagepool.digest import blake3_raw
from pagepool.pool import ledger as cell
from pagepool.pool import log as event
from pagepool.pool.custody import NoCustody
from pagepool.pool.files import READ, is_held, is_locked
from pagepool.pool.layout import OBJECTS, PARTIAL, QUEUE, RETIRED, TEMPORARY, cost, names_in, object_name, replace
from pagepool.pool.mapfile import MapFile, remove_partial
from pagepool.pool.policy import Entry, Goal, S3Fifo
from pagepool.pool.residency import resident

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pagepool.pool.custody import Note
    from pagepool.pool.ledger import Ledger
    from pagepool.pool.log import Log

SLACK_SHARE: Final = 64
"""Room is made for what is needed and one in so many of the budget, so that the next one need not wait."""
LOG_LIMIT: Final = 1 << 20
"""Bytes of log after which it is read even if nothing has to go."""
_MAGIC: Final = b"PPQUEUE\x01"
_HEAD: Final = struct.Struct("<8sQ")
_ENTRY: Final = struct.Struct("<BBB5xQ32s")
_SUM_SIZE: Final = 32
_NAME: Final = re.compile(r"[0-9a-f]{64}")
_SPACE: Final = 16 << 20  # bytes that are evicted at least when a disk is full
_LOOK_S: Final = 0.5  # that objects of no mounted tree are looked for, each time
_UNUSED, _COLD, _ANY = range(3)  # what may go: objects of no mounted tree, what is not in memory, what nobody holds
_P: Final = b"p"  # ends the queue's name of a partial: a key may be equal to a digest


class Evictor:
    """The queue, as one process remembers it, and the files it is about. Every method needs the ledger's lock.

    Args:
        path: the pool's directory.
        ledger: the account.
        log: what happened since.
        tell: writes down what this process still keeps to itself.
        custody: knows who else has objects.
    """

    def __init__(
        self, path: Path, ledger: Ledger, log: Log, tell: Callable[[memoryview[int]], None], custody: NoCustody
    ) -> None:
        self._path = path
        self._cells = ledger.cells
        self._log = log
        self._tell = tell
        self._custody = custody
        self._queue = S3Fifo()
        self._generation = 0

    def make_room(self, size: int) -> bool:
        """Let go of things until `size` more bytes fit the budget.

        Returns:
            whether they do.
        """
        cells = self._cells
        goal = Goal(size, self.effective_budget(), self._custody.floor(cells[cell.BUDGET]))
        if not self._is_met(goal):
            self._custody.probe()
            self.sweep()
        if not self._is_met(goal) and goal.ceiling(self._custody.pinned + self._custody.fresh) >= size:
            self._evict(goal, goal.base // SLACK_SHARE)
        elif self._log.size > LOG_LIMIT:
            self._load()
            self._save()
        return self._is_met(goal)

    def free_disk(self, size: int) -> bool:
        """Let go of things because the disk is full, though the budget is not.

        Returns:
            whether something went.
        """
        self.sweep()
        before, wanted = self._cells[cell.USED], max(size, _SPACE)
        # What turns out to be pinned frees nothing: that is not tried for ever.
        self._evict(Goal(0, max(0, before - wanted), 0, self._custody.pinned + 4 * wanted), 0)
        return self._cells[cell.USED] < before

    def effective_budget(self) -> int:
        """The budget, or what of it leaves the reserve of the file system free."""
        cells = self._cells
        if not cells[cell.RESERVE]:
            return cells[cell.BUDGET]
        found = os.statvfs(self._path)
        left = cells[cell.USED] + found.f_bavail * found.f_frsize - cells[cell.RESERVE]
        return min(cells[cell.BUDGET], max(0, left))

    def _is_met(self, goal: Goal, slack: int = 0) -> bool:
        return goal.is_met(self._cells[cell.USED], self._custody.pinned, self._custody.fresh, slack)

    def sweep(self) -> None:
        """Remove what writers that died have left, and retired files that nobody holds any more."""
        for name in names_in(self._path / TEMPORARY):
            if self._unlink_unheld(self._path / TEMPORARY / name):
                self.uncount(cell.TEMPORARY_BYTES, _charged(name))
        for name in names_in(self._path / RETIRED):
            if self._unlink_unheld(self._path / RETIRED / name):
                self.uncount(cell.RETIRED_BYTES, _charged(name))
        self._custody.probe()
        self._count_pinned()

    def recount(self) -> None:
        """Make the account anew, from counters that are 0 and the files that are there."""
        cells = self._cells
        for _, status in self.walk():
            cells[cell.OBJECTS] += 1
            cells[cell.CONTENT] += status.st_size
            self.count(cell.OBJECT_BYTES, cost(status.st_size))
        for key in self._partial_keys():
            found = MapFile.read_charged(self._path, key)
            if found is None:
                remove_partial(self._path, key)
            else:
                cells[cell.PARTIALS] += 1
                self.count(cell.PARTIAL_BYTES, found)
        for directory, number in ((TEMPORARY, cell.TEMPORARY_BYTES), (RETIRED, cell.RETIRED_BYTES)):
            for name in names_in(self._path / directory):
                self.count(number, _charged(name))
        self.forget()
        self.sweep()

    def walk(self) -> Iterator[tuple[bytes, os.stat_result]]:
        """The whole objects: digest and status, by name. Those that come or go meanwhile may be missed."""
        for directory in names_in(self._path / OBJECTS):
            with os.scandir(self._path / OBJECTS / directory) as found:
                entries = sorted(found, key=lambda entry: entry.name)
            for entry in entries:
                if _NAME.fullmatch(directory + entry.name):
                    with suppress(FileNotFoundError):
                        yield bytes.fromhex(directory + entry.name), entry.stat(follow_symlinks=False)

    def drop_object(self, digest: bytes) -> bool:
        """Remove an object whether or not it is held; held bytes go on being counted.

        Returns:
            False if there is none.
        """
        path = self._path / OBJECTS / object_name(digest)
        try:
            descriptor = os.open(path, READ)
        except FileNotFoundError:
            return False
        note = None
        try:
            size = os.fstat(descriptor).st_size
            with self._custody.names():
                self._custody.unlink(digest)
                if is_held(descriptor):
                    self.retire(path, cost(size))
                else:
                    note = self._custody.note(descriptor, digest, cost(size))
                    path.unlink()
        finally:
            os.close(descriptor)
        self._forget_object(size)
        self._settle(note)
        self._log.append(event.GONE, digest)
        return True

    def retire(self, path: Path, charged: int) -> None:
        """Take a file that is held out of its place, and count it as retired."""
        path.rename(self._path / RETIRED / f"{os.urandom(8).hex()}.{charged}")
        self.count(cell.RETIRED_BYTES, charged)

    def _evict(self, goal: Goal, slack: int) -> None:
        """Evict until a goal is met, and `slack` bytes more fit, as far as that is possible."""
        self._tell(self._cells)
        self._load()
        if not self._take_in_turn(goal, slack) and not self._is_met(goal):
            self._complete()
            self._take_in_turn(goal, slack)
        self._save()

    def _take_in_turn(self, goal: Goal, slack: int) -> bool:
        """Evict what is missed least first. False if not all could be had."""
        if not self._custody.careful:
            return self._take(self._queue, goal, slack, _ANY)
        until = time.monotonic() + _LOOK_S
        # Who publishes waits meanwhile. What is not looked at comes to the front of the queue in time.
        unused = self._queue.split(
            lambda name: len(name) > 32 or (time.monotonic() < until and not self._custody.in_use(name))
        )
        try:
            done = self._take(unused, goal, slack, _UNUSED)
        finally:
            self._queue.merge(unused)
        if done or self._is_met(goal):
            return done
        # Evicting what an overlay merely remembers would free nothing: it is asked to forget it before.
        self._custody.release()
        self._count_pinned()
        return any(self._take(self._queue, goal, slack, which) for which in (_COLD, _ANY))

    def _take(self, queue: S3Fifo, goal: Goal, slack: int, which: int) -> bool:
        """Evict from a queue until a goal is met. False if it does not have enough that may go."""
        cells = self._cells
        spared = 0
        while not self._is_met(goal, slack):
            victim = queue.plan_victim() if spared <= len(queue) else None
            if victim is None:
                return False
            freed = self._drop(victim[0], which)
            if freed is None:
                queue.keep(*victim)
                spared += 1
            elif freed:
                cells[cell.EVICTIONS] += 1
                cells[cell.EVICTED_BYTES] += freed
        return True

    def _drop(self, name: bytes, which: int) -> int | None:
        """Remove what the queue calls `name`: bytes it counted, 0 if it was gone before, None if it has to stay."""
        if len(name) > 32:
            return self._drop_partial(name[:32])
        path = self._path / OBJECTS / object_name(name)
        try:
            descriptor = os.open(path, READ)
        except FileNotFoundError:
            return 0
        try:
            with self._custody.names():
                if not self._may_go(name, descriptor, which):
                    return None
                size = os.fstat(descriptor).st_size
                self._custody.unlink(name)
                note = self._custody.note(descriptor, name, cost(size))
                path.unlink()
        finally:
            os.close(descriptor)
        self._forget_object(size)
        self._settle(note)
        return cost(size)

    def _may_go(self, digest: bytes, descriptor: int, which: int) -> bool:
        """Whether an object may be evicted. If so it stays locked against new holders until it is closed."""
        if is_locked(descriptor):
            return False
        status = os.fstat(descriptor)
        age = self._custody.second_name(digest, status.st_ino) if status.st_nlink > 1 else None
        if status.st_nlink > (1 if age is None else 2):
            return False
        if age is not None and (which != _ANY or age < self._custody.fresh_s):
            return False
        return which != _COLD or not resident(descriptor)

    def _forget_object(self, size: int) -> None:
        self.uncount(cell.OBJECT_BYTES, cost(size))
        self._cells[cell.OBJECTS] -= 1
        self._cells[cell.CONTENT] -= size

    def _settle(self, note: Note | None) -> None:
        """Count a file that lost its last name if somebody has it in use nevertheless."""
        if self._custody.settle(note):
            self._count_pinned()

    def _count_pinned(self) -> None:
        """Have the account agree with custody, if there is one: the owner's process knows, others leave it as it is."""
        if self._custody.careful:
            pinned, before = self._custody.pinned, self._cells[cell.PINNED_BYTES]
            self._cells[cell.PINNED_BYTES] = pinned
            self._cells[cell.USED] += pinned - before

    def _drop_partial(self, key: bytes) -> int | None:
        path = self._path / PARTIAL / f"{key.hex()}.data"
        try:
            descriptor = os.open(path, READ)
        except FileNotFoundError:
            return 0
        try:
            if is_held(descriptor):
                return None
            freed = MapFile.read_charged(self._path, key) or 0
            remove_partial(self._path, key)
        finally:
            os.close(descriptor)
        self.uncount(cell.PARTIAL_BYTES, freed)
        self._cells[cell.PARTIALS] -= 1
        return freed

    def drop_partials(self) -> None:
        """Remove all objects that are being filled, but for those that somebody has open."""
        for key in self._partial_keys():
            if self._drop_partial(key):
                self._log.append(event.GONE, key)

    def _partial_keys(self) -> list[bytes]:
        found = {name.partition(".")[0] for name in names_in(self._path / PARTIAL)}
        return sorted(bytes.fromhex(name) for name in found if _NAME.fullmatch(name))

    def _complete(self, known: frozenset[bytes] = frozenset()) -> None:
        """Put into the queue what is in the pool and not in the queue, but for what is known."""
        for digest, status in self.walk():
            if digest not in self._queue and digest not in known:
                self._queue.insert(digest, cost(status.st_size))
        for key in self._partial_keys():
            if key + _P not in self._queue and key not in known:
                self._queue.insert(key + _P, MapFile.read_charged(self._path, key) or 0)

    def _load(self) -> None:
        """Bring the queue up to date."""
        records = list(self._log.read())
        if self._generation != self._cells[cell.GENERATION] or not self._generation:
            saved = self._read()
            self._queue = S3Fifo() if saved is None else saved
            if saved is None:
                # What the log does not know is older than what it knows.
                self._complete(frozenset(name for what, _, name in records if what in (event.OBJECT, event.PARTIAL)))
        queue = self._queue
        for what, size, name in records:
            if what == event.ACCESS:
                queue.access(name)
                queue.access(name + _P)
            elif what == event.OBJECT:
                queue.insert(name, size)
            elif what == event.PARTIAL:
                queue.insert(name + _P, size)
            else:
                queue.remove(name)
                queue.remove(name + _P)

    def _read(self) -> S3Fifo | None:
        try:
            raw = (self._path / QUEUE).read_bytes()
        except FileNotFoundError:
            return None
        body = raw[:-_SUM_SIZE]
        if len(body) < _HEAD.size or blake3_raw(body) != raw[-_SUM_SIZE:]:
            return None
        magic, generation = _HEAD.unpack_from(body)
        if magic != _MAGIC or generation != self._cells[cell.GENERATION]:
            return None
        records = _ENTRY.iter_unpack(body[_HEAD.size :])
        return S3Fifo(Entry(queue, uses, size, name + _P * kind) for queue, uses, kind, size, name in records)

    def _save(self) -> None:
        generation = self._cells[cell.GENERATION] + 1
        body = bytearray(_HEAD.pack(_MAGIC, generation))
        for queue, uses, size, name in self._queue.entries():
            body += _ENTRY.pack(queue, uses, len(name) > 32, size, name[:32])
        with suppress(OSError):  # on a full disk it is lost, which `_complete` makes good
            replace(self._path, QUEUE, bytes(body) + blake3_raw(body), durable=False, mode=0o600)
        self._log.clear()
        self._generation = self._cells[cell.GENERATION] = generation

    def forget(self) -> None:
        """Begin with an empty queue: it is completed when something has to go."""
        self._queue = S3Fifo()
        self._log.clear()
        self._generation = 0
        self._cells[cell.GENERATION] += 1

    def _unlink_unheld(self, path: Path) -> bool:
        """Remove a file unless somebody holds it. False if it is held or gone."""
        try:
            descriptor = os.open(path, READ)
        except FileNotFoundError:
            return False
        try:
            if is_held(descriptor):
                return False
            note = self._custody.note(descriptor, b"", _charged(path.name)) if path.parent.name == RETIRED else None
            path.unlink()
        finally:
            os.close(descriptor)
        self._custody.settle(note)
        return True

    def count(self, number: int, charged: int) -> None:
        """Bytes came, of the kind that a counter is about."""
        self._cells[number] += charged
        self._cells[cell.USED] += charged

    def uncount(self, number: int, charged: int) -> None:
        """Bytes went."""
        self._cells[number] -= charged
        self._cells[cell.USED] -= charged


def _charged(name: str) -> int:
    """What a file in `tmp/` or `retired/` counts: its name says so, or it is none of the pool's."""
    digits = name.rpartition(".")[2]
    return int(digits) if digits.isdecimal() else 0
