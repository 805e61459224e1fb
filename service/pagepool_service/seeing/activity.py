"""What runs just now: open uploads, and jobs that wait or are worked on. Blocks for as long as a directory takes."""

from __future__ import annotations

import heapq
import json
import os
import time
from typing import TYPE_CHECKING, Any

from pagepool.errors import BlobUnknownError, CorruptError

if TYPE_CHECKING:
    from pathlib import Path

    from pagepool_service.store.schema import Job
    from pagepool_service.store.store import Store

_RECORD = ".json"


def look_at_activity(store: Store, limit: int) -> dict[str, Any]:
    """The uploads that were written to last, and the jobs that come next, as JSON.

    An upload's id is not told: whoever knows it could go on with it.

    Args:
        limit: most of each.
    """
    now = time.time()
    uploads, count = _uploads(store.uploads, limit, now)
    jobs, waiting = store.jobs.first(limit)
    return {
        "now_s": int(now),
        "uploads": uploads,
        "uploads_left_off": count - len(uploads),
        "jobs": [_describe(store, job, now) for job in jobs],
        "jobs_left_off": waiting - len(jobs),
    }


def _uploads(directory: Path, limit: int, now: float) -> tuple[list[dict[str, Any]], int]:
    count = 0
    newest: list[tuple[float, int, str]] = []
    try:
        entries = os.scandir(directory)
    except FileNotFoundError:
        return [], 0
    with entries:
        for entry in entries:
            if entry.name.endswith(_RECORD):
                continue
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:  # finished meanwhile
                continue
            count += 1
            found = (status.st_mtime, status.st_size, entry.name)
            (heapq.heappush if len(newest) < limit else heapq.heappushpop)(newest, found)
    described = (_describe_upload(directory, *found, now) for found in sorted(newest, reverse=True))
    return [upload for upload in described if upload is not None], count


def _describe_upload(directory: Path, written: float, size: int, name: str, now: float) -> dict[str, Any] | None:
    try:
        record = json.loads((directory / f"{name}{_RECORD}").read_bytes())
        repository, created = str(record["repository"]), float(record["created"])
    except (OSError, ValueError, KeyError, TypeError):  # finished or swept meanwhile
        return None
    ages = {"age_s": max(0, round(now - created)), "idle_s": max(0, round(now - written))}
    return {"repository": repository, "bytes": size, **ages}


def _describe(store: Store, job: Job, now: float) -> dict[str, Any]:
    try:
        size = store.blobs.stat(job.blob).size
    except (BlobUnknownError, CorruptError):
        size = None
    return {
        "id": job.number,
        "kind": job.kind.name.lower(),
        "state": "running" if job.owner else "waiting",
        "blob": str(job.blob),
        "bytes": size,
        "attempts": job.attempts,
        "age_s": max(0, round(now - job.created_ns / 1e9)),
    }
