"""Walk a table from its first key to its last, in short transactions, while others may write.

A walk sees every record that is there all the time; one that comes or goes meanwhile it may see or miss. What is
visited within one call of the visitor is of one snapshot.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pagepool.errors import CorruptError
from pagepool_service.store.checks.naming import name_record
from pagepool_service.store.environment import CHECKSUM_SIZE, checksum

if TYPE_CHECKING:
    from collections.abc import Callable

    from pagepool_service.store.checks.context import Context
    from pagepool_service.store.environment import Environment, Reader, Table

# A transaction pins every page that is freed while it lasts.
_BATCH_S = 0.1


def walk_values(
    env: Environment, table: Table, visit: Callable[[Reader, bytes, memoryview], bool | None], *, prefix: bytes = b""
) -> int:
    """Visit every record's value as it lies there, with its checksum, unchecked.

    Args:
        visit: called with the transaction, the key and the value, a view that dies with the transaction; it
            returns True to have the next record visited in a new transaction.

    Returns:
        how many records there were.

    Raises:
        CorruptError: the keys are not in order, so the table's pages are damaged.
    """
    seen = 0
    start: bytes | None = prefix
    while start is not None:
        until = time.monotonic() + _BATCH_S
        with env.read() as txn:
            previous = None
            for key, value in txn.scan(table, prefix, start=start, check=False):
                if key < start or (previous is not None and key <= previous):
                    raise CorruptError("database", table.label, "the keys of the table are not in order")
                previous = key
                seen += 1
                if visit(txn, key, value) or time.monotonic() > until:
                    break
            else:
                return seen
        start = previous + b"\0"
    return seen


def walk(context: Context, table: Table, visit: Callable[[Reader, bytes, memoryview], None] | None = None) -> None:
    """Visit every record's payload, once its checksum was found right, as a stage of the check.

    A wrong checksum, and a CorruptError from the visitor, are reported under the record's name.
    """
    findings = context.findings
    with context.env.read() as txn:
        findings.stage(table.label.replace("_", " "), txn.table_bytes(table))

    def check(txn: Reader, key: bytes, value: memoryview) -> None:
        findings.advance(len(value))
        payload = value[:-CHECKSUM_SIZE]
        if len(value) < CHECKSUM_SIZE or checksum(table, key, payload) != value[-CHECKSUM_SIZE:]:
            findings.problem(*name_record(table, key), "its checksum does not match its bytes")
            return
        if visit is None:
            return
        try:
            visit(txn, key, payload)
        except CorruptError as error:
            findings.problem(*name_record(table, key), error.reason)

    seen = context.seen[table.label] = walk_values(context.env, table, check)
    findings.count(table.label.replace("_", " "), seen)
