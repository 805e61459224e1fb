"""Images as pagepool understands them, under /v1: how far they are read, what is in them, what they take."""

from __future__ import annotations

import json
import logging
import re
import time
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import unquote_to_bytes

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from pagepool.digest import Digest
from pagepool.errors import CorruptError, InvalidError, NotFoundError, PendingError
from pagepool.oci import Platform, validate_repository, validate_tag
from pagepool_service.images import (
    PENDING,
    describe_damage,
    describe_image,
    describe_tag,
    read_config,
    resolve_image,
)
from pagepool_service.routes.access import Caller
from pagepool_service.routes.context import Context, Service
from pagepool_service.routes.described import LINK, Responses, failures, header, json_object, success
from pagepool_service.routes.making import MAKING, PREFER, Unfinished, preferred_wait_s
from pagepool_service.routes.parameters import Last, Limit, Reference, Repository, next_link
from pagepool_service.store.listings import DamagedTag
from pagepool_service.trees import list_files

if TYPE_CHECKING:
    from pagepool.image import Tree, TreeFile
    from pagepool_service.auth import Access
    from pagepool_service.images import ImageView
    from pagepool_service.store.listings import TaggedImage

log = logging.getLogger("pagepool.images")

router = APIRouter()

# A page of images ends early after so much work or text; there is always something on it, and `next` goes on.
_LONGEST_PAGE_S = 2.0
_LARGEST_PAGE = 8 << 20

_TEXT = {"type": "string"}
RETRY = {"Retry-After": header("Seconds.")}
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

_COUNT = {"type": "integer", "minimum": 0}
_TREE = json_object(
    ("image", "tree", "size", "nodes", "objects", "object_bytes", "cache"),
    image={**_TEXT, "description": "Digest of the manifest."},
    tree={**_TEXT, "description": "BLAKE3 of the tree file."},
    size={**_COUNT, "description": "Bytes of the tree file."},
    nodes={**_COUNT, "description": "Files, directories and others; hard links once."},
    objects={**_COUNT, "description": "Distinct contents of files."},
    object_bytes=_COUNT,
    layers={**_COUNT, "description": "Of how many layers it is; only where `layers` asked for that."},
    cache={
        "type": ["object", "null"],
        "description": "The pool that the service reads objects from, for clients on the same machine.",
        "properties": {"id": _TEXT, "path": _TEXT},
    },
)

_IMAGE_ANSWERS: Responses = {
    **failures(500),
    200: success("The image; ready or unmountable.", content=_IMAGE),
    202: success("The image; layers are still being read.", RETRY, _IMAGE),
}
_IMAGES_ANSWERS: Responses = {200: success("Tagged images, in byte order.", {"Link": LINK}, _IMAGES), **failures()}
_FILES_ANSWERS: Responses = {
    **failures(413, 422),
    200: success("Files.", content=_FILES),
    202: success("Layers are still being read.", RETRY, json_object(waiting={"type": "array", "items": _TEXT})),
}
_TREE_ANSWERS: Responses = {
    **failures(413, 422, 500),
    200: success("Its tree.", content=_TREE),
    202: success(
        "Layers are still being read, or, only where `Prefer` asks for this answer, the tree is being made.",
        RETRY,
        json_object(("waiting",), waiting={"type": "array", "items": _TEXT}, making=MAKING),
    ),
}
_STATS = json_object(
    ("total",),
    total={"type": "object"},
    damaged={
        "type": "array",
        "items": {"type": "object"},
        "description": "What could not be read, and is missing from the figures; absent if that is nothing.",
    },
)
_STATS_ANSWERS: Responses = {200: success("Sizes.", content=_STATS), **failures()}

PlatformQuery = Annotated[
    str | None,
    Query(description="Which image of an index, `os/architecture[/variant]`; that of the service's machine."),
]

LayersQuery = Annotated[
    str | None,
    Query(
        description="The tree of the first so many layers only, whether those above them are ready or not.",
        json_schema_extra={"type": "integer", "minimum": 1},
    ),
]


@router.get("/v1/images", response_class=JSONResponse, responses=_IMAGES_ANSWERS)
async def list_images(service: Service, caller: Caller, n: Limit, last: Last) -> Response:
    """List the tagged images that the caller may pull. A page may have fewer than `n`, and others behind it."""
    body, following = await service.listings.run(_list_images, service, n, _after(last), caller)
    headers = next_link("/v1/images", n=n, last=following) if following else {}
    return Response(body, headers=headers, media_type="application/json")


@router.get("/v1/stats", responses=_STATS_ANSWERS)
async def get_stats(service: Service) -> JSONResponse:
    """Tell what the store holds, and what that takes."""
    return JSONResponse(await service.counting.run(service.statistics.collect, time.monotonic()))


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


@router.get(
    "/v1/{name:repository}/images/{reference}/tree",
    responses=_TREE_ANSWERS,
    openapi_extra={"parameters": [PREFER]},
)
async def get_tree(
    request: Request,
    service: Service,
    name: Repository,
    reference: Reference,
    platform: PlatformQuery = None,
    layers: LayersQuery = None,
) -> JSONResponse:
    """Name the merged tree of an image that is ready, for the routes below ``trees``."""
    first = None if layers is None else _parse_layers(layers)
    heeded = {} if first is None else {"layers": first}  # an earlier version did not know of it
    try:
        view, tree = await _make_tree(service, name, reference, platform, preferred_wait_s(request), first)
        if isinstance(tree, Unfinished):
            return tree.answer()
        return JSONResponse(_describe_tree(service, view, tree) | heeded)
    except PendingError as error:
        return JSONResponse({"waiting": list(error.waiting)}, 202, {"Retry-After": "1"})


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

    def look() -> tuple[ImageView, Tree | None]:
        view = resolve_image(service.store, name, reference, wanted)
        return view, service.trees.kept(view)

    def list_page(tree: Tree) -> dict[str, Any]:
        page = list_files(
            tree,
            path.encode(errors="replace"),
            recursive=recursive == "true",
            limit=int(limit),
            after=None if after is None else unquote_to_bytes(after),
        )
        return {"entries": page.entries} if page.next is None else {"entries": page.entries, "next": page.next}

    try:
        view, tree = await service.threads.run(look)
        if tree is None:
            tree = await service.merging.run(service.trees.tree, view)
        return JSONResponse(await service.threads.run(list_page, tree))
    except PendingError as error:
        return JSONResponse({"waiting": list(error.waiting)}, 202, {"Retry-After": "1"})


async def find_tree(
    service: Context, name: str, reference: Digest | str, platform: str | None
) -> tuple[ImageView, TreeFile]:
    """An image and its tree, which is merged if it has to be.

    Raises:
        PendingError: layers are still being read.
        LayerInvalidError, LimitError: it is unmountable.
    """
    view, tree = await _make_tree(service, name, reference, platform, None)
    assert not isinstance(tree, Unfinished), "it was waited for"
    return view, tree


async def _make_tree(
    service: Context,
    name: str,
    reference: Digest | str,
    platform: str | None,
    wait_s: float | None,
    first: int | None = None,
) -> tuple[ImageView, TreeFile | Unfinished]:
    """The same, of the first so many layers; waits for a tree that has to be merged at most so long, if there is a
    limit.

    Raises:
        InvalidError: the image does not have so many layers.
    """
    wanted = None if platform is None else Platform.parse(platform)

    def look() -> tuple[ImageView, TreeFile | None]:
        view = resolve_image(service.store, name, reference, wanted, first)
        if view.state == PENDING:
            raise PendingError(view.digest, view.waiting)
        return view, service.treefiles.known(name, view)

    view, known = await service.threads.run(look)
    if known is not None:
        return view, known
    key = ("tree", name, str(view.origin))
    return view, await service.makers.make(key, wait_s, service.treefiles.build, name, view)


def _parse_layers(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text) or not int(text):
        raise InvalidError(text[:32], "layers is a number, 1 or more")
    return int(text)


def _describe_tree(service: Context, view: ImageView, tree: TreeFile) -> dict[str, Any]:
    pool = service.shared_pool
    return {
        "image": str(view.digest),
        "tree": str(Digest("blake3", tree.digest)),
        "size": len(tree.raw),
        "nodes": tree.node_count,
        "objects": tree.object_count,
        "object_bytes": tree.object_bytes,
        "cache": None if pool is None else {"id": pool.id, "path": str(pool.path)},
    }


def _list_images(service: Context, limit: int, last: tuple[str, str] | None, caller: Access) -> tuple[bytes, str]:
    """A page as JSON, and behind which image the next one begins; "" at the end."""
    damaged: list[DamagedTag] = []
    tagged, more = service.registry.listings.images(limit, last, caller.lists_name, damaged.append)
    found: list[TaggedImage | DamagedTag] = [*tagged, *damaged]
    found.sort(key=lambda one: (one.repository, one.tag))
    deadline = time.monotonic() + _LONGEST_PAGE_S
    entries: list[str] = []
    size = 0
    following = ""
    for place, image in enumerate(found):
        try:
            entries.append(json.dumps(_describe(service, image)))
        except NotFoundError:  # deleted meanwhile
            continue
        size += len(entries[-1])
        ends_early = size >= _LARGEST_PAGE or time.monotonic() >= deadline
        # A page ends at a sound tag: one whose key is damaged may be out of its place.
        if ends_early and place + 1 < len(found) and not isinstance(image, DamagedTag):
            following = f"{image.repository}:{image.tag}"
            break
    else:
        if more and tagged:
            following = f"{tagged[-1].repository}:{tagged[-1].tag}"
    rest = f', "next": {json.dumps(following)}' if following else ""
    return f'{{"images": [{", ".join(entries)}]{rest}}}'.encode(), following


def _describe(service: Context, image: TaggedImage | DamagedTag) -> dict[str, Any]:
    """An entry: what is damaged is named as such, and keeps nobody from the others."""
    if isinstance(image, DamagedTag):
        return describe_damage(image.repository, image.tag, image.error)
    try:
        return describe_tag(service.store, image)
    except CorruptError as error:
        log.error("the image %s:%s is damaged: %s", image.repository, image.tag, error)
        return describe_damage(image.repository, image.tag, error, image)


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
