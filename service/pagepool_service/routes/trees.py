"""Tree files, by the digest that ``images/{reference}/tree`` names (docs/format/tree.md).

A tree file never changes. It goes out compressed with zstd where the client takes that, which makes it a third;
then its ETag says so, because ranges of the two are not of the same bytes.
"""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from pagepool.digest import Digest
from pagepool.errors import RangeInvalidError
from pagepool_service.routes.context import Service
from pagepool_service.routes.described import (
    BINARY,
    LENGTH,
    failures,
    head_failures,
    header,
    header_parameter,
    success,
)
from pagepool_service.routes.errors import render
from pagepool_service.routes.objects import TreeText, parse_tree
from pagepool_service.routes.parameters import Repository, byte_range
from pagepool_service.routes.ranges import matches

router = APIRouter()

_PATH = "/v1/{name:repository}/trees/{tree}"
_MEDIA_TYPE = "application/vnd.pagepool.tree.v1"
SMALLEST = 512  # bytes that are worth compressing
_CONTENT = {_MEDIA_TYPE: next(iter(BINARY.values()))}
HEADERS = {
    "ETag": header("The digest, quoted; with another ending if the answer is compressed."),
    "Content-Length": LENGTH,
    "Accept-Ranges": header("`bytes`."),
    "Cache-Control": header("It never changes."),
    "Vary": header("`Accept-Encoding`."),
}
CODED = {**HEADERS, "Content-Encoding": header("`zstd` if the client accepts it, and asks for all of the file.")}
CONDITIONS = {
    "parameters": [
        header_parameter("Range", "One range of bytes; several are answered by all of the content."),
        header_parameter("If-Range", "Heed `Range` only if this is the ETag."),
        header_parameter("If-None-Match", "Answer 304 if the ETag is among these."),
        header_parameter("Accept-Encoding", "`zstd` to have it compressed."),
    ]
}


@router.get(
    _PATH,
    response_class=Response,
    openapi_extra=CONDITIONS,
    responses={
        200: success("The tree file.", CODED, _CONTENT),
        206: success("The range of it.", {**HEADERS, "Content-Range": header("Which bytes.")}, _CONTENT),
        304: success("The client has it."),
        **failures(416),
    },
)
async def get_tree_file(request: Request, service: Service, name: Repository, tree: TreeText) -> Response:
    """Read a tree file. It was compared with its digest when it was opened."""
    digest = parse_tree(tree)
    found = await service.threads.run(service.treefiles.resolve, name, digest)
    etag, size = etag_of(digest), len(found.raw)
    asked = request.headers.get("if-range", etag).strip() == etag
    try:
        wanted = byte_range(request.headers.get("range"), size) if asked else None
    except RangeInvalidError as error:
        return render(error, **{"Content-Range": f"bytes */{size}"})
    coded = wanted is None and size >= SMALLEST and takes_zstd(request.headers.get("accept-encoding", ""))
    headers = fields_of(etag_of(digest, coded="zstd") if coded else etag)
    if is_known(request, digest):
        return Response(status_code=304, headers=headers)
    if wanted is not None:
        headers["Content-Range"] = f"bytes {wanted[0]}-{wanted[1] - 1}/{size}"
        return Response(found.raw[slice(*wanted)], 206, headers, _MEDIA_TYPE)
    if coded:
        headers["Content-Encoding"] = "zstd"
        return Response(await service.threads.run(service.coded_trees.compress, found), 200, headers, _MEDIA_TYPE)
    return Response(found.raw, 200, headers, _MEDIA_TYPE)


@router.head(
    _PATH,
    response_class=Response,
    responses={
        200: success("The repository has the tree.", HEADERS),
        304: success("The client has it."),
        **head_failures(),
    },
)
async def head_tree_file(request: Request, service: Service, name: Repository, tree: TreeText) -> Response:
    """Check for a tree file."""
    digest = parse_tree(tree)
    found = await service.threads.run(service.treefiles.resolve, name, digest)
    headers = fields_of(etag_of(digest))
    if is_known(request, digest):
        return Response(status_code=304, headers=headers)
    return Response(headers={**headers, "Content-Length": str(len(found.raw))}, media_type=_MEDIA_TYPE)


def etag_of(digest: bytes, coded: str = "") -> str:
    """The ETag of what has a digest, and of what it is when it is compressed."""
    return f'"{Digest("blake3", digest)}{"+" if coded else ""}{coded}"'


def is_known(request: Request, digest: bytes) -> bool:
    """Whether the client has the file, compressed or not."""
    known = request.headers.get("if-none-match")
    if known is None:
        return False
    return matches(known, etag_of(digest), weak=True) or matches(known, etag_of(digest, coded="zstd"), weak=True)


def fields_of(etag: str) -> dict[str, str]:
    """Headers of an answer with what never changes."""
    return {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, max-age=31536000, immutable",
        "Vary": "Accept-Encoding",
    }


def takes_zstd(accepted: str) -> bool:
    """Whether a list of codings has zstd, and does not rule it out (RFC 9110, section 12.5.3)."""
    for coding in accepted.lower().split(","):
        name, _, weight = coding.partition(";")
        if name.strip() == "zstd":
            return weight.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False
