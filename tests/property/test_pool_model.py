"""A pool under random use by two openers: in whatever order, bytes are right and the account is exact."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pagepool.errors import StoreFullError
from pagepool.extents import EXTENT_SIZE
from pagepool.pool import Partial, Pool, PoolFile
from tests.pool.helpers import check_account, thing

_THINGS = [thing(number, size) for number, size in enumerate((0, 1, 5000, 70_000, 131_072, 131_073, 400_000, 300_000))]
_WHICH = st.integers(0, len(_THINGS) - 1)
_WHO = st.integers(0, 1)


class PoolMachine(RuleBasedStateMachine):
    """Two openers of one pool; what is held is remembered, since only that may not go."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(dir="/dev/shm"))
        self.pools: list[Pool] = []
        self.held: list[tuple[int, PoolFile, memoryview]] = []
        self.partials: dict[int, Partial] = {}

    @initialize(budget=st.integers(5, 12))
    def begin(self, budget: int) -> None:
        """A budget that holds some, and not all."""
        self.budget = budget * 100_000
        self.pools = [Pool.open(self.directory / "pool", budget=self.budget) for _ in range(2)]

    @rule(who=_WHO, which=_WHICH, hold=st.booleans())
    def put(self, who: int, which: int, hold: bool) -> None:
        """It is kept, or there is no room for it beside what is held."""
        one = _THINGS[which]
        self.keep(which, self.pools[who].put(one.digest, one.data), hold)

    @rule(who=_WHO, which=_WHICH, hold=st.booleans())
    def get(self, who: int, which: int, hold: bool) -> None:
        """It is there, if it is held under its name; else it may be."""
        self.keep(which, self.pools[who].get(_THINGS[which].digest), hold)

    def keep(self, which: int, file: PoolFile | None, hold: bool) -> None:
        """Look at an object, and hold it if that is wanted."""
        if file is None:
            return
        assert file.view == _THINGS[which].data
        if hold:
            self.held.append((which, file, file.view))
        else:
            file.close()

    @rule(who=_WHO, which=_WHICH)
    def remove(self, who: int, which: int) -> None:
        """Whoever holds it."""
        self.pools[who].remove(_THINGS[which].digest)
        assert self.pools[1 - who].get(_THINGS[which].digest) is None

    @rule(who=_WHO, which=st.integers(1, len(_THINGS) - 1), part=st.integers(0, 3))
    def fill(self, who: int, which: int, part: int) -> None:
        """One more extent; the same one again; the last one."""
        one = _THINGS[which]
        try:
            partial = self.partials.get(which) or self.pools[who].partial(one.digest, one.size, one.extents)
            self.partials[which] = partial
            number = part % len(one.parts)
            whole = partial.write(number, one.parts[number])
        except StoreFullError:
            return
        assert partial.has(number)
        start = number * EXTENT_SIZE
        assert partial.view(start, len(one.parts[number])) == one.parts[number]
        assert whole == (not partial.missing(0, len(one.parts)))

    @rule()
    def let_go(self) -> None:
        """Nothing is held any more."""
        for _, file, _ in self.held:
            file.close()
        self.held.clear()
        for partial in self.partials.values():
            partial.close()
        self.partials.clear()

    @rule(who=_WHO)
    def reopen(self, who: int) -> None:
        """One of the openers goes and comes again; what is open stays."""
        if not self.partials:
            self.pools[who].close()
            self.pools[who] = Pool.open(self.directory / "pool", budget=self.budget)

    @invariant()
    def is_right(self) -> None:
        """What is held has its bytes; what is counted is there."""
        for which, _, view in self.held:
            assert view == _THINGS[which].data
        if self.pools:
            check_account(self.directory / "pool", self.pools[0].stats())

    def teardown(self) -> None:
        """Close everything."""
        self.let_go()
        for pool in self.pools:
            pool.close()
        shutil.rmtree(self.directory)


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=15, stateful_step_count=30, deadline=None)
