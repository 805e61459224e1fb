"""What an operator sees, under /v1: figures, what images share, what runs, and how it was. The page at / asks these.

All of them tell names and figures of all repositories, so they need the right to see those: `RIGHT`, whatever else
a repository's own rights are.
"""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse

from pagepool.errors import InvalidError, PendingError
from pagepool_service.routes.access import Caller
from pagepool_service.routes.context import Service
from pagepool_service.routes.described import Responses, failures, json_object, success
from pagepool_service.routes.images import RETRY, PlatformQuery, find_tree
from pagepool_service.routes.parameters import Reference, Repository
from pagepool_service.seeing.activity import look_at_activity
from pagepool_service.seeing.contents import LARGEST_FILES
from pagepool_service.seeing.history import FIELDS, RINGS
from pagepool_service.seeing.sharing import MOST_IN_MATRIX

router = APIRouter()

RIGHT = "catalog"
"""What whoever asks must be allowed, where rights are asked for: to see the names and figures of all repositories."""

_MOST_LISTED = 1000
_MOST_NEIGHBOURS = 100
_MOST_POINTS = 2016

_TEXT = {"type": "string"}
_COUNT = {"type": "integer", "minimum": 0}
_SECONDS = {**_COUNT, "description": "Seconds since 1970."}
_OBJECT = {"type": "object"}
_OBJECTS = {"type": "array", "items": _OBJECT}
_LEFT_OFF = {**_COUNT, "description": "How many there are beyond those."}
_RATIO = {"type": "number", "minimum": 0, "maximum": 1}
_TAGGED = {
    "type": "array",
    "items": {"type": "object", "properties": {"name": _TEXT, "tag": _TEXT}, "required": ["name", "tag"]},
    "description": "Tags of this tree, at most eight; `tags` is how many there are.",
}
_SHARERS = {
    "tree": {**_TEXT, "description": "BLAKE3 of the tree file."},
    "images": _TAGGED,
    "tags": _COUNT,
    "unique_bytes": {**_COUNT, "description": "Of distinct content, each piece of 128 KiB once."},
}
_PAIRS = {"type": "array", "items": {"type": "array", "items": _COUNT}}

_OVERVIEW = json_object(
    version=_TEXT,
    read_only={"type": "boolean"},
    now_s=_SECONDS,
    store={"type": ["object", "null"], "description": "Figures of `GET /v1/stats`, without those of each image."},
    cache={"type": ["object", "null"], "description": "The pool that objects are read from; null without one."},
    requests={"type": ["object", "null"], "description": "Answered since the service began, by all workers."},
    uploads={"type": "object", "properties": {"open": _COUNT, "most": _COUNT, "bytes": _COUNT}},
    processes=_OBJECTS,
)
_ACTIVITY = json_object(
    now_s=_SECONDS,
    uploads={
        "type": "array",
        "items": {
            "type": "object",
            "properties": {"repository": _TEXT, "bytes": _COUNT, "age_s": _COUNT, "idle_s": _COUNT},
            "required": ["repository", "bytes", "age_s", "idle_s"],
        },
        "description": "Open uploads, those that were written to last first.",
    },
    uploads_left_off=_LEFT_OFF,
    jobs={
        "type": "array",
        "items": {
            "type": "object",
            "properties": {
                "id": _COUNT,
                "kind": {**_TEXT, "enum": ["ingest", "settle"]},
                "state": {**_TEXT, "enum": ["waiting", "running"]},
                "blob": _TEXT,
                "bytes": {"type": ["integer", "null"], "minimum": 0},
                "attempts": _COUNT,
                "age_s": _COUNT,
            },
            "required": ["id", "kind", "state", "blob", "bytes", "attempts", "age_s"],
        },
        "description": "Blobs to read as layers (`ingest`) or to move out of the spool (`settle`), in their order.",
    },
    jobs_left_off=_LEFT_OFF,
)
_HISTORY = json_object(
    span=_TEXT,
    step_s={**_COUNT, "description": "Seconds between samples that were kept."},
    now_s=_SECONDS,
    fields={"type": "array", "items": _TEXT},
    samples={
        "type": "array",
        "items": {"type": "array", "items": {"type": ["integer", "null"]}},
        "description": "The time of each, and its fields; null where one was not known. Oldest first.",
    },
)
_MATRIX = json_object(
    images={"type": "array", "items": {"type": "object", "properties": _SHARERS, "required": list(_SHARERS)}},
    object_bytes={**_PAIRS, "description": "Of whole files that both have: a row for each image."},
    extent_bytes={**_PAIRS, "description": "Of pieces of 128 KiB that both have: a row for each image."},
    left_off={**_COUNT, "description": "Images that were not compared."},
)
_SHARING = json_object(
    tree=_SHARERS["tree"],
    files=_COUNT,
    file_bytes={**_COUNT, "description": "Of all files, each counted by itself."},
    objects=_COUNT,
    object_bytes={**_COUNT, "description": "Of distinct files."},
    extents=_COUNT,
    unique_bytes=_SHARERS["unique_bytes"],
    largest={
        "type": "array",
        "items": {
            "type": "object",
            "properties": {
                "path": _TEXT,
                "size": _COUNT,
                "others": {**_COUNT, "description": "Other images that have the same content."},
            },
            "required": ["path", "size", "others"],
        },
    },
    neighbours={
        "type": "array",
        "items": {
            "type": "object",
            "properties": {
                **_SHARERS,
                "object_bytes": {**_COUNT, "description": "Of whole files that both have."},
                "extent_bytes": {**_COUNT, "description": "Of pieces of 128 KiB that both have."},
                "ratio": {**_RATIO, "description": "`extent_bytes` of this image's `unique_bytes`."},
            },
            "required": [*_SHARERS, "object_bytes", "extent_bytes", "ratio"],
        },
        "description": "Other images that share something with it, those that share most first.",
    },
    neighbours_left_off=_LEFT_OFF,
    not_compared={**_COUNT, "description": "Images whose tree is not made, or for which there was no time."},
)
_SHARING_ANSWERS: Responses = {
    **failures(413, 422, 500),
    200: success("What it holds and shares.", content=_SHARING),
    202: success("Layers are still being read.", RETRY, json_object(waiting={"type": "array", "items": _TEXT})),
}


def _number(text: str, low: int, high: int, name: str) -> int:
    """A number of a query.

    Raises:
        InvalidError: it is none, or out of bounds.
    """
    if not text.isascii() or not text.isdigit() or not low <= int(text[:8]) <= high:
        raise InvalidError(text[:32], f"{name} is a number from {low} to {high}")
    return int(text)


def _count(description: str, low: int, high: int) -> Any:
    schema = {"type": "integer", "minimum": low, "maximum": high}
    return Query(description=description, json_schema_extra=schema)


@router.get("/v1/overview", responses={200: success("Figures.", content=_OVERVIEW), **failures()})
async def get_overview(service: Service) -> JSONResponse:
    """Tell what store, cache and processes are like. Figures that take long to find may be some seconds old."""
    return JSONResponse(await service.counting.run(service.seeing.figures.overview))


@router.get("/v1/activity", responses={200: success("What runs.", content=_ACTIVITY), **failures()})
async def get_activity(
    service: Service, n: Annotated[str, _count("Most uploads and jobs to return.", 1, _MOST_LISTED)] = "100"
) -> JSONResponse:
    """List open uploads and jobs."""
    limit = _number(n, 1, _MOST_LISTED, "n")
    return JSONResponse(await service.counting.run(look_at_activity, service.store, limit))


@router.get("/v1/history", responses={200: success("Samples.", content=_HISTORY), **failures()})
async def get_history(
    service: Service,
    span: Annotated[str, Query(description="How far back.", json_schema_extra={"enum": list(RINGS)})] = "hour",
    points: Annotated[str, _count("Most samples to return, evenly chosen.", 2, _MOST_POINTS)] = "400",
) -> JSONResponse:
    """Tell how the service did: samples that it takes every ten seconds."""
    if span not in RINGS:
        raise InvalidError(span[:32], f"span is {' or '.join(RINGS)}")
    most = _number(points, 2, _MOST_POINTS, "points")

    def read() -> dict[str, Any]:
        now = time.time()
        samples = [[moment, *values] for moment, values in service.seeing.history.samples(span, now, most)]
        return {
            "span": span,
            "step_s": RINGS[span].step_s,
            "now_s": int(now),
            "fields": ["time_s", *FIELDS],
            "samples": samples,
        }

    return JSONResponse(await service.counting.run(read))


@router.get("/v1/sharing", responses={200: success("Pairs of images.", content=_MATRIX), **failures()})
async def get_sharing(
    service: Service, n: Annotated[str, _count("Most images to compare.", 1, MOST_IN_MATRIX)] = "12"
) -> JSONResponse:
    """Compare the images that were tagged last with each other."""
    limit = _number(n, 1, MOST_IN_MATRIX, "n")
    return JSONResponse(await service.counting.run(service.seeing.sharing.matrix, limit))


@router.get("/v1/{name:repository}/images/{reference}/sharing", responses=_SHARING_ANSWERS)
async def get_image_sharing(
    service: Service,
    caller: Caller,
    name: Repository,
    reference: Reference,
    n: Annotated[str, _count("Most other images to return.", 1, _MOST_NEIGHBOURS)] = "20",
    files: Annotated[str, _count("Most files to return.", 0, LARGEST_FILES)] = "20",
    platform: PlatformQuery = None,
) -> JSONResponse:
    """Tell what an image holds, and which others share most with it. Its files are named to who may pull it."""
    limit, most_files = _number(n, 1, _MOST_NEIGHBOURS, "n"), _number(files, 0, LARGEST_FILES, "files")
    if not caller.sees(name):
        most_files = 0
    try:
        _, tree = await find_tree(service, name, reference, platform)
        found = await service.counting.run(service.seeing.sharing.neighbours, tree, limit, most_files)
        return JSONResponse(found)
    except PendingError as error:
        return JSONResponse({"waiting": list(error.waiting)}, 202, {"Retry-After": "1"})
