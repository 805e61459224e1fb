"""Filling the service's pool for clients on the same host, which then read it by its path.

Each request does a bounded amount of work and says how many of the objects, from the first on, are there now: a client
asks again with the rest.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from pagepool.errors import InvalidError, LimitError, UnsupportedError
from pagepool_service.routes.context import Service
from pagepool_service.routes.described import failures, json_object, success
from pagepool_service.routes.extents import read_body
from pagepool_service.routes.objects import TreeText, parse_object, parse_tree, subject_of
from pagepool_service.routes.parameters import Repository

if TYPE_CHECKING:
    from pagepool.image.treefile import ObjectInfo
    from pagepool_service.cache import ExtentCache

router = APIRouter()

MOST_OBJECTS = 16384
_LARGEST_BODY = 4 << 20
_LONGEST_FILL_S = 5.0
_AT_ONCE = 256  # small objects, which are read in the order of the store
_WINDOW = 64  # extents between two looks at the clock
_OBJECT: dict[str, Any] = {
    "type": "object",
    "required": ["object"],
    "properties": {
        "object": {"type": "string", "pattern": r"^(blake3:)?[0-9a-f]{64}$"},
        "extents": {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 2, "maxItems": 2},
    },
}
_BODY = {
    "requestBody": {
        "description": "Objects of the tree, most urgent first; of each all, or extents `[first, end)`.",
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["objects"],
                    "properties": {
                        "objects": {"type": "array", "items": _OBJECT, "maxItems": MOST_OBJECTS},
                        "within_s": {"type": "number", "minimum": 0, "description": "Seconds that it may take."},
                    },
                }
            }
        },
    }
}
_ANSWER = json_object(id={"type": "string"}, path={"type": "string"}, present={"type": "integer"})


@dataclass(frozen=True, slots=True)
class Wanted:
    """An object to fill: its extents `[first, end)`; `end` None for all."""

    digest: bytes
    first: int
    end: int | None


@router.post(
    "/v1/{name:repository}/trees/{tree}/fill",
    openapi_extra=_BODY,
    responses={
        200: success("How many of the objects, from the first on, are in the pool now.", content=_ANSWER),
        **failures(405, 413),
    },
)
async def post_fill(request: Request, service: Service, name: Repository, tree: TreeText) -> JSONResponse:
    """Bring objects of a tree into the service's pool."""
    wanted, within_s = parse_fill(await read_body(request, service, _LARGEST_BODY, "list of objects"))
    digest = parse_tree(tree)

    def fill() -> int:
        found = service.treefiles.resolve(name, digest)
        infos = [subject_of(found, one.digest).info for one in wanted]
        pairs = zip(infos, wanted, strict=True)
        deadline = time.monotonic() + within_s
        present = 0
        for place, (info, one) in enumerate(pairs):
            if place % _AT_ONCE == 0:
                some = infos[place : place + _AT_ONCE]
                service.cache.fill_small([info for info in some if info.extent_count == 1])
            if not _fill(service.cache, info, one, deadline):
                break
            present += 1
        return present

    pool = service.shared_pool
    if pool is None:
        raise UnsupportedError("this service keeps no pool that others may read")
    return JSONResponse({"id": pool.id, "path": str(pool.path), "present": await service.threads.run(fill)})


def _fill(cache: ExtentCache, info: ObjectInfo, wanted: Wanted, deadline: float) -> bool:
    first = wanted.first
    end = info.extent_count if wanted.end is None else min(wanted.end, info.extent_count)
    while first < end:
        if time.monotonic() > deadline or not cache.fill(info, first, min(first + _WINDOW, end)):
            return False
        first += _WINDOW
    return True


def parse_fill(body: bytes) -> tuple[list[Wanted], float]:
    """The objects that a request names, and how many seconds it may take.

    Raises:
        InvalidError: it is not of the form.
        LimitError: they are more than `MOST_OBJECTS`.
    """
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidError("body", "it is not JSON") from error
    objects = document.get("objects") if isinstance(document, dict) else None
    if not isinstance(objects, list):
        raise InvalidError("body", "it has no list of objects")
    if len(objects) > MOST_OBJECTS:
        raise LimitError("number of objects", len(objects), MOST_OBJECTS)
    within_s = document.get("within_s", _LONGEST_FILL_S)
    if type(within_s) not in (int, float) or not within_s >= 0:
        raise InvalidError("body", "within_s is no number of seconds")
    return [_parse_one(entry) for entry in objects], min(within_s, _LONGEST_FILL_S)


def _parse_one(entry: Any) -> Wanted:
    name = entry.get("object") if isinstance(entry, dict) else None
    if not isinstance(name, str):
        raise InvalidError("body", "an object has no digest")
    digest = parse_object(name)
    extents = entry.get("extents")
    if extents is None:
        return Wanted(digest, 0, None)
    if not isinstance(extents, list) or len(extents) != 2 or not all(type(one) is int for one in extents):
        raise InvalidError("body", "extents are two numbers, [first, end)")
    first, end = extents
    if not 0 <= first <= end:
        raise InvalidError("body", "extents are not a range")
    return Wanted(digest, first, end)
