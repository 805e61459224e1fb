"""Repair a store: check it, mend what the check has found, and check it again.

May run beside a service, but for a database whose own pages are damaged: that is replaced as a whole (`salvage`), and
nobody may have it open meanwhile. Each change is one transaction that looks again at what it changes; what is taken out
is kept in the quarantine first. So a repair that is ended at any moment can be begun again.

Rounds: what one record is repaired from may itself come to be repaired only in the next one.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pagepool.errors import BusyError, CorruptError
from pagepool_service.repair.blobs import repair_blobs, repair_jobs
from pagepool_service.repair.catalogue import (
    repair_leases,
    repair_links,
    repair_manifests,
    repair_referrers,
    repair_rest,
    repair_tags,
)
from pagepool_service.repair.context import Action, Context, mend_bits
from pagepool_service.repair.earlier import bring_back, taken_out
from pagepool_service.repair.frames import repair_frames
from pagepool_service.repair.layers import repair_layers, repair_objects
from pagepool_service.repair.quarantine import Quarantine
from pagepool_service.repair.salvage import salvage
from pagepool_service.repair.work import count_totals, do_work, repair_totals
from pagepool_service.store.collect.collector import lock_collection
from pagepool_service.store.fsck import Report, check_store
from pagepool_service.store.locking import lock_data
from pagepool_service.store.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from pagepool.digest import Digest
    from pagepool.image import Limits
    from pagepool_service.inflate import InflateLimits
    from pagepool_service.repair.sources import Source
    from pagepool_service.store.checks import Message

_MOST_ROUNDS = 100  # fsck lists a thousand problems of a kind at a time


@dataclass(slots=True)
class Repaired:
    """What a repair did.

    Args:
        before: what fsck found first.
        after: what fsck finds now; the same as `before` after a dry run.
        actions: what was done, or would be.
        quarantine: where what was taken out is kept; None if nothing was.
        live: whether a service was running.
        look_again: whether the last check may have found what is not so any more.
    """

    before: Report
    after: Report
    actions: list[Action] = field(default_factory=list)
    quarantine: Path | None = None
    live: bool = False
    look_again: bool = False

    @property
    def clean(self) -> bool:
        """Whether everything that was damaged is as it was before."""
        return self.after.clean and not any(action.outcome == "quarantined" for action in self.actions)


@dataclass(frozen=True, slots=True)
class Plan:
    """How to repair.

    Args:
        sources: places that may have content.
        cache: directory of the service's pool.
        limits: of layers that are read again while no service runs: what the service would not take, and what it has
            taken. None for the usual ones.
        quick: look for damage without reading content.
        dry_run: change nothing.
        watch: sees the messages of the checks.
        tell: told what is being done otherwise.
    """

    sources: Sequence[Source] = ()
    cache: Path | None = None
    limits: tuple[Limits, InflateLimits] | None = None
    quick: bool = False
    dry_run: bool = False
    watch: Callable[[Message], None] | None = None
    tell: Callable[[str], None] = lambda _: None


def repair_store(data: Path, plan: Plan) -> Repaired:
    """Repair a data directory. Blocks, for as long as reading all of it takes, at least once.

    Raises:
        StoreFormatError: it is not a data directory.
        BusyError: pages of the database are damaged, which can only be repaired while no service runs.
        StoreFullError, ReadOnlyError: the store cannot be written to; what was done so far is whole.
    """
    with _locked(data) as live, _uncollected(data, plan):
        report = check_store(data, quick=plan.quick, watch=plan.watch)
        done = Repaired(report, report, live=live)
        quarantine = Quarantine(data)
        for number in range(_MOST_ROUNDS):
            if done.after.clean:
                break
            actions = _round(data, plan, done, quarantine, last=number == _MOST_ROUNDS - 1)
            done.actions += actions
            if plan.dry_run or not (actions or done.look_again):
                break
            done.look_again = False
            found, done.after = done.after, check_store(data, quick=plan.quick, watch=plan.watch)
            if done.after.problems == found.problems:
                break
        if done.after.clean and plan.sources and (earlier := taken_out(data)):
            _bring_back(data, plan, done, quarantine, earlier)
        done.quarantine = quarantine.path if quarantine.is_used else None
    return done


def _bring_back(data: Path, plan: Plan, done: Repaired, quarantine: Quarantine, blobs: set[Digest]) -> None:
    """Look once more for what repairs have taken out; this one has asked the same places for its own."""
    acted = {action.name for action in done.actions}
    blobs = {digest for digest in blobs if str(digest) not in acted}
    plan.tell("looking for what earlier repairs have taken out")
    with Store.open(data) as store:
        context = Context(store, (), quarantine, plan.sources, plan.cache, plan.dry_run)
        bring_back(context, blobs)
        do_work(context, live=done.live, limits=plan.limits, tell=plan.tell)
    done.actions += context.actions
    if context.actions and not plan.dry_run:
        done.after = check_store(data, quick=plan.quick, watch=plan.watch)


def _round(data: Path, plan: Plan, done: Repaired, quarantine: Quarantine, *, last: bool) -> list[Action]:
    problems = done.after.problems
    if any(problem.kind == "database" for problem in problems):
        return _replace_database(data, plan, done, quarantine)
    with Store.open(data) as store:
        context = Context(store, problems, quarantine, plan.sources, plan.cache, plan.dry_run, tell=plan.tell)
        try:
            _mend(context, plan, live=done.live, last=last)
            done.look_again = context.look_again
        except CorruptError as error:
            if error.kind != "database":
                raise
        else:
            return context.actions
    # A page that only a writer comes to, as those of the list of free pages.
    done.actions += context.actions
    return _replace_database(data, plan, done, quarantine)


def _replace_database(data: Path, plan: Plan, done: Repaired, quarantine: Quarantine) -> list[Action]:
    if done.live:
        raise BusyError(
            f"pages of the database in {data / 'store'} are damaged, and it can only be repaired while no service "
            "runs: stop the service, and run this again"
        )
    if any(action.kind == "database" for action in done.actions):
        return []  # that did not help, and will not help again
    return salvage(data, quarantine, dry_run=plan.dry_run, tell=plan.tell)


def _mend(context: Context, plan: Plan, *, live: bool, last: bool) -> None:
    """Everything, in this order: what others are repaired from comes first."""
    mend_bits(context)
    repair_totals(context)
    repair_rest(context)
    for repair in (repair_frames, repair_objects, repair_layers, repair_manifests, repair_blobs, repair_links):
        plan.tell(repair.__name__.replace("_", "ing ", 1))
        repair(context)
    repair_tags(context)
    repair_referrers(context)
    repair_jobs(context)
    do_work(context, live=live, limits=plan.limits, tell=plan.tell)
    repair_leases(context, missing=last or not context.actions)
    count_totals(context)


@contextmanager
def _uncollected(data: Path, plan: Plan) -> Iterator[None]:
    """Have no collection run: it takes what nothing leads to, which may be what a record that is damaged led to.

    One that runs is waited for.
    """
    if plan.dry_run or not (data / "store" / "data.mdb").exists():
        yield
        return
    plan.tell("waiting until no collection runs")
    with lock_collection(data, wait=True):
        yield


@contextmanager
def _locked(data: Path) -> Iterator[bool]:
    """Hold the lock of a data directory, so that no service starts. Yields whether one is running already."""
    try:
        fd = lock_data(data, read_only=False) if (data / "store" / "data.mdb").exists() else None
    except BusyError:
        yield True
        return
    try:
        yield False
    finally:
        if fd is not None:
            os.close(fd)
