"""Whether the service lives, and whether it can serve."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from pagepool_service.routes.context import Context, Service
from pagepool_service.routes.described import failures, json_object, success

router = APIRouter()

_STATUS = json_object(status={"type": "string"})


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz", responses={200: success("The process lives.", content=_STATUS)})
async def get_health() -> JSONResponse:
    """Answer, if the process can."""
    return JSONResponse({"status": "ok"})


@router.get("/readyz", responses={200: success("The store can be read.", content=_STATUS), **failures()})
async def get_ready(service: Service) -> JSONResponse:
    """Read from the store, and say whether it takes writes."""
    await service.threads.run(_look, service)
    return JSONResponse({"status": "ok", "read_only": service.store.env.readonly})


def _look(service: Context) -> None:
    service.registry.list_repositories(1)
