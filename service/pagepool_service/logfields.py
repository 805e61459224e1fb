"""What log lines have beside their message: the request's id and trace, or the job that is worked on.

A request's are in context variables: tasks inherit them, and `routes.streaming.Threads` hands them to threads. A
maintenance process does one job at a time, with threads of its own, so a job's are the process's. A record has more of
its own as ``extra={"fields": {...}}``: the access log has.

Names: `request_id`, `trace_id`, `job_id`, `blob`; of the access log those of `observing`. docs/observability.md
describes them.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from pagepool_service import requestids

if TYPE_CHECKING:
    import logging
    from collections.abc import Iterator

    from pagepool_service.store.schema import Job

trace: ContextVar[str] = ContextVar("trace_id", default="")
"""The trace that the request under way belongs to, 32 hex digits; "" where there is none."""

_job: dict[str, object] = {}


@contextmanager
def working_on(job: Job) -> Iterator[None]:
    """Have every line that this process logs name the job, for the length of a block."""
    _job.update(job_id=job.number, blob=str(job.blob))
    try:
        yield
    finally:
        _job.clear()


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    """The fields of a record that is logged just now."""
    found: dict[str, object] = {}
    if request := requestids.current.get():
        found["request_id"] = request
    if belongs := trace.get():
        found["trace_id"] = belongs
    return found | _job | getattr(record, "fields", {})
