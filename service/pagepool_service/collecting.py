"""The process that collects what nothing needs any more, when there is enough of it.

Now and then it looks at what has become of the store, by records alone: what the rules of retention would take, and
about how much nothing refers to. If that is worth a cycle it runs one (`store.collect`), which keeps no push and no
read waiting; and after a day in any case, if anything was written since the last one.

It can be killed at any moment: the next look drops what was cut off.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from pagepool.errors import BusyError, CorruptError, ReadOnlyError, StoreFullError
from pagepool_service.allocator import give_back
from pagepool_service.panic import end_at_once
from pagepool_service.store.collect import Collector, Policy, estimate_garbage
from pagepool_service.store.collect.collector import drop_cut_off
from pagepool_service.store.store import Store
from pagepool_service.store.totals import Totals
from pagepool_service.treesweep import sweep_trees

if TYPE_CHECKING:
    from pagepool_service.settings import Settings
    from pagepool_service.store.collect import Report

log = logging.getLogger("pagepool.collect")

_ALWAYS_S = 24 * 3600.0
_LATER_S = 3600.0  # if nobody has written meanwhile: things expire all the same
_LITTLE = 0.05  # of what is stored
_REST = 1.0  # of the time that looking takes: others want the processors, too


def policy_of(settings: Settings) -> Policy:
    """What the settings say of what may go."""
    return Policy(settings.gc_grace_s, settings.gc_untagged_s, settings.gc_keep_tags)


def run(settings: Settings) -> None:
    """Work until the process is ended. Blocks."""
    with Store.open(settings.data, quota_bytes=settings.quota_bytes) as store:
        store.env.on_panic = end_at_once
        if drop_cut_off(store):
            log.info("a collection that was cut off is begun anew when it is due")
        keeper = Keeper(store, settings)
        while True:
            time.sleep(settings.gc_interval_s)
            try:
                keeper.look()
            except (StoreFullError, ReadOnlyError, BusyError) as error:
                log.warning("nothing is collected now: %s", error)
            except CorruptError as error:
                log.error("nothing is collected, since nobody knows what this keeps (pagepool fsck): %s", error)
            store.env.trim()
            give_back()


class Keeper:
    """Decides when to collect, and does."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self._store = store
        self._policy = policy_of(settings)
        self._enough = settings.gc_garbage_bytes
        self._version = -1
        self._ran_s = time.monotonic()
        self._ran_version = -1
        self._looked_s = 0.0

    def look(self) -> Report | None:
        """Collect if it is worth it. Blocks for as long as that takes. Returns what was done; None if it was not.

        Raises:
            CorruptError, BusyError, StoreFullError, ReadOnlyError: see `Collector.run`.
        """
        version, now = self._store.env.version(), time.monotonic()
        if version == self._version and now - self._looked_s < _LATER_S:
            return None
        self._looked_s = now
        late = version != self._ran_version and now - self._ran_s >= _ALWAYS_S
        collector = Collector(self._store, self._policy, rest=_REST)
        if not late and not self._is_worth_it(collector):
            self._version = version
            return None
        report = collector.run()
        report.freed.update(sweep_trees(self._store))
        self._version = self._ran_version = self._store.env.version()
        self._ran_s = time.monotonic()
        _tell(report)
        return report

    def _is_worth_it(self, collector: Collector) -> bool:
        # What is left dead in frames that mostly live is little beside the store, and may be more than is enough.
        with self._store.env.read() as txn:
            little = int(_LITTLE * Totals.load(txn).stored)
        return estimate_garbage(self._store) >= max(self._enough, little) or collector.expires()


def _tell(report: Report) -> None:
    freed = ", ".join(f"{count} {kind}" for kind, count in report.freed.items() if count)
    log.info(
        "collected in %.1f s: %s; %d bytes given back to the file system, the writer's lock held for %.0f ms at most",
        report.seconds,
        freed or "nothing",
        report.punched,
        1000 * report.longest_hold_s,
    )
    for problem in report.problems:
        log.warning("collection: %s", problem)
