"""The running totals, and the tables' own counts, against what this check counted: when nobody wrote meanwhile."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

from pagepool.errors import CorruptError
from pagepool_service.store.environment import Table
from pagepool_service.store.totals import Totals

if TYPE_CHECKING:
    from pagepool_service.store.checks.context import Context
    from pagepool_service.store.environment import Reader

_COUNTED = ("frames", "extents", "files_plain", "files_stored", "opaque_plain", "opaque_stored", "recipes_stored",
            "dead_bytes")  # fmt: skip


def check_totals(context: Context) -> None:
    """Compare the totals that are kept with those counted."""
    context.findings.stage("totals", 0)
    if context.selection is not None:
        return
    with context.env.read() as txn:
        # Asked of this snapshot: between a look at the store's version and the snapshot someone may write.
        reason = _why_not(context, txn)
        if reason:
            context.findings.note(f"the totals were not compared: {reason}")
            return
        try:
            kept = Totals.load(txn)
        except CorruptError as error:
            context.findings.problem("totals", error.name, error.reason)
            return
        for label, seen in context.seen.items():
            entries = txn.count(Table[label.upper()])
            if entries != seen:
                reason = f"{entries} records are counted in it, and {seen} can be found"
                context.findings.problem("database", label, reason)
    for field in fields(Totals):
        have, counted = getattr(kept, field.name), getattr(context.recounted, field.name)
        wrong = have != counted if field.name in _COUNTED else have < counted
        if wrong:
            context.findings.problem("totals", field.name, f"{have} is kept, {counted} was counted")


def _why_not(context: Context, txn: Reader) -> str:
    if context.findings.problems or not context.complete:
        return "there is damage"
    if txn.version != context.version:
        return "the store was written to meanwhile"
    return ""
