"""Everything that is seen, put together for one worker; and the samples that the first one takes."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from pagepool.errors import PagepoolError
from pagepool_service.seeing.contents import ContentsCache
from pagepool_service.seeing.figures import Figures
from pagepool_service.seeing.history import RINGS, History
from pagepool_service.seeing.sharing import SharingIndex
from pagepool_service.treecache import TreeCache

if TYPE_CHECKING:
    from pagepool.pool import Pool
    from pagepool_service.roster import Roster
    from pagepool_service.seeing.tally import Tally
    from pagepool_service.settings import Settings
    from pagepool_service.store.store import Store

log = logging.getLogger("pagepool.seeing")


class Seeing:
    """What routes ask. Everything blocks; thread-safe.

    Args:
        tally: of all workers; None where nobody counts.
        place: of this worker, from 0: the first keeps the history.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        pool: Pool | None,
        roster: Roster | None = None,
        tally: Tally | None = None,
        place: int = 0,
    ) -> None:
        trees = TreeCache(settings.data / "trees")
        contents = ContentsCache(trees)
        self.figures = Figures(settings, store, pool, trees, contents, roster, tally)
        self.sharing = SharingIndex(store, trees, contents)
        self.history = History(settings.data)
        self._keeps = place == 0 and not settings.read_only
        self._turn = 0

    def is_due(self) -> bool:
        """Whether it is time for a sample. Takes microseconds."""
        return self._keeps and int(time.time()) // RINGS["hour"].step_s != self._turn

    def sample(self) -> None:
        """Take a sample. What cannot be looked at is tried at the next turn."""
        now = time.time()
        self._turn = int(now) // RINGS["hour"].step_s
        try:
            self.history.add(now, self.figures.sample())
        except (PagepoolError, OSError) as error:
            log.warning("no sample for the history: %s", error)
