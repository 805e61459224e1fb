"""The bound of `pace` on how slowly an answer may come, for requests of an `httpx.AsyncClient`.

The client is its owner's, and asks for other things, too: so it is the request that is bounded, and no connection. The
head of an answer has to come within the time limit of a read; its body owes time as `pace` says, by the pieces that
come of it.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, Self

import httpx

from pagepool.transport.pace import Owed


async def send(client: httpx.AsyncClient, request: httpx.Request) -> httpx.Response:
    """Send a request that `client` has built. The answer's body is to be read as `Pieces`, and closed.

    Raises:
        httpx.HTTPError: as the client does; ReadTimeout also for a head that trickles.
    """
    limit_s = _limit_s(request)
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(None) as bound:

            async def trace(event: str, _: Any) -> None:
                if event.endswith(".receive_response_headers.started"):
                    bound.reschedule(None if limit_s is None else loop.time() + limit_s)

            request.extensions = {**request.extensions, "trace": trace}
            return await client.send(request, stream=True)
    except TimeoutError:
        raise httpx.ReadTimeout("timed out", request=request) from None


class Pieces:
    """The pieces of an answer's body, as they come over the network.

    Args:
        response: of `send`.
    """

    def __init__(self, response: httpx.Response) -> None:
        self._pieces = response.aiter_raw()
        self._request = response.request
        self._limit_s = _limit_s(response.request)
        self._owed = Owed()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        left_s = None if self._limit_s is None else self._owed.left_s(self._limit_s)
        begun = time.monotonic()
        try:
            async with asyncio.timeout(left_s):
                piece = await anext(self._pieces)
        except TimeoutError:
            raise httpx.ReadTimeout("timed out", request=self._request) from None
        self._owed.count(time.monotonic() - begun, len(piece))
        return piece


def _limit_s(request: httpx.Request) -> float | None:
    """The time limit of a read."""
    limit: float | None = request.extensions.get("timeout", {}).get("read")
    return limit
