"""Images as pagepool understands them, under /v1: how far they are read, what is in them, what they take."""

from __future__ import annotations

import json
from typing import Annotated, Any
from urllib.parse import unquote_to_bytes

from fastapi import APIRouter, Query, Response
from fastapi.responses import JSONResponse
from pagepool.errors import InvalidError, PendingError
from pagepool.oci import Platform, validate_repository, validate_tag

from pagepool_service.images import PENDING, describe_image, describe_tag, read_config, resolve_image
from pagepool_service.routes.context import Context, Service
from pagepool_service.routes.described import LINK, Responses, failures, header, json_object, success
from pagepool_service.routes.parameters import Last, Limit, Reference, Repository, next_link
from pagepool_service.statistics import collect
from pagepool_service.trees import list_files

router = APIRouter()

_TEXT = {"type": "string"}
_RETRY = {"Retry-After": header("Seconds.")}
_IMAGE = json_object(
    ("name", "reference", "digest", "size", "state", "layers"),
    name=_TEXT,
    reference=_TEXT,
    digest=_TEXT,
    size={"type": "integer", "description": "Bytes of configuration and layers, as they are pulled."},
    state={"type": "string", "enum": ["pending", "ready", "unmountable"]},
    reason=_TEXT,
    layers={"type": "array", "items": {"type": "object"}},
)
_IMAGES = json_object(("images",), images={"type": "array", "items": {"type": "object"}}, next=_TEXT)
_FILES = json_object(("entries",), entries={"type": "array", "items": {"type": "object"}}, next=_TEXT)

_IMAGE_ANSWERS: Responses = {
    **failures(500),
    200: success("The image; ready or unmountable.", content=_IMAGE),
    202: success("The image; layers are still being read.", _RETRY, _IMAGE),
}
_IMAGES_ANSWERS: Responses = {200: success("Tagged images, in byte order.", {"Link": LINK}, _IMAGES), **failures()}
_FILES_ANSWERS: Responses = {
    **failures(413, 422),
    200: success("Files.", content=_FILES),
    202: success("Layers are still being read.", _RETRY, json_object(waiting={"type": "array", "items": _TEXT})),
}
_STATS_ANSWERS: Responses = {200: success("Sizes.", content=json_object(total={"type": "object"})), **failures()}

PlatformQuery = Annotated[
    str | None,
    Query(description="Which image of an index, `os/architecture[/variant]`; that of the service's machine."),
]


@router.get("/v1/images", responses=_IMAGES_ANSWERS)
async def list_images(service: Service, n: Limit, last: Last) -> JSONResponse:
    """List the tagged images of all repositories."""
    body = await service.threads.run(_list_images, service, n, _after(last))
    headers = next_link("/v1/images", n=n, last=body["next"]) if "next" in body else {}
    return JSONResponse(body, headers=headers)


@router.get("/v1/stats", responses=_STATS_ANSWERS)
async def get_stats(service: Service) -> JSONResponse:
    """Tell what the store holds, and what that takes."""
    return JSONResponse(await service.threads.run(collect, service.store))


@router.get("/v1/{name:repository}/images/{reference}", response_class=JSONResponse, responses=_IMAGE_ANSWERS)
async def get_image(
    service: Service, name: Repository, reference: Reference, platform: PlatformQuery = None
) -> Response:
    """Resolve an image: its manifest, configuration, and how far each layer has been read."""
    wanted = None if platform is None else Platform.parse(platform)

    def describe() -> tuple[str, bytes]:
        view = resolve_image(service.store, name, reference, wanted)
        config = None if view.config is None else read_config(service.store, view.manifest)
        body = describe_image(view, name, str(reference), config)
        return view.state, _encode(body)

    state, body = await service.threads.run(describe)
    if state == PENDING:
        return Response(body, 202, {"Retry-After": "1"}, "application/json")
    return Response(body, media_type="application/json")


@router.get("/v1/{name:repository}/images/{reference}/files", responses=_FILES_ANSWERS)
async def get_files(
    service: Service,
    name: Repository,
    reference: Reference,
    path: Annotated[str, Query(description="Absolute path in the image.")] = "/",
    recursive: Annotated[
        str, Query(description="Everything below, too.", json_schema_extra={"enum": ["true", "false"]})
    ] = "false",
    limit: Annotated[
        str,
        Query(
            description="Most entries to return.",
            json_schema_extra={"type": "integer", "minimum": 1, "maximum": 10_000},
        ),
    ] = "1000",
    after: Annotated[str | None, Query(description="`next` of the page before.")] = None,
    platform: PlatformQuery = None,
) -> JSONResponse:
    """List files of an image, without reading their content."""
    if recursive not in ("true", "false"):
        raise InvalidError(recursive[:32], "recursive is true or false")
    if not limit.isascii() or not limit.isdigit() or not 1 <= int(limit[:6]) <= 10_000:
        raise InvalidError(limit[:32], "limit is a number from 1 to 10000")
    wanted = None if platform is None else Platform.parse(platform)

    def list_page() -> dict[str, Any]:
        tree = service.trees.tree(resolve_image(service.store, name, reference, wanted))
        page = list_files(
            tree,
            path.encode(errors="replace"),
            recursive=recursive == "true",
            limit=int(limit),
            after=None if after is None else unquote_to_bytes(after),
        )
        return {"entries": page.entries} if page.next is None else {"entries": page.entries, "next": page.next}

    try:
        return JSONResponse(await service.threads.run(list_page))
    except PendingError as error:
        return JSONResponse({"waiting": list(error.waiting)}, 202, {"Retry-After": "1"})


def _list_images(service: Context, limit: int, last: tuple[str, str] | None) -> dict[str, Any]:
    found, more = service.registry.list_images(limit, last)
    body: dict[str, Any] = {"images": [describe_tag(service.store, image) for image in found]}
    if more and found:
        body["next"] = f"{found[-1].repository}:{found[-1].tag}"
    return body


def _after(last: str) -> tuple[str, str] | None:
    if not last:
        return None
    name, _, tag = last.rpartition(":")
    return validate_repository(name), validate_tag(tag)


def _encode(body: dict[str, Any]) -> bytes:
    """JSON in ASCII: a configuration may hold lone surrogates, and it may be nested too deeply to be written."""
    try:
        return json.dumps(body).encode()
    except RecursionError:
        return json.dumps({**body, "config": None}).encode()
