"""What is done for every request around the application: its id, and its figures if metrics are kept.

Page reads that `worker.PageProtocol` answers at once do not come by here: they have no id, unless they bring one (then
they take the usual way), and are counted in bulk.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from pagepool_service import requestids

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from pagepool_service.metrics.recording import RequestMetrics
    from pagepool_service.routes.objects import ObjectFront
    from pagepool_service.seeing.tally import Tally

TEMPLATE = "pagepool.route"
"""Key of a scope: the template of the route, where the router was not asked."""


class Observer:
    """Gives each request its id, and counts it.

    Args:
        front: the application.
        metrics: None to count nothing for them.
        tally: None to count nothing for it.
        place: of this worker there, from 0.
    """

    __slots__ = ("_metrics", "_place", "_requests", "_sent", "_tally", "app", "page", "page_bytes", "page_reads")

    def __init__(
        self, front: ObjectFront, metrics: RequestMetrics | None = None, tally: Tally | None = None, place: int = 0
    ) -> None:
        self.app: ASGIApp = front
        self.page = front.page
        self.page_reads = self.page_bytes = 0  # since they were flushed; `worker.PageProtocol` adds to them
        self._metrics = metrics
        self._tally, self._place = tally, place
        self._requests = self._sent = 0  # since they were flushed

    def flush(self) -> None:
        """Hand over what was counted. In the event loop's thread."""
        reads, size = self.page_reads, self.page_bytes
        requests, sent = self._requests, self._sent
        self.page_reads = self.page_bytes = self._requests = self._sent = 0
        if self._tally is not None:
            self._tally.add(self._place, requests + reads, reads, sent + size)
        if self._metrics is not None:
            self._metrics.add_pages(reads, size)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        field = (requestids.HEADER, requestids.begin(scope["headers"]).encode())
        status = sent = received = 0

        async def send_observed(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                # A new list: the one that came may be what every answer for that object has.
                message["headers"] = [*message["headers"], field]
            else:
                sent += len(message.get("body", b""))
            await send(message)

        async def receive_observed() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            return message

        began_s = time.perf_counter()
        try:
            await self.app(scope, receive_observed, send_observed)
        finally:
            seconds = time.perf_counter() - began_s
            self._requests += 1
            self._sent += sent
            if self._metrics is not None:
                self._metrics.observe(_template(scope), scope["method"], status, seconds, received, sent)


def _template(scope: Scope) -> str:
    """The route's path with its parameters' names: what a client sends is never a label."""
    route: Any = scope.get("route")
    return str(scope.get(TEMPLATE) or getattr(route, "path_format", "none"))
