"""What the store knows of the machine's clock, so that nothing counts as old only because somebody has set it.

Times in records are Unix time, since they outlive boots. That clock is set now and then: by hand, by NTP, when a
machine has no battery, or goes on from a snapshot. How much time has *passed* says another one, which nobody can set
(CLOCK_BOOTTIME), within a boot. `meta` has both as they were at one moment (`clock`), and each difference that was
found between them since: a `Jump`. From these a `Timeline` counts ages:

- Time that a jump forwards has skipped makes nothing older. What counts is what has passed within the boot.
- After a jump backwards what was written before it is of the future, and young until that is over.
- What an order of times that lie in what was skipped backwards, or in the future, says is in doubt.
- Over a boot nobody knows what has passed: there Unix time is believed. But for leases, which nobody could renew
  meanwhile: the time off does not count.

Whoever writes a time that an age is counted from looks first (`note_clock`), in the same transaction. So nothing is
written between two jumps that nobody saw; what was written since one that is seen late counts as younger than it is.

Format: docs/format/store.md.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Final

from pagepool.errors import CorruptError
from pagepool.linux import boot_id
from pagepool_service.store.environment import Table

if TYPE_CHECKING:
    from pagepool_service.store.environment import Environment, Reader, Writer

LONGEST_LEASE_NS: Final = 7 * 24 * 3600 * 10**9
_KEY: Final = b"clock"
_HEAD: Final = struct.Struct(">16sQQ")
_JUMP: Final = struct.Struct(">QQB")
_LEAST_NS: Final = 30 * 10**9  # less is no jump: it is added to the next one
_STALE_NS: Final = 3600 * 10**9
_MOST_JUMPS: Final = 32
_NO_BOOT: Final = bytes(16)


@dataclass(frozen=True, slots=True)
class Moment:
    """A moment.

    Args:
        wall_ns: Unix time, nanoseconds.
        passed_ns: nanoseconds that have passed since some moment of this boot.
        boot: which boot, 16 bytes.
    """

    wall_ns: int
    passed_ns: int
    boot: bytes = _NO_BOOT

    @classmethod
    def now(cls) -> Moment:
        """This one. Takes microseconds."""
        return cls(time.time_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME), _boot())

    def at(self, wall_ns: int) -> Moment:
        """Another one, if nobody sets the clock in between."""
        return replace(self, wall_ns=wall_ns, passed_ns=self.passed_ns + wall_ns - self.wall_ns)


Clock = Callable[[], Moment]


@dataclass(frozen=True, slots=True)
class Jump:
    """That Unix time went from one moment to another, either earlier or later.

    Args:
        rebooted: what passed meanwhile is not known.
    """

    from_ns: int
    to_ns: int
    rebooted: bool = False


@dataclass(frozen=True, slots=True)
class Timeline:
    """Counts ages, as seen from a moment. A value.

    Args:
        now: that moment.
        jumps: before it, in the order in which they were.
    """

    now: Moment
    jumps: tuple[Jump, ...] = ()

    def at(self, now: Moment) -> Timeline:
        """The same as seen from a later moment, with what that says of the clock."""
        before, jumps = self.now, self.jumps
        rebooted = now.boot != before.boot
        expected = before.wall_ns + (0 if rebooted else now.passed_ns - before.passed_ns)
        if rebooted or abs(now.wall_ns - expected) >= _LEAST_NS:
            jumps = (*jumps, Jump(expected, now.wall_ns, rebooted))
        return Timeline(now, _bounded(jumps, now.wall_ns))

    def since_ns(self, age_s: float) -> int:
        """Unix time: what was written before it is older than an age."""
        left = int(age_s * 1e9)
        position = earliest = self.now.wall_ns
        for jump in reversed(self.jumps):
            if jump.rebooted:
                continue
            passed = max(0, position - jump.to_ns)
            if passed >= left:
                break
            left -= passed
            position = jump.from_ns
            earliest = min(earliest, position, jump.to_ns)
        return min(earliest, position - left, self.now.wall_ns - int(age_s * 1e9))

    def lease_end_ns(self, expires_ns: int) -> int:
        """Unix time at which a lease ends whose record says a time: all of it passes while it could be renewed."""
        for jump in self.jumps:
            skipped = jump.to_ns - jump.from_ns
            if skipped <= 0 or expires_ns < jump.from_ns or self.now.wall_ns - jump.to_ns > LONGEST_LEASE_NS:
                continue
            if expires_ns < jump.to_ns:
                expires_ns = jump.to_ns + min(expires_ns - jump.from_ns, LONGEST_LEASE_NS)
            elif skipped <= LONGEST_LEASE_NS and not jump.rebooted:
                # Whether it was renewed before the jump or after it is not known.
                expires_ns += skipped
        return expires_ns

    def is_in_doubt(self, times: Iterable[int]) -> bool:
        """Whether some times may say nothing of what was earlier, and what later."""
        spans = [(jump.to_ns, jump.from_ns) for jump in self.jumps if jump.to_ns < jump.from_ns]
        spans.append((self.now.wall_ns + _LEAST_NS, 1 << 64))
        return any(first <= moment <= last for moment in times for first, last in spans)


def read_timeline(txn: Reader, now: Moment) -> Timeline:
    """What is known in a transaction, and what `now` adds to it.

    Raises:
        CorruptError: the record cannot be read.
    """
    return _seen(_load(txn), now)


def _seen(known: Timeline | None, now: Moment) -> Timeline:
    return Timeline(now) if known is None else known.at(now)


def note_clock(txn: Writer, now: Moment) -> Timeline:
    """Write what is known, if that is more than is written."""
    known = _load(txn)
    found = _seen(known, now)
    if known is None or found.jumps != known.jumps or now.passed_ns - known.now.passed_ns >= _STALE_NS:
        moment = now
        if known is not None and found.jumps == known.jumps:  # less than a jump must not be lost
            moment = replace(now, wall_ns=known.now.wall_ns + now.passed_ns - known.now.passed_ns)
        txn.put(Table.META, _KEY, _encode(Timeline(moment, found.jumps)))
    return found


def watch_clock(env: Environment, now: Moment) -> None:
    """As `note_clock`, in a transaction of its own, and in none if nothing is to be written. Often enough, it finds
    jumps when they happen.

    Raises:
        CorruptError: the record cannot be read.
        StoreFullError, ReadOnlyError: it was not written.
    """
    with env.read() as txn:
        known = _load(txn)
        if known is not None and known.at(now).jumps == known.jumps:
            return
    with env.write() as txn:
        note_clock(txn, now)


@cache
def _boot() -> bytes:
    try:
        return boot_id()
    except (OSError, ValueError):
        return _NO_BOOT


def _bounded(jumps: tuple[Jump, ...], now_ns: int) -> tuple[Jump, ...]:
    """Without those that say nothing any more, and the first ones of too many."""
    kept = [
        jump
        for jump in jumps
        if not jump.rebooted or jump.to_ns < jump.from_ns or now_ns - jump.to_ns <= LONGEST_LEASE_NS
    ]
    return tuple(kept[-_MOST_JUMPS:])


def _load(txn: Reader) -> Timeline | None:
    payload = txn.get(Table.META, _KEY)
    if payload is None:
        return None
    try:
        boot, passed, wall = _HEAD.unpack_from(payload)
        jumps = [Jump(start, end, bool(kind)) for start, end, kind in _JUMP.iter_unpack(payload[_HEAD.size :])]
    except struct.error as error:
        raise CorruptError("meta", _KEY.decode(), f"it cannot be read: {error}") from error
    return Timeline(Moment(wall, passed, boot), tuple(jumps))


def _encode(timeline: Timeline) -> bytes:
    now = timeline.now
    jumps = (_JUMP.pack(max(0, jump.from_ns), max(0, jump.to_ns), jump.rebooted) for jump in timeline.jumps)
    return _HEAD.pack(now.boot, now.passed_ns, max(0, now.wall_ns)) + b"".join(jumps)
