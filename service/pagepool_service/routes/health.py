"""Whether the service lives, and whether it can serve: for probes, which bring no credentials.

Neither is in the access log unless it fails: see `pagepool_service.logs`.
"""

from __future__ import annotations

import os

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from pagepool.errors import PagepoolError
from pagepool_service.routes.context import Context, Service
from pagepool_service.routes.described import failures, json_object, success
from pagepool_service.store.disk import why_failed
from pagepool_service.watching import describe_writer

router = APIRouter()

_STATUS = json_object(status={"type": "string"})
_READY = json_object(status={"type": "string"}, read_only={"type": "boolean"})
_NOT_READY = json_object(
    ("status", "read_only", "reasons"),
    status={"type": "string"},
    read_only={"type": "boolean"},
    reasons={"type": "array", "items": {"type": "string"}, "minItems": 1},
)


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz", responses={200: success("The process lives.", content=_STATUS)})
async def get_health() -> JSONResponse:
    """Answer, if the process can."""
    return JSONResponse({"status": "ok"})


@router.head("/readyz", include_in_schema=False)
@router.get(
    "/readyz",
    responses={
        200: success("The service can serve.", content=_READY),
        **failures(),
        503: success("The service cannot do all that it should.", content=_NOT_READY),
    },
)
async def get_ready(service: Service) -> JSONResponse:
    """Look whether the store can be read and takes writes, uploads can be taken, and somebody reads layers."""
    read_only = await service.threads.run(service.store.is_read_only)
    reasons = await service.threads.run(_find_reasons, service, read_only)
    if reasons:
        return JSONResponse({"status": "unavailable", "read_only": read_only, "reasons": reasons}, 503)
    return JSONResponse({"status": "ok", "read_only": read_only})


def _find_reasons(service: Context, read_only: bool) -> list[str]:
    """Why the service is not ready; empty if it is."""
    reasons = []
    try:
        service.registry.listings.repositories(1)
    except PagepoolError as error:
        reasons.append(f"the store cannot be read: {error}")
    if failed := why_failed(service.store.data):
        reasons.append(f"the disk under the store fails: {failed}")
    if read_only:
        return reasons
    if not os.access(service.store.uploads, os.W_OK | os.X_OK):
        reasons.append("the directory of uploads cannot be written to")
    if service.roster is not None and not service.roster.has("maintenance"):
        reasons.append("no process runs that reads layers")
    if service.roster is not None and (waits := describe_writer(service.roster)):
        reasons.append(f"the store takes no writes: {waits}")
    return reasons
