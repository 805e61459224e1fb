"""Remove frames that nothing needs, and move what lives out of those that are mostly dead.

First every frame's head is looked at, so that it is known how much is dead where; then frames are taken from the
emptiest on, until what is dead in the others is little beside what lives (`plan_threshold`). Living extents are
compared with their digests, and go to new frames, together with those of other frames; the old frames, the index and
the totals change in the same transaction. What is dead in a frame that stays keeps its place in the index: who brings
it again finds it.

A frame that is damaged is left as it is: fsck names it, and the reads that meet it.
"""

from __future__ import annotations

import time
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from pagepool.errors import CorruptError
from pagepool.extents import FRAME_SIZE, EncodedFrame, Encoding, Frame, FrameHead, Role, check_extent, encode_frame
from pagepool_service.store.environment import CHECKSUM_SIZE, Table
from pagepool_service.store.schema import Location, u64
from pagepool_service.store.totals import Totals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from pagepool_service.store.collect.gate import Gate, Turn
    from pagepool_service.store.collect.marking import Marker
    from pagepool_service.store.collect.report import Report
    from pagepool_service.store.environment import Environment, Reader, Writer
    from pagepool_service.store.extents import ExtentStore

_SNAPSHOT_S: Final = 0.05
_STEPS: Final = 20  # classes of frames, by which part of them is dead
_MOST_EXTENTS: Final = 256  # of the frames of one transaction: each is a write to the index, under the lock
TOLERATED: Final = 0.02
"""Of what lives, so much may be dead beside it in frames that are left as they are."""


def plan_threshold(dead: Sequence[int], live: int, tolerated: float = TOLERATED) -> int:
    """From which class of frames on to move what lives.

    Args:
        dead: stored bytes that are dead in the frames of each class, the one with the smallest dead part first.
        live: stored bytes that live.

    Returns:
        the lowest class whose frames are compacted; the number of classes if none are.
    """
    allowed, left = live * tolerated, 0
    for step, size in enumerate(dead):
        left += size
        if left > allowed:
            return step
    return len(dead)


@dataclass(slots=True)
class _Plan:
    """What a look at all heads found: frames with something dead in them."""

    numbers: array[int] = field(default_factory=lambda: array("Q"))
    classes: bytearray = field(default_factory=bytearray)
    dead: list[int] = field(default_factory=lambda: [0] * (_STEPS + 1))
    dead_plain: list[int] = field(default_factory=lambda: [0] * (_STEPS + 1))
    live: int = 0


@dataclass(slots=True)
class _Group:
    """Frames whose living extents go to one new frame."""

    role: Role
    sources: list[tuple[int, bytes, set[bytes]]] = field(default_factory=list)  # number, checksum, what lives
    extents: list[tuple[bytes, bytes]] = field(default_factory=list)
    size: int = 0
    touched: int = 0  # extents of the sources, dead or alive
    compress: bool = False


class FrameSweep:
    """Sweeps the frames below a limit.

    Args:
        gate: makes the write transactions; None for a dry run.
        limit: frames from this number on are left alone.
    """

    def __init__(
        self, env: Environment, extents: ExtentStore, marker: Marker, gate: Gate | None, report: Report, limit: int
    ) -> None:
        self._env = env
        self._extents = extents
        self._marker = marker
        self._gate = gate
        self._report = report
        self._limit = limit
        with env.read() as txn:
            self._misplaced = Totals.load(txn).dead_bytes > 0  # some extents are in frames that the index does not name

    def run(self, watch: Callable[[int], None] = lambda _: None) -> None:
        """Sweep them; `watch` is told how many more frames were dealt with."""
        plan = self._look()
        threshold = plan_threshold(plan.dead[:_STEPS], plan.live)
        self._report.dead_kept = sum(plan.dead_plain[:threshold])
        self._report.kept["frames"] += sum(1 for step in plan.classes if step < threshold)
        if self._gate is None:
            self._forecast(plan, threshold)
            return
        wholly = [number for number, step in zip(plan.numbers, plan.classes, strict=True) if step == _STEPS]
        for start in range(0, len(wholly), 1000):
            self._gate.each(wholly[start : start + 1000], self._drop_dead)
            watch(len(wholly[start : start + 1000]))
        groups: dict[Role, _Group] = {}
        for number, step in zip(plan.numbers, plan.classes, strict=True):
            if threshold <= step < _STEPS:
                self._gather(number, groups)
                watch(1)
        for group in groups.values():
            self._move(group)

    # -- looking ---------------------------------------------------------------------------------------------

    def _look(self) -> _Plan:
        plan = _Plan()
        start = u64(1)
        while True:
            until = time.monotonic() + _SNAPSHOT_S
            last = start
            with self._env.read() as txn:
                for key, value in txn.scan(Table.FRAMES, start=start, check=False):
                    number = int.from_bytes(key, "big")
                    if number >= self._limit:
                        return plan
                    self._look_at(txn, number, value, plan)
                    last = key
                    if time.monotonic() > until:
                        break
                else:
                    return plan
            start = last + b"\0"

    def _look_at(self, txn: Reader, number: int, value: memoryview, plan: _Plan) -> None:
        try:
            head, _ = FrameHead.decode(value[:-CHECKSUM_SIZE], str(number))
        except CorruptError:
            self._problem(number)
            return
        living = sum(size for digest, size in head.extents if self._lives(txn, digest, number))
        stored = len(value) - CHECKSUM_SIZE
        live = stored * living // head.plain_size if head.plain_size else 0
        plan.live += live
        dead = head.plain_size - living
        if dead:
            step = _STEPS if not living else min(_STEPS - 1, dead * _STEPS // head.plain_size)
            plan.numbers.append(number)
            plan.classes.append(step)
            plan.dead[step] += stored - live
            plan.dead_plain[step] += dead

    def _lives(self, txn: Reader, digest: bytes, number: int) -> bool:
        """Whether an extent is needed, and this is where it is read from."""
        if digest not in self._marker.live:
            return False
        return not (self._misplaced and _is_elsewhere(txn, digest, number))

    def _forecast(self, plan: _Plan, threshold: int) -> None:
        self._report.freed["frames"] += sum(1 for step in plan.classes if step == _STEPS)
        self._report.compacted += sum(1 for step in plan.classes if threshold <= step < _STEPS)
        self._report.frame_bytes += sum(plan.dead[threshold:])

    def _problem(self, number: int) -> None:
        self._report.note_damage(f"frame {number} is damaged, and was left as it is")

    # -- removing --------------------------------------------------------------------------------------------

    def _drop_dead(self, txn: Writer, number: int) -> None:
        """Remove a frame, if there is still nothing in it that is needed."""
        try:
            payload = txn.get(Table.FRAMES, u64(number))
            if payload is None:
                return
            head, _ = FrameHead.decode(payload, str(number))
        except CorruptError:
            self._problem(number)
            return
        if any(digest in self._marker.live and not _is_elsewhere(txn, digest, number) for digest, _ in head.extents):
            return
        totals = Totals.load(txn)
        self._remove(txn, totals, number, head, len(payload))
        totals.store(txn)
        self._report.freed["frames"] += 1

    def _remove(self, txn: Writer, totals: Totals, number: int, head: FrameHead, stored: int) -> None:
        """Take a frame away, and what leads to it."""
        for digest, size in head.extents:
            if _is_at(txn, digest, number):
                txn.delete(Table.EXTENTS, digest)
                self._report.freed["extents"] += 1
            else:
                totals.dead_bytes -= size
        txn.delete(Table.FRAMES, u64(number))
        totals.count_frame(head.role, head.plain_size, stored, len(head.extents), sign=-1)
        self._report.frame_bytes += stored

    # -- compacting ------------------------------------------------------------------------------------------

    def _gather(self, number: int, groups: dict[Role, _Group]) -> None:
        """Put the living extents of a frame to those that are moved together, and move those if they are enough."""
        try:
            with self._env.read() as txn:
                value = txn.get_unchecked(Table.FRAMES, u64(number))
                if value is None:
                    return
                txn.get(Table.FRAMES, u64(number))  # compares the checksum
                head, _ = FrameHead.decode(value[:-CHECKSUM_SIZE], str(number))
                frame = Frame.decode(number, value[:-CHECKSUM_SIZE])
                seen = bytes(value[-CHECKSUM_SIZE:])
                alive = self._alive(txn, frame.index, number)
            for digest in alive:
                offset, size = frame.index[digest]
                check_extent(digest, frame.view[offset : offset + size], f"frame {number}")
        except CorruptError:
            self._problem(number)
            return
        group = groups.setdefault(frame.role, _Group(frame.role))
        if group.touched + len(frame.index) > _MOST_EXTENTS and group.sources:
            self._move(group)
            group = groups[frame.role] = _Group(frame.role)
        group.sources.append((number, seen, alive))
        group.touched += len(frame.index)
        group.compress |= head.encoding is Encoding.ZSTD
        for digest, (offset, size) in frame.index.items():
            if digest in alive:
                group.extents.append((digest, bytes(frame.view[offset : offset + size])))
                group.size += size
        if group.size >= FRAME_SIZE:
            self._move(group)
            del groups[frame.role]

    def _move(self, group: _Group) -> None:
        """Store what lives anew, and remove where it was."""
        assert self._gate is not None
        fresh = encode_frame(group.extents, group.role, compress=group.compress) if group.extents else None
        if self._gate.run(lambda turn: self._replace(turn, group, fresh)):
            self._report.compacted += len(group.sources)

    def _alive(self, txn: Reader, digests: Iterable[bytes], number: int) -> set[bytes]:
        return {one for one in digests if one in self._marker.live and not _is_elsewhere(txn, one, number)}

    def _replace(self, turn: Turn, group: _Group, fresh: EncodedFrame | None) -> bool:
        """The transaction of `_move`. Returns whether all was still as it had been; else nothing was changed."""
        txn = turn.txn
        heads: list[tuple[int, FrameHead, int]] = []
        for number, seen, alive in group.sources:
            value = txn.get_unchecked(Table.FRAMES, u64(number))
            if value is None or value[-CHECKSUM_SIZE:] != seen:
                return False  # compressed once more, or damaged and forgotten: the next cycle looks again
            head, _ = FrameHead.decode(value[:-CHECKSUM_SIZE], str(number))
            if self._alive(txn, (digest for digest, _ in head.extents), number) != alive:
                return False
            heads.append((number, head, len(value) - CHECKSUM_SIZE))
        totals = Totals.load(txn)
        moved = len(group.extents)
        for number, head, stored in heads:
            self._remove(txn, totals, number, head, stored)
        totals.store(txn)
        self._report.freed["extents"] -= moved
        if fresh is not None:
            self._extents.put_frames(txn, [fresh])
            self._report.frame_bytes -= len(fresh.payload)
        return True


def _is_elsewhere(txn: Reader, digest: bytes, number: int) -> bool:
    """Whether the index leads to another frame for an extent.

    One that it does not have at all has lost its record, and has no other place: if it is needed it is not to be lost.
    """
    payload = txn.get(Table.EXTENTS, digest)
    return payload is not None and Location.decode(payload).frame != number


def _is_at(txn: Reader, digest: bytes, number: int) -> bool:
    """Whether the index leads to this frame for an extent. One of its records that is damaged ends the cycle."""
    payload = txn.get(Table.EXTENTS, digest)
    return payload is not None and Location.decode(payload).frame == number
