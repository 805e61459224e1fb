"""The eviction queue, alone: against a plain set of what is in it, and on recorded reads of images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pagepool.pool.policy import Goal, S3Fifo
from tests.bench.eviction import Recording, interleave, simulate
from tests.bench.policies import Arc, Fifo, Lru, Sieve, TwoQueues

if TYPE_CHECKING:
    from tests.bench.policies import Policy

_NAMES = st.integers(0, 30).map(lambda number: number.to_bytes(2, "little"))


class QueueMachine(RuleBasedStateMachine):
    """Whatever happens in whatever order, the queue knows exactly what is in it."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = S3Fifo()
        self.sizes: dict[bytes, int] = {}

    @rule(name=_NAMES, size=st.integers(0, 100))
    def insert(self, name: bytes, size: int) -> None:
        """One comes, or has another size."""
        self.queue.insert(name, size)
        self.sizes[name] = size

    @rule(name=_NAMES)
    def access(self, name: bytes) -> None:
        """One is used, which need not be there."""
        self.queue.access(name)

    @rule(name=_NAMES)
    def remove(self, name: bytes) -> None:
        """One goes, which need not be there."""
        self.queue.remove(name)
        self.sizes.pop(name, None)

    @rule(keep=st.booleans())
    def evict(self, keep: bool) -> None:
        """The queue chooses something that is there, with its size; it may have to take it back."""
        victim = self.queue.plan_victim()
        assert (victim is None) == (not self.sizes)
        if victim is not None:
            assert self.sizes[victim[0]] == victim[1]
            if keep:
                self.queue.keep(*victim)
            else:
                del self.sizes[victim[0]]

    @rule(modulus=st.integers(1, 4), evicted=st.integers(0, 5), keep=st.booleans())
    def evict_of_some(self, modulus: int, evicted: int, keep: bool) -> None:
        """A part of what is there is taken out, something of it goes, and the rest is put back."""
        before = {entry.name: entry for entry in self.queue.entries() if entry.queue < 2}
        part = self.queue.split(lambda name: name[0] % modulus == 0)
        assert {entry.name: entry for entry in [*self.queue.entries(), *part.entries()] if entry.queue < 2} == before
        for _ in range(evicted):
            victim = part.plan_victim()
            if victim is None:
                break
            assert victim[0][0] % modulus == 0
            if keep:
                part.keep(*victim)
            else:
                del self.sizes[victim[0]]
        self.queue.merge(part)

    @rule()
    def save(self) -> None:
        """What was saved and read back goes on in the same way."""
        entries = list(self.queue.entries())
        self.queue = S3Fifo(entries)
        assert list(self.queue.entries()) == entries

    @precondition(lambda self: not self.sizes)
    @rule()
    def nothing_left(self) -> None:
        """Nothing can go."""
        assert self.queue.plan_victim() is None

    @invariant()
    def knows_what_is_there(self) -> None:
        """Names, sizes, and their sum."""
        assert {e.name: e.size for e in self.queue.entries() if e.queue < 2} == self.sizes
        assert len(self.queue) == len(self.sizes)
        assert self.queue.size == sum(self.sizes.values())
        assert all(name in self.queue for name in self.sizes)


TestQueue = QueueMachine.TestCase


def test_a_goal() -> None:
    """What is bound leaves room for the floor, beyond the budget if need be; what turns out to be bound ends it."""
    goal = Goal(10, 100, 20)
    assert goal.is_met(90, 0, 0)
    assert not goal.is_met(91, 0, 0)
    assert not goal.is_met(90, 0, 0, slack=1)
    assert not goal.is_met(91, 40, 40)
    assert goal.is_met(170, 100, 60)
    assert not goal.is_met(171, 100, 60)
    assert not Goal(101, 100, 0).is_met(0, 0, 0)
    assert Goal(100, 100, 0).is_met(0, 0, 0, slack=10)
    assert Goal(0, 50, 0, most_pinned=30).is_met(100, 31, 0)


def test_a_scan_passes_through() -> None:
    """What was used twice is still there after ten times the budget was read once."""
    queue = S3Fifo()
    for number in range(50):
        queue.insert(number.to_bytes(2, "little"), 1)
        queue.access(number.to_bytes(2, "little"))
    for number in range(1000, 2000):
        queue.insert(number.to_bytes(2, "little"), 1)
        while queue.size > 100:
            assert queue.plan_victim() is not None
    assert all(number.to_bytes(2, "little") in queue for number in range(50))


def test_it_is_better_than_lru_on_recorded_reads() -> None:
    """At a budget of a tenth, with and without scans; the others are there to compare with."""
    recording = Recording.read()
    for scan_share in (0.0, 0.05):
        reads = list(interleave(recording, 100, 7, scan_share))
        budget = sum(recording.costs[number] for number in set(reads)) // 10
        policies: list[Policy] = [S3Fifo(), Lru(), Fifo(), Sieve(), TwoQueues(budget), Arc(budget)]
        ours, lru, *others = (simulate(policy, reads, recording.costs, budget) for policy in policies)
        assert ours.reads > lru.reads
        assert ours.bytes > lru.bytes
        assert all(0 < other.reads < 1 for other in others)
