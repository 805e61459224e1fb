"""What is done for every request around the application: its id, its figures, its line in the access log, its trace.

Page reads that `worker.PageProtocol` answers at once do not come by here: they have no id, unless they bring one (then
they take the usual way), and are counted in bulk. With an access log all requests take the usual way.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from pagepool_service import requestids

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from pagepool_service.metrics.recording import RequestMetrics
    from pagepool_service.routes.objects import ObjectFront
    from pagepool_service.seeing.tally import Tally
    from pagepool_service.tracing.exporting import Tracing

log = logging.getLogger("pagepool.access")

# A request that brings an id is to be answered with it, which the page reads that bring none should not pay for.
_NOT_PLAIN = frozenset(
    (b"content-length", b"transfer-encoding", b"expect", b"upgrade", b"connection", requestids.HEADER)
)

_PROBES = ("/healthz", "/readyz")

TEMPLATE = "pagepool.route"
"""Key of a scope: the template of the route, where the router was not asked."""


class Observer:
    """Gives each request its id, and counts it.

    Args:
        front: the application.
        metrics: None to count nothing for them.
        tally: None to count nothing for it.
        place: of this worker there, from 0.
        access_log: log each request.
        tracing: makes spans of requests; None to make none.
    """

    def __init__(
        self,
        front: ObjectFront,
        metrics: RequestMetrics | None = None,
        tally: Tally | None = None,
        place: int = 0,
        *,
        access_log: bool = False,
        tracing: Tracing | None = None,
    ) -> None:
        self.app: ASGIApp = front
        self.page = front.page
        self.page_reads = self.page_bytes = 0  # since they were flushed; `worker.PageProtocol` adds to them
        self._metrics = metrics
        self._tally, self._place = tally, place
        self.logs = access_log
        self._tracing = tracing
        self.not_plain = _NOT_PLAIN if tracing is None else _NOT_PLAIN | {b"traceparent"}
        """Headers of requests that are not answered at once."""
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
        span = None if self._tracing is None else self._tracing.begin(scope)
        status = sent = received = 0

        async def send_observed(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                if span is not None:
                    span.answered(status, message["headers"])
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
            template = _template(scope)
            if self._metrics is not None:
                self._metrics.observe(template, scope["method"], status, seconds, received, sent)
            if self.logs:
                _log_access(scope, template, status, seconds, received, sent)
            if span is not None:
                span.end(scope, template, status, received, sent, user_of(scope))


def _template(scope: Scope) -> str:
    """The route's path with its parameters' names: what a client sends is never a label."""
    route: Any = scope.get("route")
    return str(scope.get(TEMPLATE) or getattr(route, "path_format", "none"))


def _log_access(scope: Scope, template: str, status: int, seconds: float, received: int, sent: int) -> None:
    """One line for a request that has ended. Probes that find all well come every few seconds: only when debugging."""
    level = logging.DEBUG if scope["path"] in _PROBES and status == 200 else logging.INFO
    if not log.isEnabledFor(level):
        return
    target = (scope.get("raw_path") or scope["path"].encode()).decode("latin-1")
    if scope["query_string"]:
        target += f"?{scope['query_string'].decode('latin-1')}"
    remote, user, method = (scope.get("client") or ("-",))[0], user_of(scope), scope["method"]
    duration = round(seconds, 6)
    fields: dict[str, object] = {
        "method": method,
        "path": target,
        "route": template,
        "status": status,
        "received_bytes": received,
        "sent_bytes": sent,
        "duration_s": duration,
        "remote": remote,
        "user": user or None,
    }
    # As strangers chose them, method and path may hold anything: what formats the line escapes it.
    texts = remote, user or "-", method, target, scope["http_version"], status, received, sent, duration
    log.log(level, '%s %s "%s %s HTTP/%s" %s %d %d %.6f', *texts, extra={"fields": fields})


def user_of(scope: Scope) -> str:
    """Who asked, once somebody has looked at the credentials; "" for nobody in particular."""
    principal = getattr(scope.get("state", {}).get("access"), "principal", None)
    return str(getattr(principal, "name", ""))
