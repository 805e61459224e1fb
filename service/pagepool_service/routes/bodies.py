"""JSON in the bodies of requests: read whole, bounded, and taken apart with errors that say what is wrong."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from pagepool.errors import BusyError, InvalidError
from pagepool_service.routes.extents import read_body

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fastapi import Request

    from pagepool_service.routes.context import Context


_LONGEST_WAIT_S: Final = 10.0
_LOOK_S: Final = 0.5  # between two looks of who waits at whose body does not come
_OWN_S: Final = 3.0  # that a body has its room for, however it comes
_LEAST_RATE: Final = 64 << 10  # bytes a second, after that, of a body whose room others wait for
_SMALL: Final = 64 << 10
"""Bytes of a document, as nearly all are, up to which it finds room beside any number of larger ones."""
_PARSED_FREELY: Final = 256 << 10
"""Bytes of a document up to which any number may be parsed at once."""
_PARSED_AT_ONCE: Final = 2


class Coming:
    """A body that has room, and is on its way in.

    Args:
        size: of its room, in bytes.
        bound: ends the block that it has its room for.
    """

    def __init__(self, size: int, bound: asyncio.Timeout) -> None:
        self.size = size
        self.given_up = False
        self.here = 0
        self._bound = bound
        self._begun = asyncio.get_running_loop().time()
        self._complete = False

    def came(self, size: int) -> None:
        """So many more bytes of it are here."""
        self.here += size

    def complete(self) -> None:
        """All of it is here: it is not given up any more."""
        self._complete = True
        if self.given_up:
            self.given_up = False
            self._bound.reschedule(None)

    def late_s(self) -> float:
        """By how much it is too slow for others to wait for; negative if it is not."""
        if self._complete:
            return -1.0
        return asyncio.get_running_loop().time() - self._begun - _OWN_S - self.here / _LEAST_RATE

    def give_up(self) -> None:
        """Have its request end."""
        self.given_up = True
        self._bound.reschedule(asyncio.get_running_loop().time())


class BodyMemory:
    """Shares memory among documents on their way in: who finds too little waits for others, and is told in the end.

    Bodies that hardly come do not hold it for long: while somebody waits they are given up, the slowest first. A
    quarter is for small documents alone. A document takes some thirty times its size while it is parsed, so of large
    ones few are parsed at a time. In the event loop.

    Args:
        most: bytes of all bodies together. A single one may be larger.
    """

    def __init__(self, most: int) -> None:
        self.held = 0
        self._most = most
        self._parsing = asyncio.Semaphore(_PARSED_AT_ONCE)
        self._freed = asyncio.Event()
        self._coming: set[Coming] = set()

    @asynccontextmanager
    async def hold(self, size: int) -> AsyncIterator[Coming]:
        """Have room for a body as long as the block lasts, which is to say what comes of it, and that all is there.

        Raises:
            BusyError: there is none, and there was none for ten seconds; or it came so slowly that its room was given
                to others.
        """
        await self._wait(size)
        self.held += size
        body: Coming | None = None
        try:
            async with asyncio.timeout(None) as bound:
                body = Coming(size, bound)
                self._coming.add(body)
                yield body
        except TimeoutError:
            if body is None or not body.given_up:
                raise
            raise BusyError(f"{body.here} bytes came of a document, too slowly while others wait: try again") from None
        finally:
            if body is not None:
                self._coming.discard(body)
            self.held -= size
            self._freed.set()

    async def _wait(self, size: int) -> None:
        most = self._most if size <= _SMALL else self._most * 3 // 4
        try:
            async with asyncio.timeout(_LONGEST_WAIT_S):
                while self.held and self.held + size > most:
                    self._give_up_late(self.held + size - most)
                    self._freed.clear()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_LOOK_S):
                            await self._freed.wait()
        except TimeoutError:
            raise BusyError(f"{self.held} bytes of documents are on their way in: try again in a moment") from None

    def _give_up_late(self, needed: int) -> None:
        """Give up bodies that are too slow, until so much room will be free."""
        needed -= sum(body.size for body in self._coming if body.given_up)
        late = [body for body in self._coming if not body.given_up and body.late_s() > 0]
        for body in sorted(late, key=Coming.late_s, reverse=True):
            if needed <= 0:
                return
            body.give_up()
            needed -= body.size

    @asynccontextmanager
    async def parsing(self, size: int) -> AsyncIterator[None]:
        """Wait for one's turn to parse a document of so many bytes."""
        if size <= _PARSED_FREELY:
            yield
            return
        async with self._parsing:
            yield


async def read_object(request: Request, service: Context, limit: int, what: str) -> dict[str, Any]:
    """The JSON object that is a request's body.

    Raises:
        InvalidError: it is none.
        LimitError: it is larger than `limit`.
    """
    body = await read_body(request, service, limit, what)
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidError("body", "it is not JSON") from error
    if not isinstance(document, dict):
        raise InvalidError("body", "it is no object")
    return document


def text_field(document: dict[str, Any], name: str, most: int) -> str:
    """A field of 1 to `most` characters.

    Raises:
        InvalidError: it is none.
    """
    value = document.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= most:
        raise InvalidError("body", f"{name} is no text of 1 to {most} characters")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidError("body", f"{name} has characters that are none") from error
    return value


def json_body(description: str, required: tuple[str, ...], **properties: Any) -> dict[str, Any]:
    """The description of a body that is an object with these fields, for `openapi_extra`."""
    schema = {"type": "object", "required": list(required), "properties": properties}
    content = {"application/json": {"schema": schema}}
    return {"requestBody": {"description": description, "required": True, "content": content}}
