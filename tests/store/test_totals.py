"""The running totals: true after every kind of change, which a full recount shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pagepool.errors import CorruptError
from pagepool_service.store.environment import Table
from pagepool_service.store.fsck import check_store
from pagepool_service.store.statistics import collect_totals
from pagepool_service.store.store import Store
from pagepool_service.store.totals import Totals, take_number
from tests.faults import flip_record, records
from tests.store.helpers import REPOSITORY, gzipped, ingest_all, make_tar, noise, push, text, zstd

if TYPE_CHECKING:
    from pathlib import Path

TAR = make_tar({"a": text(400_000, 1), "b": text(900, 2), "c": noise(200_000, 3)})
NEXT = make_tar({"a": text(400_000, 1), "b": text(900, 2), "d": noise(200_000, 4)})


def test_a_new_store_has_the_defaults(store: Store) -> None:
    with store.env.read() as txn:
        assert Totals.load(txn) == Totals()


def test_numbers_are_taken_one_after_the_other(store: Store) -> None:
    for name in ("frame", "recipe", "job"):
        with store.env.write() as txn:
            assert [take_number(txn, name) for _ in range(3)] == [1, 2, 3]
        with store.env.write() as txn:
            assert take_number(txn, name) == 4


def test_an_aborted_transaction_gives_its_numbers_back(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), store.env.write() as txn:  # noqa: PT012 - the block is what is tested
        take_number(txn, "recipe")
        raise ZeroDivisionError
    with store.env.write() as txn:
        assert take_number(txn, "recipe") == 1


def test_totals_that_were_counted_too_low_keep_nobody_from_writing(store: Store) -> None:
    with store.env.write() as txn:
        totals = Totals.load(txn)
        totals.dead_bytes -= 1
        totals.store(txn)
    with store.env.read() as txn:
        assert Totals.load(txn) == Totals()


def test_damaged_totals_are_corrupt(data: Path) -> None:
    with Store.open(data) as store:
        push(store, b"blob")
    flip_record(data, next(record for record in records(data, Table.META) if record.key == b"totals"), 20)
    with Store.open(data) as store, store.env.read() as txn, pytest.raises(CorruptError, match=b"totals".hex()):
        Totals.load(txn)


def test_totals_are_those_of_a_recount_after_everything(data: Path) -> None:
    """Pushes, second layers, layers that fail, the same tar twice, removals, and damage that was mended."""
    with Store.open(data) as store:
        for blob in (TAR, gzipped(TAR), zstd(TAR), gzipped(NEXT), gzipped(TAR)[:-50], noise(500_000), b"{}", b""):
            push(store, blob)
            ingest_all(store)
        store.registry.delete_blob(REPOSITORY, push(store, noise(300_000, 9)))
        ingest_all(store)
    _assert_recount(data)
    flip_record(data, records(data, Table.FRAMES)[0], 2000)
    with Store.open(data) as store:
        push(store, zstd(NEXT))
        ingest_all(store)
    report = check_store(data)
    assert report.clean, report.problems


def _assert_recount(data: Path) -> None:
    report = check_store(data)
    assert report.clean, report.problems
    assert report.notes == []  # in particular none that the totals were not compared


def test_statistics_add_up(store: Store) -> None:
    for blob in (TAR, gzipped(TAR), gzipped(NEXT), noise(500_000), b"{}"):
        push(store, blob)
    before = collect_totals(store)
    assert before["pending_blobs"] == before["blobs"] == 5
    ingest_all(store)
    figures = collect_totals(store)
    stored = figures["stored"]
    assert isinstance(stored, dict)
    assert sum(stored.values()) == figures["stored_bytes"]
    assert (figures["blobs"], figures["layers"], figures["jobs_waiting"]) == (5, 2, 0)
    assert (figures["pending_blobs"], figures["unmountable_blobs"]) == (0, 2)
    assert figures["plain_bytes"] == len(TAR) + len(NEXT)
    assert figures["file_bytes"] == 2 * (400_000 + 900 + 200_000)
    assert figures["unique_bytes"] == 400_000 + 900 + 2 * 200_000
    assert figures["opaque_copies_bytes"] == len(gzipped(TAR)) + len(gzipped(NEXT))
    assert stored["spool"] == stored["uploads"] == 0
