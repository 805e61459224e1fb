"""JSON in the bodies of requests: read whole, bounded, and taken apart with errors that say what is wrong."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from pagepool.errors import BusyError, InvalidError
from pagepool_service.routes.extents import read_body

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fastapi import Request

    from pagepool_service.routes.context import Context


_LONGEST_WAIT_S: Final = 10.0
_PARSED_FREELY: Final = 256 << 10
"""Bytes of a document up to which any number may be parsed at once."""
_PARSED_AT_ONCE: Final = 2


class BodyMemory:
    """Shares memory among documents on their way in: who finds too little waits for others, and is told in the end.

    A document takes some thirty times its size while it is parsed, so of large ones few are parsed at a time.
    In the event loop.

    Args:
        most: bytes of all bodies together. A single one may be larger.
    """

    def __init__(self, most: int) -> None:
        self.held = 0
        self._most = most
        self._parsing = asyncio.Semaphore(_PARSED_AT_ONCE)
        self._freed = asyncio.Event()

    @asynccontextmanager
    async def hold(self, size: int) -> AsyncIterator[None]:
        """Have room for a body as long as the block lasts.

        Raises:
            BusyError: there is none, and there was none for ten seconds.
        """
        try:
            async with asyncio.timeout(_LONGEST_WAIT_S):
                while self.held and self.held + size > self._most:
                    self._freed.clear()
                    await self._freed.wait()
        except TimeoutError:
            raise BusyError(f"{self.held} bytes of documents are on their way in: try again in a moment") from None
        self.held += size
        try:
            yield
        finally:
            self.held -= size
            self._freed.set()

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
