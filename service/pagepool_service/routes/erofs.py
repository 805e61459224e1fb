"""EROFS images of trees, for nodes that mount them (docs/format/erofs.md): who may have the tree may have its image.

The ETag is the BLAKE3 of the image, by which the client verifies it. It goes out compressed with zstd where the client
takes that and asks for all of it, as the tree file does. An image that was not made before is made on request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter, Request, Response

from pagepool.errors import RangeInvalidError
from pagepool_service.routes.context import Context, Service
from pagepool_service.routes.described import BINARY, failures, head_failures, header, success
from pagepool_service.routes.errors import render
from pagepool_service.routes.making import PREFER, UNFINISHED, Unfinished, preferred_wait_s
from pagepool_service.routes.objects import TreeText, parse_tree
from pagepool_service.routes.parameters import Repository, byte_range
from pagepool_service.routes.streaming import PieceResponse, open_pieces
from pagepool_service.routes.trees import (
    CODED,
    CONDITIONS,
    HEADERS,
    SMALLEST,
    etag_of,
    fields_of,
    is_known,
    takes_zstd,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pagepool_service.erofsimages import ErofsImage

router = APIRouter()

_PATH = "/v1/{name:repository}/trees/{tree}/erofs"
_MEDIA_TYPE = "application/vnd.pagepool.erofs.v1"
_CONTENT = {_MEDIA_TYPE: next(iter(BINARY.values()))}


@router.get(
    _PATH,
    response_class=Response,
    openapi_extra={"parameters": [*CONDITIONS["parameters"], PREFER]},
    responses={
        200: success("The image.", CODED, _CONTENT),
        202: UNFINISHED,
        206: success("The range of it.", {**HEADERS, "Content-Range": header("Which bytes.")}, _CONTENT),
        304: success("The client has it."),
        **failures(413, 416, 507),
    },
)
async def get_tree_erofs(request: Request, service: Service, name: Repository, tree: TreeText) -> Response:
    """Read the EROFS image of a tree. All of it is compared with its digest before it is sent."""
    found = await _image(request, service, name, parse_tree(tree), whole="range" not in request.headers)
    if isinstance(found, Unfinished):
        return found.answer()
    return await _send(request, service, tree, found)


async def _send(request: Request, service: Context, tree: str, image: ErofsImage) -> Response:
    """The answer with an image, or with what is asked of it."""
    etag = etag_of(image.digest)
    asked = request.headers.get("if-range", etag).strip() == etag
    try:
        wanted = byte_range(request.headers.get("range"), image.size) if asked else None
    except RangeInvalidError as error:
        return render(error, **{"Content-Range": f"bytes */{image.size}"})
    coded = wanted is None and image.size >= SMALLEST and takes_zstd(request.headers.get("accept-encoding", ""))
    headers = fields_of(etag_of(image.digest, coded="zstd") if coded else etag)
    if is_known(request, image.digest):
        return Response(status_code=304, headers=headers)
    status = 200 if wanted is None else 206
    start, end = wanted or (0, image.coded_size if coded else image.size)
    if wanted is not None:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{image.size}"
    if coded:
        headers["Content-Encoding"] = "zstd"
    reader, first = await open_pieces(service.threads, _pieces, image, start, end, coded)
    headers["Content-Type"] = _MEDIA_TYPE
    return PieceResponse(
        service.threads, reader, first, status=status, headers=headers, size=end - start, name=f"image of {tree}"
    )


@router.head(
    _PATH,
    response_class=Response,
    openapi_extra={"parameters": [PREFER]},
    responses={
        200: success("The image can be had.", HEADERS),
        202: {"description": "It is being made; only where `Prefer` asks for this answer."},
        304: success("The client has it."),
        **head_failures(413, 507),
    },
)
async def head_tree_erofs(request: Request, service: Service, name: Repository, tree: TreeText) -> Response:
    """Check for the EROFS image of a tree; it is made if it has to be."""
    image = await _image(request, service, name, parse_tree(tree))
    if isinstance(image, Unfinished):
        return Response(status_code=202, headers={"Retry-After": "1", "Preference-Applied": "respond-async"})
    headers = fields_of(etag_of(image.digest))
    if is_known(request, image.digest):
        return Response(status_code=304, headers=headers)
    return Response(headers={**headers, "Content-Length": str(image.size)}, media_type=_MEDIA_TYPE)


async def _image(
    request: Request, service: Context, name: str, digest: bytes, *, whole: bool = False
) -> ErofsImage | Unfinished:
    """The image of a tree; if all of it is to be sent, compared once more with its digest."""
    tree = await service.threads.run(service.treefiles.resolve, name, digest)
    found = await service.threads.run(service.erofs.find, digest)
    if whole and found is not None and not await service.threads.run(service.erofs.check, digest, found):
        found = None
    if found is not None:
        return found
    key = ("erofs", digest.hex())
    return await service.makers.make(key, preferred_wait_s(request), service.erofs.build, tree)


def _pieces(image: ErofsImage, start: int, end: int, coded: bool) -> Iterator[bytes]:
    return image.pieces(start, end, coded=coded)
