"""Bodies in and out of the event loop: blocking reads in threads, one piece ahead of the network.

`PieceResponse` sends what a blocking iterator yields: while one piece goes out the next is read, so disk and
decompression overlap with sending, and at most two pieces are in memory. Before the status line is sent the first
piece is there, so an error that shows at once is an error answer; one that shows later ends the connection, and the
client sees fewer bytes than announced. A client that leaves is noticed at the next piece; one that only has said that
he sends no more, as one that leaves does too, when there was nothing to send to him for some time.

An iterator that would have to wait yields an empty piece instead: it is asked again a moment later, and no thread is
held meanwhile.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from typing import TYPE_CHECKING

from starlette.requests import ClientDisconnect
from starlette.responses import Response

from pagepool.errors import PagepoolError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping
    from concurrent.futures import ThreadPoolExecutor
    from typing import TypeVar

    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from pagepool_service.tracing.exporting import Tracing

    Result = TypeVar("Result")

log = logging.getLogger("pagepool.http")

PIECE_SIZE = 1 << 20
_SMALLEST_PIECE = 64 << 10
_NOT_YET: list[bytes | memoryview] = [b""]
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.02, 0.25  # before it is asked again what had nothing yet
_LEFT_S = 10.0  # who sends no more has left if there was nothing for him for so long
_ANSWERED_S = 5.0  # after so long the answer begins, though there is nothing to send


class Transfers:
    """Shares memory among the answers on their way: the more there are, the smaller their pieces. In the event loop.

    Args:
        most: bytes of memory, about. Pieces are never smaller than 64 KiB, or than what the store reads at once.
    """

    def __init__(self, most: int) -> None:
        self.count = 0
        self._most = most

    @property
    def piece_size(self) -> int:
        """Bytes of a piece: an answer has two, one that goes out and one that is read, and what they are cut out of."""
        return max(_SMALLEST_PIECE, min(PIECE_SIZE, self._most // (4 * max(self.count, 1))))


class Threads:
    """Where blocking work runs. What it logs has the id of the request that it is done for.

    Args:
        executor: the threads.
        name: of the kind of work.
        tracing: has spans of what takes long; None for none.
        transfer_bytes: memory for answers whose pieces are read in these threads.
    """

    def __init__(
        self,
        executor: ThreadPoolExecutor,
        name: str = "",
        tracing: Tracing | None = None,
        *,
        transfer_bytes: int = 256 << 20,
    ) -> None:
        self._executor = executor
        self._name = name
        self._tracing = tracing
        self.transfers = Transfers(transfer_bytes)

    async def run(self, function: Callable[..., Result], *arguments: object) -> Result:
        """Call a blocking function in a thread."""
        return await self.start(function, *arguments)

    def start(self, function: Callable[..., Result], *arguments: object) -> asyncio.Future[Result]:
        """Begin a call; the future has its result."""
        call = contextvars.copy_context().run
        if self._tracing is not None:
            function = self._tracing.watch(self._name, function)
        return asyncio.get_running_loop().run_in_executor(self._executor, call, function, *arguments)


class PieceReader:
    """Gathers what an iterator yields into pieces of about `PIECE_SIZE`. Blocks; one thread at a time.

    Made and closed in the event loop, by `open_pieces`.
    """

    def __init__(self, open_source: Callable[[], Iterator[bytes | memoryview]], transfers: Transfers) -> None:
        self._open_source = open_source
        self._source: Iterator[bytes | memoryview] | None = None
        self._transfers: Transfers | None = transfers
        transfers.count += 1

    def next(self) -> list[bytes | memoryview]:
        """The next pieces; none at the end, an empty one if there is nothing yet."""
        parts: list[bytes | memoryview] = []
        size, most = 0, PIECE_SIZE if self._transfers is None else self._transfers.piece_size
        if self._source is None:
            self._source = iter(self._open_source())
        for part in self._source:
            if not part:
                return parts or _NOT_YET
            parts.append(part)
            size += len(part)
            if size >= most:
                break
        return parts

    def close(self) -> None:
        """Let go of what the source holds, and of its share of memory. A second time nothing."""
        if self._transfers is not None:
            self._transfers.count -= 1
            self._transfers = None
        close = getattr(self._source, "close", None)
        if close is not None:
            close()


class PieceResponse(Response):
    """An answer whose body comes from a blocking reader.

    Args:
        first: its first pieces, read already.
        size: bytes of the body, at least one.
        name: what it is, for the log.
    """

    def __init__(
        self,
        threads: Threads,
        reader: PieceReader,
        first: list[bytes | memoryview],
        *,
        status: int,
        headers: Mapping[str, str],
        size: int,
        name: str,
    ) -> None:
        super().__init__(status_code=status, headers={**headers, "Content-Length": str(size)})
        self._threads = threads
        self._reader = reader
        self._first = first
        self._left = size
        self._name = name

    async def __call__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        """Send it."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        gone = asyncio.create_task(until_disconnect(receive))
        ahead: asyncio.Future[list[bytes | memoryview]] | None = None
        parts, self._first = self._first, []
        pauses, moved = _pauses(), time.monotonic()
        try:
            while not gone.done():
                if sum(map(len, parts)) < self._left:
                    ahead = self._threads.start(self._reader.next)
                await self._send(send, parts)
                if ahead is None:
                    return
                parts, ahead = await ahead, None
                if parts == _NOT_YET:
                    parts = []
                    if "sends_no_more" in scope.get("state", ()) and time.monotonic() - moved >= _LEFT_S:
                        raise BrokenOffError(f"{self._name} is waited for no more")
                    await asyncio.wait([gone], timeout=next(pauses))
                    continue
                pauses, moved = _pauses(), time.monotonic()
                if not parts:
                    raise BrokenOffError(f"{self._name} ended {self._left} bytes early")
        except PagepoolError as error:
            log.error("%s broke off with %d bytes to go: %s", self._name, self._left, error)
            raise BrokenOffError(self._name) from error
        finally:
            gone.cancel()
            await self._let_go(ahead)

    async def _send(self, send: Send, parts: list[bytes | memoryview]) -> None:
        for part in parts:
            self._left -= len(part)
            await send({"type": "http.response.body", "body": part, "more_body": self._left > 0})

    async def _let_go(self, ahead: asyncio.Future[list[bytes | memoryview]] | None) -> None:
        """Close the reader, after the read that may be going on in a thread."""
        if ahead is not None:
            await asyncio.wait([ahead])
            ahead.exception()  # it is of no interest any more
        self._reader.close()


class BrokenOffError(Exception):
    """A body that cannot go on: raised through the server, which then closes the connection."""


async def open_pieces(
    threads: Threads, open_source: Callable[..., Iterator[bytes] | Iterator[bytes | memoryview]], *arguments: object
) -> tuple[PieceReader, list[bytes | memoryview]]:
    """Begin to read, so that what is wrong at once can still be answered. Returns the reader, and its first pieces.

    There are none if there was nothing for some time: who waits for the rest notices whether the client does, too.
    """
    reader = PieceReader(lambda: open_source(*arguments), threads.transfers)
    due = time.monotonic() + _ANSWERED_S
    try:
        for pause in _pauses():
            first = await threads.run(reader.next)
            if first != _NOT_YET:
                return reader, first
            if time.monotonic() > due:
                break
            await asyncio.sleep(pause)
    except Exception:
        reader.close()
        raise
    return reader, []


def _pauses() -> Iterator[float]:
    pause = _FIRST_PAUSE_S
    while True:
        yield pause
        pause = min(2 * pause, _LONGEST_PAUSE_S)


async def body_chunks(request: Request, timeout_s: float) -> AsyncIterator[bytes]:
    """The body of a request as it comes.

    Raises:
        ClientDisconnect: the client left before its end, or sent nothing for `timeout_s`.
    """
    stream = request.stream()
    while True:
        try:
            async with asyncio.timeout(timeout_s):
                chunk = await anext(stream, None)
        except TimeoutError:
            raise ClientDisconnect from None
        if chunk is None:
            return
        if chunk:
            yield chunk


async def until_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
