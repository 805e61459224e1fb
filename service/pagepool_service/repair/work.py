"""The work that a repair has queued: done here while no service runs, else waited for; and the totals."""

from __future__ import annotations

import time
from dataclasses import fields
from typing import TYPE_CHECKING

from pagepool.errors import BusyError, CorruptError
from pagepool_service.maintenance import Maintenance
from pagepool_service.store.environment import CHECKSUM_SIZE, Table
from pagepool_service.store.recount import recount_totals
from pagepool_service.store.schema import Job
from pagepool_service.store.totals import Totals

if TYPE_CHECKING:
    from collections.abc import Callable

    from pagepool.digest import Digest
    from pagepool.image import Limits
    from pagepool_service.inflate import InflateLimits
    from pagepool_service.repair.context import Context
    from pagepool_service.store.environment import Reader, Writer
    from pagepool_service.store.store import Store

_LOOK_S = 0.2
_IDLE_S = 60.0  # without any job done: no service does them
_TRIES = 5


def do_work(
    context: Context,
    *,
    live: bool,
    limits: tuple[Limits, InflateLimits] | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> None:
    """Have the queued blobs read. Blocks until that is done.

    Args:
        live: a service runs, whose maintenance does it.
        limits: of layers, where none does; None for the usual ones.
        tell: told what is waited for.

    Raises:
        BusyError: the service does no work.
    """
    if not context.jobs or context.dry_run:
        return
    claims, growth = limits or (None, None)
    maintenance = Maintenance(context.store, limits=claims, inflate_limits=growth)
    deadline = time.monotonic() + _IDLE_S
    left = _waiting(context.store, context.jobs)
    while left:
        tell(f"reading {len(left)} blobs again")
        if live or not maintenance.run_one():
            time.sleep(_LOOK_S)
        before, left = left, _waiting(context.store, context.jobs)
        if left != before:
            deadline = time.monotonic() + _IDLE_S
        elif time.monotonic() > deadline:
            raise BusyError(f"{len(left)} blobs wait to be read again by the service, which does not: see its log")


def _waiting(store: Store, blobs: set[Digest]) -> set[tuple[Digest, bytes]]:
    """The jobs on some blobs, as they are now."""
    found: set[tuple[Digest, bytes]] = set()
    with store.env.read() as txn:
        for key, value in txn.scan(Table.JOBS, check=False):
            try:
                job = Job.decode(key, value[:-CHECKSUM_SIZE])
            except CorruptError:
                continue
            if job.blob in blobs:
                found.add((job.blob, bytes(value)))
    return found


def repair_totals(context: Context) -> None:
    """Count the totals anew if they are wrong. While they cannot be read nobody can store anything: this is first."""
    wrong = bool(context.names("totals")) or "totals" in context.names("meta")
    try:
        with context.env.read() as txn:
            Totals.load(txn)
    except CorruptError:
        wrong = True
    if wrong and context.repaired("totals", "all", "they were counted anew", lambda _: None):
        context.recount = True
        count_totals(context)


def count_totals(context: Context) -> None:
    """Count the totals anew if something was done that they do not follow.

    It is done in a snapshot. Where others write all the time, what they have added since is added.
    """
    if not context.recount or context.dry_run:
        return
    known = _known(context)
    for tries_left in reversed(range(_TRIES)):
        with context.env.read() as reader:
            version, before, totals = reader.version, _loaded(reader), recount_totals(reader, known)
        with context.env.write() as txn:
            # A write transaction has the number that it will commit: one more than the last one.
            if txn.version - 1 == version:
                _store(context, txn, totals)
                return
            now = _loaded(txn)
            if not tries_left and before is not None and now is not None:
                _store(context, txn, _moved(totals, before, now))
                return
    with context.env.write() as txn:  # nobody can say what was added: they are damaged
        _store(context, txn, recount_totals(txn, known))


def _moved(totals: Totals, before: Totals, now: Totals) -> Totals:
    """Totals of a snapshot, with what the record says has come to it since."""
    counted = {
        name: max(getattr(totals, name), getattr(now, name))
        if name.startswith("next_")
        else getattr(totals, name) + getattr(now, name) - getattr(before, name)
        for name in (field.name for field in fields(Totals))
    }
    return Totals(**counted)


def _store(context: Context, txn: Writer, totals: Totals) -> None:
    totals.store(txn)
    context.recount = False


def _known(context: Context) -> Totals:
    """The numbers that are known to have been used: what damaged totals say is not believed."""
    with context.env.read() as txn:
        return _loaded(txn) or Totals()


def _loaded(txn: Reader) -> Totals | None:
    """The totals as they are recorded; None if they are damaged."""
    try:
        return Totals.load(txn)
    except CorruptError:
        return None
