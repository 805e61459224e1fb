"""The queue of work that the maintenance processes do: durable, in order of kind, then of arrival."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from pagepool.errors import CorruptError

from pagepool_service.store.environment import Table
from pagepool_service.store.schema import Job, JobKind
from pagepool_service.store.totals import take_number

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pagepool.digest import Digest

    from pagepool_service.store.environment import Environment, Reader, Writer

log = logging.getLogger("pagepool.jobs")


class JobQueue:
    """Jobs in the table `jobs`. A job leaves the queue in the transaction that makes its result visible."""

    def __init__(self, env: Environment) -> None:
        self._env = env

    def add(self, txn: Writer, kind: JobKind, blob: Digest) -> Job:
        """Queue a job."""
        job = Job(kind, take_number(txn, "job"), blob)
        txn.put(Table.JOBS, job.key, job.encode())
        return job

    def begin_next(self, slot: int = 0) -> Job | None:
        """Take the first free job, noting owner and attempt durably: one that crashes its process is seen to do so.

        Args:
            slot: of the maintenance process that asks. One process at a time has a slot.
        """
        if self.peek(slot) is None:
            return None
        with self._env.write() as txn:
            free = next(self._open(txn, slot), None)
            if free is None:
                return None
            begun = replace(free, attempts=min(free.attempts + 1, 255), owner=slot + 1)
            txn.put(Table.JOBS, begun.key, begun.encode())
        return begun

    def peek(self, slot: int = 0) -> Job | None:
        """The job that `begin_next` would take, or None."""
        with self._env.read() as txn:
            return next(self._open(txn, slot), None)

    def begin_recipe(self, txn: Writer, job: Job) -> Job:
        """Note a new recipe id in a job that was begun, so that what a crash leaves of it can be found."""
        begun = replace(job, recipe=take_number(txn, "recipe"))
        txn.put(Table.JOBS, begun.key, begun.encode())
        return begun

    def put_back(self, job: Job) -> None:
        """Free a job whose attempt failed for a reason of the store's (full, read-only): it does not count."""
        with self._env.write() as txn:
            if txn.has(Table.JOBS, job.key):
                back = replace(job, attempts=max(0, job.attempts - 1), owner=0)
                txn.put(Table.JOBS, job.key, back.encode())

    def release_all(self) -> None:
        """Free every job: at the start of a service, when no process works on any.

        Attempts under way when the whole service ended are not held against a job: it was not the one that ended it.
        """
        with self._env.write() as txn:
            for job in list(self._readable(txn)):
                if job.owner:
                    txn.put(Table.JOBS, job.key, replace(job, owner=0, attempts=0).encode())

    def _open(self, txn: Reader, slot: int) -> Iterator[Job]:
        """Jobs that a slot may take: free ones, and what it began itself and did not finish.

        A damaged record is passed over: fsck names it, and it must not keep the others waiting.
        """
        for job in self._readable(txn):
            if job.owner in (0, slot + 1):
                yield job

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

    def count(self, txn: Reader) -> int:
        """How many wait."""
        return txn.count(Table.JOBS)
