"""Objects of a tree: page reads, whole or in ranges.

The product's read path. `ObjectFront` stands before the application and answers what can be answered at once: the tree
is known, the tree has the object, and the pages are in the pool. It does no routing, no parsing beyond the path and the
conditions, no transaction and no step into a thread; a body is a view of the pool's pages. Everything else, errors
too, takes the way through the routes below it, which know the same and may block.

An object that is not of the tree is 404, whether it is nowhere or in another image.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Path, Request, Response

from pagepool.digest import Digest
from pagepool.errors import DigestInvalidError, ObjectUnknownError, PagepoolError, RangeInvalidError
from pagepool_service.auth.principals import PULL
from pagepool_service.observing import TEMPLATE
from pagepool_service.routes.context import Context, Service
from pagepool_service.routes.described import (
    BINARY,
    LENGTH,
    PARTS,
    failures,
    head_failures,
    header,
    header_parameter,
    success,
)
from pagepool_service.routes.errors import render
from pagepool_service.routes.parameters import DIGEST_PATTERN, Repository
from pagepool_service.routes.ranges import CONDITIONS, Answer, part_head, parts_end, plan_answer
from pagepool_service.routes.streaming import PieceResponse, open_pieces

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from starlette.types import ASGIApp, Receive, Scope, Send

    from pagepool.image.treefile import ObjectInfo, TreeFile
    from pagepool_service.cache import ExtentCache

router = APIRouter()

_PATH = "/v1/{name:repository}/trees/{tree}/objects/{object}"
_TEMPLATE = _PATH.replace(":repository", "")
_MEDIA_TYPE = "application/octet-stream"
_MULTIPART = "multipart/byteranges"
_OBJECT_PATTERN = r"^(blake3:)?[0-9a-f]{64}$"
_AT_ONCE = 1 << 20  # a larger body is gone through piece by piece
_MOST_KNOWN = 16384
_HEX = re.compile(r"[0-9a-f]{64}")
_LOOKED_AT = CONDITIONS | {b"origin"}  # a script of a web page is told by others whether it may see the answer
_ONE_RANGE = re.compile(rb"bytes=([0-9]{1,18})-([0-9]{1,18})")


@dataclass(frozen=True, slots=True)
class Subject:
    """An object to answer with.

    Args:
        headers: that every good answer has.
    """

    info: ObjectInfo
    etag: str
    headers: list[tuple[bytes, bytes]]


def subject_of(tree: TreeFile, digest: bytes) -> Subject:
    """An object of a tree.

    Raises:
        ObjectUnknownError: the tree does not have it.
    """
    place = tree.find_object(digest)
    if place < 0:
        raise ObjectUnknownError(Digest("blake3", digest))
    etag = f'"{Digest("blake3", digest)}"'
    headers = {"etag": etag, "cache-control": "private, max-age=31536000, immutable"}
    return Subject(tree.object(place), etag, [(name.encode(), value.encode()) for name, value in headers.items()])


def parse_object(text: str) -> bytes:
    """The digest of an object, ``blake3:HEX`` or the hex alone, as lists of files have it.

    Raises:
        DigestInvalidError: it is neither.
    """
    value = text.removeprefix("blake3:")
    if not _HEX.fullmatch(value):
        raise DigestInvalidError(text)
    return bytes.fromhex(value)


def parse_tree(text: str) -> bytes:
    """The digest of a tree, ``blake3:HEX``.

    Raises:
        DigestInvalidError: it is none.
    """
    if not text.startswith("blake3:"):
        raise DigestInvalidError(text)
    return parse_object(text)


@dataclass(frozen=True, slots=True)
class _Known:
    """What a path stands for, as long as its repository has the tree.

    Args:
        whole: headers of an answer with all of the object.
        part: headers of one with a part, but its length and place.
    """

    name: str
    tree: bytes
    subject: Subject
    whole: list[tuple[bytes, bytes]]
    part: list[tuple[bytes, bytes]]


class ObjectFront:
    """Answers page reads before anything else is asked.

    Every step counts here. What a path stands for is remembered, since trees never change; that the repository has the
    tree is asked each time. Under `worker.PageProtocol` a page read does not even become a task.

    Args:
        app: everything else.
        service: of this worker.
    """

    def __init__(self, app: ASGIApp, service: Context) -> None:
        self.app = app
        self._warm = service.treefiles.warm
        self._view = service.cache.view
        self._authority = service.authority
        self._known: dict[str, _Known] = {}

    def page(self, path: str, headers: Iterable[tuple[bytes, bytes]]) -> tuple[int, bytes, memoryview | bytes] | None:
        """The answer to a GET, for a server that need not go by ASGI: status, encoded headers, and body.

        Returns:
            None if it cannot be given at once: then the application is to be asked.
        """
        answer = self._answer(path, "GET", headers)
        if answer is None:
            return None
        status, fields, body = answer
        return status, b"".join([b"%b: %b\r\n" % pair for pair in fields]), body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass the request on."""
        if scope["type"] == "http" and "/objects/" in scope["path"] and scope["method"] in ("GET", "HEAD"):
            answer = self._answer(scope["path"], scope["method"], scope["headers"])
            if answer is not None:
                status, fields, body = answer
                scope[TEMPLATE] = _TEMPLATE
                await send({"type": "http.response.start", "status": status, "headers": fields})
                await send({"type": "http.response.body", "body": body})
                return
        await self.app(scope, receive, send)

    def _answer(
        self, path: str, method: str, headers: Iterable[tuple[bytes, bytes]]
    ) -> tuple[int, list[tuple[bytes, bytes]], memoryview | bytes] | None:
        """Status, headers and body, if the answer can be given at once."""
        known = self._known.get(path)
        if known is None:
            known = self._find(path)
        elif self._warm(known.name, known.tree) is None:
            return None
        if known is None or (self._authority is not None and not self._may(headers, known.name)):
            return None
        info = known.subject.info
        start, end, fields = 0, info.size, known.whole
        conditions = [pair for pair in headers if pair[0] in _LOOKED_AT]
        if conditions and method == "GET":
            match = _ONE_RANGE.fullmatch(conditions[0][1])
            if len(conditions) > 1 or match is None or conditions[0][0] != b"range":
                return None
            start, end = int(match[1]), min(end, int(match[2]) + 1)
            if start >= end:
                return None
            place = b"bytes %d-%d/%d" % (start, end - 1, info.size)
            fields = [*known.part, (b"content-length", b"%d" % (end - start)), (b"content-range", place)]
        elif conditions:
            return None
        if method == "HEAD":
            return 200, fields, b""
        body = self._view(info, start, end) if end - start <= _AT_ONCE else None
        return None if body is None else (206 if conditions else 200, fields, body)

    def _may(self, headers: Iterable[tuple[bytes, bytes]], name: str) -> bool:
        """Whether it is known at once that the request may be made. Else `routes.access` finds out."""
        access = None if self._authority is None else self._authority.known(headers)
        return access is not None and access.may(PULL, name)

    def _find(self, path: str) -> _Known | None:
        """What a path names, if its repository has the tree, and that is known without asking."""
        head, _, wanted = path.rpartition("/objects/")
        name, found, tree_text = head.rpartition("/trees/")
        if not found or not name.startswith("/v1/"):
            return None
        try:
            digest = parse_tree(tree_text)
            tree = self._warm(name[4:], digest)
            if tree is None:
                return None
            subject = subject_of(tree, parse_object(wanted))
        except PagepoolError:  # it will be found again where errors are answered
            return None
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        part = [*subject.headers, (b"content-type", _MEDIA_TYPE.encode())]
        whole = [*part, (b"accept-ranges", b"bytes"), (b"content-length", b"%d" % subject.info.size)]
        known = self._known[path] = _Known(name[4:], digest, subject, whole, part)
        return known


ObjectText = Annotated[
    str, Path(description="The object: BLAKE3 of its content.", json_schema_extra={"pattern": _OBJECT_PATTERN})
]
TreeText = Annotated[str, Path(description="Digest of the tree.", json_schema_extra={"pattern": DIGEST_PATTERN})]
_HEADERS = {
    "Content-Length": LENGTH,
    "ETag": header("The digest, quoted."),
    "Accept-Ranges": header("`bytes`."),
    "Cache-Control": header("It never changes."),
}
_GET_CONDITIONS = {
    "parameters": [
        header_parameter("Range", "Ranges of bytes; at most 256."),
        header_parameter("If-Range", "Heed `Range` only if this is the ETag."),
        header_parameter("If-None-Match", "Answer 304 if the ETag is among these."),
        header_parameter("If-Match", "Answer 412 unless the ETag is among these."),
    ]
}


@router.get(
    _PATH,
    response_class=Response,
    openapi_extra=_GET_CONDITIONS,
    responses={
        200: success("The object.", _HEADERS, BINARY),
        206: success("Ranges of it; several as `multipart/byteranges`.", _HEADERS, PARTS),
        304: success("The client has it."),
        412: success("The client asks for another."),
        **failures(416),
    },
)
async def get_object(
    request: Request,
    service: Service,
    name: Repository,
    tree: TreeText,
    object: ObjectText,
) -> Response:
    """Read an object of a tree: all of it, or ranges."""
    subject = await _subject(service, name, tree, object)
    try:
        plan = plan_answer(_conditions(request), "GET", subject.etag, subject.info.size)
    except RangeInvalidError as error:
        return render(error, **{"Content-Range": f"bytes */{subject.info.size}"})
    if not plan.parts:
        return Response(status_code=plan.status, headers=_fields(subject))
    return await _send(service, subject, plan)


@router.head(
    _PATH,
    response_class=Response,
    responses={
        200: success("The object is there.", _HEADERS),
        304: success("The client has it."),
        412: success("The client asks for another."),
        **head_failures(),
    },
)
async def head_object(
    request: Request,
    service: Service,
    name: Repository,
    tree: TreeText,
    object: ObjectText,
) -> Response:
    """Check for an object of a tree."""
    subject = await _subject(service, name, tree, object)
    plan = plan_answer(_conditions(request), "HEAD", subject.etag, subject.info.size)
    headers = _fields(subject)
    if plan.parts:
        headers |= {"content-type": _MEDIA_TYPE, "content-length": str(subject.info.size)}
    return Response(status_code=plan.status, headers=headers)


async def _subject(service: Context, name: str, tree: str, wanted: str) -> Subject:
    found = await service.threads.run(service.treefiles.resolve, name, parse_tree(tree))
    return subject_of(found, parse_object(wanted))


def _conditions(request: Request) -> dict[bytes, bytes]:
    chosen: dict[bytes, bytes] = {}
    for name, value in request.headers.raw:
        if name in CONDITIONS:
            chosen[name] = chosen[name] + b", " + value if name in chosen else value
    return chosen


def _fields(subject: Subject) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in subject.headers} | {"accept-ranges": "bytes"}


async def _send(service: Context, subject: Subject, plan: Answer) -> Response:
    """The parts of an object, filled as they go out."""
    info, headers = subject.info, _fields(subject)
    length = sum(end - start for start, end in plan.parts)
    headers["content-type"] = _MEDIA_TYPE
    if plan.boundary:
        heads = [part_head(plan.boundary, _MEDIA_TYPE, start, end, info.size) for start, end in plan.parts]
        length += sum(map(len, heads)) + len(parts_end(plan.boundary))
        headers["content-type"] = f"{_MULTIPART}; boundary={plan.boundary}"
    elif plan.status == 206:
        ((start, end),) = plan.parts
        headers["content-range"] = f"bytes {start}-{end - 1}/{info.size}"
        del headers["accept-ranges"]  # an answer that is a range says so; `ObjectFront` sends the same headers
    reader, first = await open_pieces(service.threads, _pieces, service.cache, info, plan)
    return PieceResponse(
        service.threads,
        reader,
        first,
        status=plan.status,
        headers=headers,
        size=length,
        name=f"object {info.digest.hex()}",
    )


def _pieces(cache: ExtentCache, info: ObjectInfo, plan: Answer) -> Iterator[bytes | memoryview]:
    for start, end in plan.parts:
        if plan.boundary:
            yield part_head(plan.boundary, _MEDIA_TYPE, start, end, info.size)
        yield from cache.pieces(info, start, end)
    if plan.boundary:
        yield parts_end(plan.boundary)
