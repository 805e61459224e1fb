"""Bodies out of blocking readers: order, read-ahead, errors in the middle, clients that leave."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from pagepool.errors import CorruptError
from pagepool_service.routes import streaming
from pagepool_service.routes.streaming import PIECE_SIZE, BrokenOffError, PieceResponse, Threads, Transfers, open_pieces

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.types import Message


class Source:
    """A blocking iterator that tells what was asked of it, and by how many threads at once."""

    def __init__(self, pieces: list[bytes | Exception]) -> None:
        self._pieces = iter(pieces)
        self._busy = threading.Lock()
        self.taken = 0
        self.closed = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        assert self._busy.acquire(blocking=False), "two threads read at once"
        try:
            piece = next(self._pieces)
            if isinstance(piece, Exception):
                raise piece
            self.taken += 1
            return piece
        finally:
            self._busy.release()

    def close(self) -> None:
        """As generators have it."""
        assert self._busy.acquire(blocking=False), "closed while it is read"
        self.closed = True
        self._busy.release()


class Client:
    """The other end: takes messages, and may leave."""

    def __init__(self, leave_after: int = 1 << 60) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.body = b""
        self.complete = False
        self._leave_after = leave_after
        self._gone = asyncio.Event()
        self.begun = asyncio.Event()

    async def receive(self) -> Message:
        """Nothing, until it leaves."""
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Take a message."""
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], dict(message["headers"])
            self.begun.set()
            return
        self.body += message["body"]
        self.complete = not message["more_body"]
        if len(self.body) >= self._leave_after:
            self._gone.set()
        await asyncio.sleep(0)


def respond(source: Source, size: int, client: Client) -> None:
    """Send what a source yields to a client."""

    async def run() -> None:
        with ThreadPoolExecutor(4) as executor:
            threads = Threads(executor)
            reader, first = await open_pieces(threads, lambda: source)
            answer = PieceResponse(threads, reader, first, status=200, headers={"X": "y"}, size=size, name="test")
            scope: dict[str, Any] = {"type": "http"}
            await answer(scope, client.receive, client.send)

    asyncio.run(run())


@pytest.mark.parametrize("lengths", [[1], [PIECE_SIZE], [PIECE_SIZE] * 5, [131072] * 33, [1] * 100, [PIECE_SIZE, 1]])
def test_everything_arrives_in_order(lengths: list[int]) -> None:
    """Announced by its length, and the source is closed."""
    pieces = [bytes((number % 256,)) * length for number, length in enumerate(lengths)]
    source, client = Source(list(pieces)), Client()
    respond(source, sum(lengths), client)
    assert (client.status, client.body, client.complete) == (200, b"".join(pieces), True)
    assert client.headers[b"content-length"] == str(sum(lengths)).encode()
    assert client.headers[b"x"] == b"y"
    assert source.closed


def test_damage_in_the_middle_ends_the_connection() -> None:
    """What was sent before was right; the client sees that there is less than announced."""
    good = b"x" * PIECE_SIZE
    source, client = Source([good, good, CorruptError("extent", "ab", "test")]), Client()
    with pytest.raises(BrokenOffError):
        respond(source, 4 * PIECE_SIZE, client)
    assert (client.body, client.complete) == (2 * good, False)
    assert source.closed


def test_damage_at_once_can_be_answered() -> None:
    """It is raised before anything was sent."""
    client = Client()
    with pytest.raises(CorruptError):
        respond(Source([CorruptError("extent", "ab", "test")]), 10, client)
    assert client.status == 0


def test_source_that_ends_early() -> None:
    """Is a fault that the client must notice."""
    client = Client()
    with pytest.raises(BrokenOffError):
        respond(Source([b"x" * PIECE_SIZE]), 2 * PIECE_SIZE, client)
    assert not client.complete


def test_client_that_leaves_is_noticed() -> None:
    """Nothing more is read than was on its way."""
    source, client = Source([b"x" * PIECE_SIZE] * 100), Client(leave_after=3 * PIECE_SIZE)
    respond(source, 100 * PIECE_SIZE, client)
    assert source.taken <= 6
    assert source.closed


def test_answers_share_memory() -> None:
    """The more there are, the smaller their pieces; one that has ended, or never began, has no share."""
    most = 8 * PIECE_SIZE
    transfers = Transfers(most)
    assert transfers.piece_size == PIECE_SIZE
    for count in (2, 5, 30):
        transfers.count = count
        assert transfers.piece_size == max(64 << 10, min(PIECE_SIZE, most // (4 * count)))

    async def run() -> None:
        with ThreadPoolExecutor(4) as executor:
            threads = Threads(executor, transfer_bytes=most)
            pieces: list[bytes | Exception] = [bytes(64 << 10)] * 64
            opened = [await open_pieces(threads, lambda: Source(list(pieces))) for _ in range(10)]
            assert [sum(map(len, first)) for _, first in opened[::9]] == [PIECE_SIZE, 256 << 10]
            assert threads.transfers.count == 10
            with pytest.raises(CorruptError):
                await open_pieces(threads, lambda: Source([CorruptError("extent", "ab", "test")]))
            for reader, _ in opened * 2:
                reader.close()
            assert threads.transfers.count == 0

    asyncio.run(run())


class Slow:
    """A source that has nothing until it is told to, and never waits."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.left = [b"abc", b"def"]
        self.closed = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if not self.go_on.is_set():
            return b""
        if not self.left:
            raise StopIteration
        return self.left.pop(0)

    def close(self) -> None:
        """As generators have it."""
        self.closed = True


def test_who_waits_for_what_is_being_made_holds_no_thread() -> None:
    """There is one thread, and more who wait than that."""

    async def run() -> None:
        with ThreadPoolExecutor(1) as executor:
            threads = Threads(executor)
            slow = [Slow() for _ in range(5)]
            opening = [asyncio.create_task(open_pieces(threads, lambda one=one: one)) for one in slow]
            for _ in range(3):
                assert await threads.run(lambda: "another's") == "another's"
            assert not any(task.done() for task in opening)
            for one in slow:
                one.go_on.set()
            for task in opening:
                reader, first = await task
                assert b"".join(first) == b"abcdef"
                reader.close()

    asyncio.run(run())


def test_who_waits_is_answered_in_time_and_may_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the head of the answer, though there is nothing to send yet."""
    monkeypatch.setattr(streaming, "_ANSWERED_S", 0.0)

    async def run() -> None:
        with ThreadPoolExecutor(1) as executor:
            threads = Threads(executor)
            for leaves in (False, True):
                slow, client = Slow(), Client()
                reader, first = await open_pieces(threads, lambda slow=slow: slow)
                assert first == []
                answer = PieceResponse(threads, reader, first, status=200, headers={}, size=6, name="it")
                sending = asyncio.create_task(answer({"type": "http"}, client.receive, client.send))
                await client.begun.wait()
                if leaves:
                    client._gone.set()
                else:
                    slow.go_on.set()
                await sending
                assert (client.body, client.complete) == ((b"", False) if leaves else (b"abcdef", True))
                assert slow.closed
                assert threads.transfers.count == 0

    asyncio.run(run())
