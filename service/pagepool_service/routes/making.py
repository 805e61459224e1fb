"""Answers about what takes long to make: those who would rather be told that it is being made than wait.

A client that sends ``Prefer: respond-async, wait=SECONDS`` (RFC 7240) is answered 202 after that time, with the seconds
since it was begun and the steps made so far, and asks again. All others wait, as they always did: what clients of
earlier versions do. What is asked for by many is made once, and goes on when nobody waits for it.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from fastapi.responses import JSONResponse

from pagepool_service.routes.described import header, header_parameter, json_object, success

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi import Request

    from pagepool_service.making import Steps
    from pagepool_service.routes.streaming import Threads

_MOST_WAIT_S: Final = 30.0
_KEPT_S: Final = 60.0
"""How long it is known how something failed, for who asks again: else he would have it begun once more for ever."""

Key = tuple[str, ...]
Result = TypeVar("Result")

PREFER = header_parameter("Prefer", "`respond-async, wait=SECONDS` to be answered 202 while it is being made.")
_COUNT = {"type": "integer", "minimum": 0}
MAKING = {
    "type": "object",
    "description": "Seconds since it was asked for first, and steps made; as long as they get more it goes on.",
    "properties": {"seconds": _COUNT, "steps": _COUNT},
    "required": ["seconds", "steps"],
}
UNFINISHED = success(
    "It is being made; only where `Prefer` asks for this answer.",
    {"Retry-After": header("Seconds."), "Preference-Applied": header("`respond-async`.")},
    json_object(waiting={"type": "array", "items": {"type": "string"}}, making=MAKING),
)


@dataclass(frozen=True, slots=True)
class Unfinished:
    """Something is still being made.

    Args:
        seconds: since it was asked for first.
        steps: made so far, of this and of what was before it: as long as they get more, it goes on.
    """

    seconds: float
    steps: int

    def answer(self) -> JSONResponse:
        """What the client is told."""
        body = {"waiting": [], "making": {"seconds": int(self.seconds), "steps": self.steps}}
        return JSONResponse(body, 202, {"Retry-After": "1", "Preference-Applied": "respond-async"})


class Makers:
    """What is being made in one worker. For the event loop.

    Args:
        threads: where it is.
        steps: made there.
    """

    def __init__(self, threads: Threads, steps: Steps) -> None:
        self._threads = threads
        self._steps = steps
        self._under_way: dict[Key, tuple[asyncio.Future[Any], float]] = {}

    async def make(
        self, key: Key, wait_s: float | None, function: Callable[..., Result], *arguments: object
    ) -> Result | Unfinished:
        """What a blocking function gives, called in a thread unless it was called for the same key already.

        Args:
            key: says what it is.
            wait_s: how long to wait for it; None: as long as it takes.

        Raises:
            Exception: as the function.
        """
        known = self._under_way.get(key)
        if known is None:
            future: asyncio.Future[Any] = self._threads.start(function, *arguments)
            known = self._under_way[key] = future, time.monotonic()
            future.add_done_callback(lambda _: self._ended(key, future))
        future, begun = known
        done, _ = await asyncio.wait((future,), timeout=wait_s)
        if not done:
            return Unfinished(time.monotonic() - begun, self._steps.count)
        self._drop(key, future)
        result: Result = future.result()
        return result

    def _ended(self, key: Key, future: asyncio.Future[Any]) -> None:
        if future.cancelled() or future.exception() is None:
            self._drop(key, future)
        else:
            asyncio.get_running_loop().call_later(_KEPT_S, self._drop, key, future)

    def _drop(self, key: Key, future: asyncio.Future[Any]) -> None:
        if self._under_way.get(key, (None,))[0] is future:
            del self._under_way[key]


def preferred_wait_s(request: Request) -> float | None:
    """How long a client wants to wait before it is told that something is being made; None: until it is made."""
    words = [word.strip().lower() for line in request.headers.getlist("prefer") for word in line.split(",")]
    if "respond-async" not in words:
        return None
    for word in words:
        name, _, value = word.partition("=")
        if name.strip() == "wait" and value.strip().isascii() and value.strip().isdigit():
            return min(float(value.strip()[:9]), _MOST_WAIT_S)
    return 0.0
