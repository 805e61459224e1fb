"""The queue of work that the maintenance processes do: durable, in order of kind, then of arrival."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

from pagepool.errors import CorruptError
from pagepool_service.store.environment import Table
from pagepool_service.store.schema import Job, JobKind
from pagepool_service.store.totals import Totals, take_number

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

    from pagepool.digest import Digest
    from pagepool_service.store.environment import Environment, Reader, Writer

log = logging.getLogger("pagepool.jobs")


class JobQueue:
    """Jobs in the table `jobs`. A job leaves the queue in the transaction that makes its result visible."""

    def __init__(self, env: Environment) -> None:
        self._env = env

    def add(self, txn: Writer, kind: JobKind, blob: Digest, created_ns: int) -> Job:
        """Queue a job on the blob whose record has that time."""
        job = Job(kind, take_number(txn, "job"), blob, created_ns=created_ns)
        txn.put(Table.JOBS, job.key, job.encode())
        return job

    def begin_next(self, slot: int = 0, without: Container[Digest] = ()) -> Job | None:
        """Take the first free job, noting owner and attempt durably: one that crashes its process is seen to do so.

        Args:
            slot: of the maintenance process that asks. One process at a time has a slot.
            without: blobs whose jobs are left for later.
        """
        if self.peek(slot, without) is None:
            return None
        with self._env.write() as txn:
            free = next((job for job in self._open(txn, slot) if job.blob not in without), None)
            if free is None:
                return None
            begun = replace(free, attempts=min(free.attempts + 1, 255), owner=slot + 1)
            txn.put(Table.JOBS, begun.key, begun.encode())
        return begun

    def peek(self, slot: int = 0, without: Container[Digest] = ()) -> Job | None:
        """The job that `begin_next` would take, or None."""
        with self._env.read() as txn:
            return next((job for job in self._open(txn, slot) if job.blob not in without), None)

    def begin_recipe(self, txn: Writer, job: Job) -> Job:
        """Note a new recipe id in a job that was begun, so that what a crash leaves of it can be found.

        And from which frame on the job may have stored something, over all its attempts: collection leaves that alone.
        """
        floor = job.floor or Totals.load(txn).next_frame
        begun = replace(job, recipe=take_number(txn, "recipe"), floor=floor)
        txn.put(Table.JOBS, begun.key, begun.encode())
        return begun

    def put_back(self, job: Job, *, last: bool = False) -> None:
        """Free a job whose attempt failed for a reason of the store's (full, read-only): it does not count.

        Args:
            last: behind all others of its kind, which may not fail for that reason.
        """
        with self._env.write() as txn:
            stored = self.stored(txn, job)
            if stored is None:
                return
            number = take_number(txn, "job") if last else stored.number
            back = replace(stored, number=number, attempts=max(0, job.attempts - 1), owner=0)
            txn.delete(Table.JOBS, job.key)
            txn.put(Table.JOBS, back.key, back.encode())

    def stored(self, txn: Reader, job: Job) -> Job | None:
        """A job as it is stored now, which knows the recipe of its last attempt; None if it is gone."""
        payload = txn.get(Table.JOBS, job.key)
        return None if payload is None else Job.decode(job.key, payload)

    def release_all(self) -> None:
        """Free every job: at the start of a service, when no process works on any.

        An attempt under way when the whole service ended is not held against a job, unless it happens time and again.
        """
        with self._env.write() as txn:
            for job in list(self._readable(txn)):
                if job.owner:
                    txn.put(Table.JOBS, job.key, _after_end(job).encode())

    def _open(self, txn: Reader, slot: int) -> Iterator[Job]:
        """Jobs that a slot may take: free ones, and what it began itself and did not finish.

        No free one of a later kind while somebody else does one of an earlier kind: reading a layer keeps more than one
        processor busy, and whoever pushed it waits for it.

        A damaged record is passed over: fsck names it, and it must not keep the others waiting.
        """
        busy: JobKind | None = None
        for job in self._readable(txn):
            if job.owner == slot + 1 or (not job.owner and busy in (None, job.kind)):
                yield job
            elif job.owner:
                busy = busy or job.kind

    def _readable(self, txn: Reader) -> Iterator[Job]:
        for key, _ in txn.scan(Table.JOBS, check=False):
            try:
                payload = txn.get(Table.JOBS, key)
                if payload is not None:
                    yield Job.decode(key, payload)
            except CorruptError as error:
                log.error("%s", error)

    def finish(self, txn: Writer, job: Job) -> None:
        """Take a job off the queue."""
        txn.delete(Table.JOBS, job.key)

    def count_states(self) -> Counter[tuple[JobKind, bool]]:
        """How many there are of each kind that nobody works on (False), and that somebody does (True)."""
        counted: Counter[tuple[JobKind, bool]] = Counter(
            {(kind, busy): 0 for kind in JobKind for busy in (False, True)}
        )
        with self._env.read() as txn:
            counted.update((job.kind, bool(job.owner)) for job in self._readable(txn))
        return counted

    def first(self, limit: int) -> tuple[list[Job], int]:
        """Those that are worked on or come next, in order; and how many there are in all."""
        with self._env.read() as txn:
            return list(islice(self._readable(txn), limit)), self.count(txn)

    def count(self, txn: Reader) -> int:
        """How many wait."""
        return txn.count(Table.JOBS)


def _after_end(job: Job) -> Job:
    """A job that was under way when the service ended."""
    return replace(job, owner=0, attempts=max(0, job.attempts - 1), ends=min(job.ends + 1, 255))
