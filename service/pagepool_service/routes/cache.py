"""What the service's pool holds, and what it saves."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from pagepool.errors import UnsupportedError
from pagepool_service.routes.context import Context, Service
from pagepool_service.routes.described import failures, json_object, success

if TYPE_CHECKING:
    from pagepool.pool import Pool

router = APIRouter()

_TEXT = {"type": "string"}
_COUNT = {"type": "integer", "minimum": 0}
_CACHE = json_object(
    ("id", "path", "objects", "bytes", "budget"),
    id=_TEXT,
    path=_TEXT,
    protection={**_TEXT, "description": "What keeps objects from being read when they are wrong at rest."},
    objects=_COUNT,
    bytes=_COUNT,
    budget=_COUNT,
    resident_bytes={**_COUNT, "description": "Of whole objects, in memory."},
    held_bytes={**_COUNT, "description": "Of objects that somebody has open."},
    hits=_COUNT,
    misses=_COUNT,
    evictions=_COUNT,
    sharing={"type": "object", "description": "How much the objects are of the images that were read."},
)


@router.get(
    "/v1/cache", responses={200: success("The pool that objects are read from.", content=_CACHE), **failures(405)}
)
async def get_cache(service: Service) -> JSONResponse:
    """Tell what the service's pool holds. Looks at each object: tens of microseconds for each."""
    pool = service.pool
    if pool is None:
        raise UnsupportedError("this service keeps no pool")
    return JSONResponse(await service.counting.run(_look, service, pool))


def _look(service: Context, pool: Pool) -> dict[str, Any]:
    found = asdict(pool.stats(inspect=True))
    sharing = service.treefiles.measure_sharing(frozenset(pool.digests()))
    return {
        "id": pool.id,
        "path": str(pool.path),
        **found,
        "sharing": {**sharing._asdict(), "saved_bytes": sharing.saved_bytes},
    }
