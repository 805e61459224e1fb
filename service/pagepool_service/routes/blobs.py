"""Blobs of a repository: read whole or in part, check, delete (distribution-spec v1.1, end-2 and end-10)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request, Response

from pagepool.errors import RangeInvalidError
from pagepool_service.routes.addresses import location
from pagepool_service.routes.context import Context, Service
from pagepool_service.routes.described import (
    BINARY,
    DIGEST,
    LENGTH,
    LOCATION,
    PARTS,
    failures,
    head_failures,
    header,
    header_parameter,
    success,
)
from pagepool_service.routes.errors import render
from pagepool_service.routes.parameters import BlobDigest, Repository
from pagepool_service.routes.ranges import (
    MOST_SEPARATE_RANGES,
    new_boundary,
    part_head,
    parts_end,
    separate_ranges,
)
from pagepool_service.routes.streaming import PieceResponse, open_pieces

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pagepool.digest import Digest

router = APIRouter()

_SMALL = 128 << 10  # bytes that a connection may hold until its client takes them

_PATH = "/v2/{name:repository}/blobs/{digest}"
_HEADERS = {"Docker-Content-Digest": DIGEST, "Content-Length": LENGTH, "ETag": header("The digest, quoted.")}
_CONDITIONS = {
    "parameters": [
        header_parameter(
            "Range", f"Ranges of bytes; more than {MOST_SEPARATE_RANGES} are answered by all of the blob."
        ),
        header_parameter("If-Range", "Heed `Range` only if this is the ETag."),
        header_parameter("If-None-Match", "Answer 304 if the digest is among these."),
    ]
}


@router.get(
    _PATH,
    response_class=Response,
    openapi_extra=_CONDITIONS,
    responses={
        200: success("The blob.", {**_HEADERS, "Location": LOCATION}, BINARY),
        206: success(
            "The range of it; several as `multipart/byteranges`.",
            {**_HEADERS, "Content-Range": header("Which bytes, if it is one.")},
            PARTS,
        ),
        304: success("The client has it."),
        **failures(416),
    },
)
async def get_blob(request: Request, service: Service, name: Repository, digest: BlobDigest) -> Response:
    """Read a blob, or a range of it. Every byte sent was verified against its digest when it was read."""
    record = await service.threads.run(service.registry.stat_blob, name, digest)
    headers = _headers(service, digest)
    if is_known(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    asked = request.headers.get("if-range", headers["ETag"]).strip() == headers["ETag"]
    try:
        wanted = separate_ranges(request.headers.get("range", "") if asked else "", record.size)
    except RangeInvalidError as error:
        return render(error, **{"Content-Range": f"bytes */{record.size}"})
    if wanted is None:
        # ollama asks so for the address to fetch parts from, and gives up where there is none.
        headers["Location"] = location(request, service, f"/v2/{name}/blobs/{digest}")
        return await _send(service, digest, 0, record.size, 200, headers)
    if len(wanted) > 1:
        return await _send_parts(service, digest, wanted, record.size, headers)
    ((start, end),) = wanted
    headers["Content-Range"] = f"bytes {start}-{end - 1}/{record.size}"
    return await _send(service, digest, start, end, 206, headers)


@router.head(
    _PATH,
    response_class=Response,
    responses={200: success("The blob is there.", _HEADERS), 304: success("The client has it."), **head_failures()},
)
async def head_blob(request: Request, service: Service, name: Repository, digest: BlobDigest) -> Response:
    """Check for a blob."""
    record, old = await service.threads.run(service.registry.find_blob, name, digest)
    if old:  # it is not collected while the client goes on to push a manifest of it
        await service.writers.run(service.registry.renew_blob, name, digest)
    headers = _headers(service, digest)
    if is_known(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    return Response(headers={**headers, "Content-Length": str(record.size)})


@router.delete(
    _PATH, status_code=202, response_class=Response, responses={202: success("Deleted."), **failures(405, 507)}
)
async def delete_blob(service: Service, name: Repository, digest: BlobDigest) -> Response:
    """Remove a blob from a repository, whether manifests refer to it or not. Other repositories keep theirs."""
    await service.writers.run(service.registry.delete_blob, name, digest)
    return Response(status_code=202, headers={"Docker-Content-Digest": str(digest)})


def is_known(request: Request, etag: str) -> bool:
    """Whether the client says it has the content already."""
    known = request.headers.get("if-none-match", "")
    return known.strip() == "*" or etag in (tag.strip().removeprefix("W/") for tag in known.split(","))


def _headers(service: Context, digest: Digest) -> dict[str, str]:
    return {
        "Content-Type": "application/octet-stream",
        "Docker-Content-Digest": str(digest),
        "ETag": f'"{digest}"',
        "Accept-Ranges": "bytes",
        "Cache-Control": service.forever,
    }


async def _send_parts(
    service: Context, digest: Digest, ranges: Sequence[tuple[int, int]], size: int, headers: dict[str, str]
) -> Response:
    """Several ranges, each a part of a ``multipart/byteranges``."""
    boundary = new_boundary()
    heads = [part_head(boundary, headers["Content-Type"], start, end, size) for start, end in ranges]
    tail = parts_end(boundary)

    def pieces() -> Iterator[bytes | memoryview]:
        for head, (start, end) in zip(heads, ranges, strict=True):
            yield head
            yield from service.store.blobs.read(digest, start, end, wait=False)
        yield tail

    length = sum(map(len, heads)) + sum(end - start for start, end in ranges) + len(tail)
    reader, first = await open_pieces(service.threads, pieces)
    return PieceResponse(
        service.threads,
        reader,
        first,
        status=206,
        headers={**headers, "Content-Type": f"multipart/byteranges; boundary={boundary}"},
        size=length,
        name=f"blob {digest}",
    )


async def _send(
    service: Context, digest: Digest, start: int, end: int, status: int, headers: dict[str, str]
) -> Response:
    if start == end:
        return Response(status_code=status, headers=headers)
    reader, first = await open_pieces(
        service.threads, partial(service.store.blobs.read, wait=False), digest, start, end
    )
    if end - start <= _SMALL and sum(map(len, first)) == end - start:
        reader.close()
        return Response(b"".join(first), status, headers)
    return PieceResponse(
        service.threads, reader, first, status=status, headers=headers, size=end - start, name=f"blob {digest}"
    )
