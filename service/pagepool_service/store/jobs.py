"""The queue of work that the maintenance process does: durable, in order of kind, then of arrival."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pagepool_service.store.environment import Table
from pagepool_service.store.schema import Job, JobKind
from pagepool_service.store.totals import take_number

if TYPE_CHECKING:
    from pagepool.digest import Digest

    from pagepool_service.store.environment import Environment, Reader, Writer


class JobQueue:
    """Jobs in the table `jobs`. A job leaves the queue in the transaction that makes its result visible."""

    def __init__(self, env: Environment) -> None:
        self._env = env

    def add(self, txn: Writer, kind: JobKind, blob: Digest) -> Job:
        """Queue a job."""
        job = Job(kind, take_number(txn, "job"), blob)
        txn.put(Table.JOBS, job.key, job.encode())
        return job

    def begin_next(self) -> Job | None:
        """The first job, with one more attempt noted durably: a job that crashes its process is seen to do so."""
        job = self.peek()
        if job is None:
            return None
        begun = replace(job, attempts=min(job.attempts + 1, 255))
        with self._env.write() as txn:
            txn.put(Table.JOBS, begun.key, begun.encode())
        return begun

    def peek(self) -> Job | None:
        """The first job, or None."""
        with self._env.read() as txn:
            return next((Job.decode(key, payload) for key, payload in txn.scan(Table.JOBS)), None)

    def finish(self, txn: Writer, job: Job) -> None:
        """Take a job off the queue."""
        txn.delete(Table.JOBS, job.key)

    def count(self, txn: Reader) -> int:
        """How many wait."""
        return txn.count(Table.JOBS)
