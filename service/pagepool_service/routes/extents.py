"""Extents of a tree, many at once: the stream that pools are filled from (docs/format/wire.md).

What the stream is made of is `extentstream`'s. Here: the request's bounds, the tree it is about, and a body that goes
out piece by piece, one ahead of the network. A client that takes nothing for the configured time is let go of.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Query, Request, Response

from pagepool.errors import InvalidError, LimitError, PagepoolError
from pagepool.extents.wire import DIGEST_SIZE, MAX_WANTED, MEDIA_TYPE, parse_wanted
from pagepool_service.extentstream import ExtentStream
from pagepool_service.routes.context import Context, Service
from pagepool_service.routes.described import binary_body, failures, success
from pagepool_service.routes.objects import TreeText, parse_tree
from pagepool_service.routes.parameters import Repository, content_length
from pagepool_service.routes.streaming import BrokenOffError, body_chunks, until_disconnect

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.types import Receive, Scope, Send

    from pagepool_service.routes.bodies import BodyMemory
    from pagepool_service.routes.streaming import Threads

log = logging.getLogger("pagepool.http")
router = APIRouter()

_LARGEST_BODY = MAX_WANTED * DIGEST_SIZE
_PART = 256 << 10
_AT_ONCE = 64 << 10
_HEADERS = {"Cache-Control": "private, no-store"}

OrderQuery = Annotated[
    str | None,
    Query(
        description="asked: frames come in the order in which they were asked for; else as they are stored.",
        json_schema_extra={"enum": ["stored", "asked"]},
    ),
]


@router.post(
    "/v1/{name:repository}/trees/{tree}/extents",
    response_class=Response,
    openapi_extra=binary_body("Raw BLAKE3 digests, 32 bytes each; at most 16,384.", required=True),
    responses={
        200: success("The extents stream.", content={MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}),
        **failures(413),
    },
)
async def post_extents(
    request: Request, service: Service, name: Repository, tree: TreeText, order: OrderQuery = None
) -> Response:
    """Read extents of a tree, as frames. Every one has to belong to the tree."""
    if order not in (None, "stored", "asked"):
        raise InvalidError(order[:32], "order is stored or asked")
    wanted = parse_wanted(await read_body(request, service, _LARGEST_BODY, "list of extents"))
    digest = parse_tree(tree)

    def begin() -> tuple[Iterator[bytes], list[bytes]]:
        found = service.treefiles.resolve(name, digest)
        pieces = iter(ExtentStream(service.store, found, wanted, as_asked=order == "asked"))
        return pieces, _first(pieces)

    pieces, first = await service.threads.run(begin)
    if first[-1:] == [b""]:
        return Response(b"".join(first), headers=_HEADERS, media_type=MEDIA_TYPE)
    return StreamResponse(service.threads, pieces, b"".join(first), service.settings.body_timeout_s)


def _first(pieces: Iterator[bytes]) -> list[bytes]:
    """What there is at once: all of a short answer, with b"" at its end, for handing over each of its pieces takes
    longer than making it; else a little."""
    found: list[bytes] = []
    while sum(map(len, found)) < _AT_ONCE:
        found.append(next(pieces, b""))
        if not found[-1]:
            break
    return found


async def read_body(
    request: Request, service: Context, limit: int, what: str, memory: BodyMemory | None = None
) -> bytes:
    """A request's body, which is small.

    Args:
        memory: that it shares; None for that of all documents.

    Raises:
        LimitError: it is larger than `limit`.
        BusyError: too many others are on their way.
    """
    body = bytearray()
    announced = content_length(request.headers)
    async with (memory or service.bodies).hold(limit if announced is None else min(limit, announced)) as coming:
        async for chunk in body_chunks(request, service.settings.body_timeout_s):
            coming.came(len(chunk))
            body += chunk
            if len(body) > limit:
                raise LimitError(what, len(body), limit)
    return bytes(body)


class StreamResponse(Response):
    """An answer of unknown length, from a blocking iterator; at most two of its pieces are in memory.

    Args:
        pieces: what follows the first.
        first: its beginning.
        timeout_s: longest time that the client may take for a part of a piece.
    """

    media_type = MEDIA_TYPE

    def __init__(self, threads: Threads, pieces: Iterator[bytes], first: bytes, timeout_s: float) -> None:
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self._threads = threads
        self._pieces = pieces
        self._first = first
        self._timeout_s = timeout_s

    async def __call__(
        self,
        scope: Scope,  # noqa: ARG002  (ASGI)
        receive: Receive,
        send: Send,
    ) -> None:
        """Send it."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        gone = asyncio.create_task(until_disconnect(receive))
        piece: bytes | None = self._first
        ahead: asyncio.Future[bytes | None] | None = None
        try:
            while piece is not None and not gone.done():
                ahead = self._threads.start(next, self._pieces, None)
                await self._send(send, piece)
                piece, ahead = await ahead, None
            if piece is None:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except (PagepoolError, TimeoutError) as error:
            log.error("an extents stream broke off: %s", str(error) or "the client took nothing of it")
            raise BrokenOffError("extents stream") from error
        finally:
            gone.cancel()
            if ahead is not None:
                await asyncio.wait([ahead])
                ahead.exception()  # it is of no interest any more

    async def _send(self, send: Send, piece: bytes) -> None:
        view = memoryview(piece)
        for start in range(0, len(piece), _PART):
            async with asyncio.timeout(self._timeout_s):
                await send({"type": "http.response.body", "body": view[start : start + _PART], "more_body": True})
