"""The queue: in order, one owner each, attempts counted durably, nothing lost and nothing in the way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pagepool.digest import Digest
from pagepool_service.store.environment import Table
from pagepool_service.store.schema import Job, JobKind
from pagepool_service.store.store import Store
from pagepool_service.store.totals import Totals
from tests.faults import flip_record, records

if TYPE_CHECKING:
    from pathlib import Path

BLOBS = [Digest.of(b"%d" % number) for number in range(4)]


def add(store: Store, kind: JobKind, blob: Digest) -> Job:
    with store.env.write() as txn:
        return store.jobs.add(txn, kind, blob, 1)


def finish(store: Store, job: Job) -> None:
    with store.env.write() as txn:
        store.jobs.finish(txn, job)


def test_ingest_goes_before_settle_and_then_by_age(store: Store) -> None:
    for kind, blob in ((JobKind.SETTLE, BLOBS[0]), (JobKind.INGEST, BLOBS[1]), (JobKind.INGEST, BLOBS[2])):
        add(store, kind, blob)
    order = []
    while (job := store.jobs.begin_next()) is not None:
        order.append((job.kind, job.blob))
        finish(store, job)
    assert order == [(JobKind.INGEST, BLOBS[1]), (JobKind.INGEST, BLOBS[2]), (JobKind.SETTLE, BLOBS[0])]
    assert store.jobs.peek() is None


def test_nothing_is_settled_while_another_process_reads_a_layer(store: Store) -> None:
    """On two processors it would take from the layer that somebody waits for."""
    add(store, JobKind.SETTLE, BLOBS[0])
    add(store, JobKind.SETTLE, BLOBS[1])
    add(store, JobKind.INGEST, BLOBS[2])
    reading = store.jobs.begin_next(1)
    assert reading is not None
    assert reading.kind is JobKind.INGEST
    assert store.jobs.begin_next(0) is None
    finish(store, reading)
    settled = [store.jobs.begin_next(slot) for slot in (0, 1)]  # these do not wait for each other
    assert [job.blob for job in settled if job] == BLOBS[:2]


def test_layers_are_read_while_another_process_settles(store: Store) -> None:
    add(store, JobKind.SETTLE, BLOBS[0])
    assert store.jobs.begin_next(0) is not None
    add(store, JobKind.INGEST, BLOBS[1])
    job = store.jobs.begin_next(1)
    assert job is not None
    assert job.blob == BLOBS[1]
    resumed = store.jobs.begin_next(0)  # its process was killed, and goes on with what it had begun
    assert resumed is not None
    assert resumed.blob == BLOBS[0]


def test_numbers_are_never_used_again(store: Store) -> None:
    first = add(store, JobKind.INGEST, BLOBS[0])
    finish(store, first)
    assert add(store, JobKind.INGEST, BLOBS[0]).number > first.number


def test_two_slots_never_have_the_same_job(store: Store) -> None:
    for blob in BLOBS:
        add(store, JobKind.INGEST, blob)
    taken = [store.jobs.begin_next(slot) for slot in range(4)]
    assert [job.blob for job in taken if job] == BLOBS
    assert store.jobs.begin_next(4) is None


def test_a_slot_takes_up_what_it_began(store: Store) -> None:
    """After its process was killed: the next one of the slot goes on, and the attempt has been counted."""
    add(store, JobKind.INGEST, BLOBS[0])
    for attempt in (1, 2, 3):
        job = store.jobs.begin_next(1)
        assert job is not None
        assert job.attempts == attempt
        assert store.jobs.begin_next(0) is None


def test_attempts_do_not_overflow(store: Store) -> None:
    add(store, JobKind.INGEST, BLOBS[0])
    for _ in range(300):
        job = store.jobs.begin_next()
    assert job is not None
    assert job.attempts == 255


def test_an_attempt_that_was_put_back_does_not_count(store: Store) -> None:
    add(store, JobKind.INGEST, BLOBS[0])
    for _ in range(10):
        job = store.jobs.begin_next(0)
        assert job is not None
        assert job.attempts == 1
        store.jobs.put_back(job)
    other = store.jobs.begin_next(1)
    assert other is not None
    assert other.owner == 2


def test_putting_back_what_is_finished_does_nothing(store: Store) -> None:
    job = add(store, JobKind.INGEST, BLOBS[0])
    finish(store, job)
    store.jobs.put_back(job)
    assert store.jobs.peek() is None


def test_a_new_service_begins_with_free_jobs(store: Store) -> None:
    for blob in BLOBS:
        add(store, JobKind.INGEST, blob)
    for slot in range(3):
        assert store.jobs.begin_next(slot)
    store.jobs.release_all()
    begun = [store.jobs.begin_next(7) for _ in range(1)]
    assert begun[0] is not None
    assert (begun[0].blob, begun[0].attempts, begun[0].owner) == (BLOBS[0], 1, 8)


def test_the_end_of_the_service_is_counted_apart(store: Store) -> None:
    """The attempt does not count, but a job that ends the whole service time and again can be told."""
    add(store, JobKind.INGEST, BLOBS[0])
    for ends in range(5):
        job = store.jobs.begin_next(0)
        assert job is not None
        assert (job.attempts, job.ends) == (1, ends)
        store.jobs.release_all()
    store.jobs.release_all()  # nobody works on it: nothing to count
    job = store.jobs.peek()
    assert job is not None
    assert (job.attempts, job.ends) == (0, 5)


def test_a_job_that_is_put_back_last_lets_the_others_go_first(store: Store) -> None:
    for blob in BLOBS[:3]:
        add(store, JobKind.INGEST, blob)
    first = store.jobs.begin_next(0)
    assert first is not None
    store.jobs.put_back(first, last=True)
    order = []
    while (job := store.jobs.begin_next(0)) is not None:
        order.append(job.blob)
        finish(store, job)
    assert order == [BLOBS[1], BLOBS[2], BLOBS[0]]


def test_jobs_survive_reopening(data: Path) -> None:
    with Store.open(data) as store:
        added = add(store, JobKind.INGEST, BLOBS[0])
        store.jobs.begin_next(2)
    with Store.open(data) as store:
        job = store.jobs.begin_next(2)
        assert job is not None
        assert (job.number, job.attempts) == (added.number, 2)
        with store.env.read() as txn:
            assert store.jobs.count(txn) == 1


@pytest.mark.parametrize("at", [0, 3, -1])
def test_a_damaged_job_does_not_keep_the_others_waiting(data: Path, at: int) -> None:
    with Store.open(data) as store:
        for blob in BLOBS[:2]:
            add(store, JobKind.INGEST, blob)
    flip_record(data, records(data, Table.JOBS)[0], at)
    with Store.open(data) as store:
        store.jobs.release_all()
        job = store.jobs.begin_next()
        assert job is not None
        assert job.blob == BLOBS[1]


def test_a_recipe_begun_for_a_job_is_noted_in_it(store: Store) -> None:
    add(store, JobKind.INGEST, BLOBS[0])
    job = store.jobs.begin_next()
    assert job is not None
    with store.env.write() as txn:
        begun = store.jobs.begin_recipe(txn, job)
    again = store.jobs.begin_next()
    assert again is not None
    assert again.recipe == begun.recipe > 0
    with store.env.read() as txn:
        assert Totals.load(txn).next_recipe == begun.recipe + 1
