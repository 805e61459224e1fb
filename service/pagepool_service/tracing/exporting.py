"""The tracer of one process: spans of requests, of what took threads long, and of layers that were read.

Spans go to a collector by OTLP over HTTP, in batches, by a thread that the SDK starts in each process after the fork.
Its queue is bounded (2048 spans, ``OTEL_BSP_MAX_QUEUE_SIZE``); what does not fit is dropped. A collector that is slow,
dead or wrong keeps nobody waiting: at the end of a process what is left has `_FLUSH_S` to go out.

Names and attributes follow OpenTelemetry's semantic conventions for HTTP servers, 1.23 and later. What a client sent is
an attribute, never a name. The SDK reads its own variables: docs/observability.md.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from typing import TYPE_CHECKING, Any, Final, TypeVar

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from pagepool.version import __version__
from pagepool_service import logfields, requestids
from pagepool_service.tracing.notes import SpanName

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from opentelemetry.util.types import AttributeValue
    from starlette.types import Scope

    from pagepool_service.settings import Settings
    from pagepool_service.store.schema import Job
    from pagepool_service.tracing.notes import PushNotes

    Result = TypeVar("Result")

_FLUSH_S: Final = 1.5
_SEND_TIMEOUT_S: Final = 5.0
_SLOW_S: Final = 0.05
_SELDOM_S: Final = 60.0
_PROBES: Final = ("/healthz", "/readyz")
_CARRIED: Final = (b"traceparent", b"tracestate")
_PROPAGATOR: Final = TraceContextTextMapPropagator()


class Tracing:
    """Makes spans. Thread-safe; its methods take microseconds, but for `close`.

    Args:
        process: what the process is called: ``worker 1``.
        notes: of pushes; None to link nothing.
    """

    def __init__(self, settings: Settings, process: str, notes: PushNotes | None = None) -> None:
        assert settings.trace_endpoint is not None
        _speak_seldom()
        # What the environment says (OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES) goes before what we say.
        ours = {"service.name": "pagepool", "service.version": __version__, "pagepool.process": process}
        said = Resource.create().attributes
        if str(said.get("service.name", "")).startswith("unknown_service"):
            said = {name: value for name, value in said.items() if name != "service.name"}
        self._provider = TracerProvider(resource=Resource({**ours, **said}), shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint=settings.trace_endpoint, timeout=_SEND_TIMEOUT_S)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("pagepool", __version__)
        self._notes = notes

    def close(self) -> None:
        """Send what is left, for a few seconds at most. Blocks."""
        flushing = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        flushing.start()
        flushing.join(_FLUSH_S)

    def begin(self, scope: Scope) -> RequestSpan | None:
        """Begin the span of a request, in the trace that it brings or in one of its own. Everything until its end
        belongs to it.

        Returns:
            None for a probe.
        """
        if scope["path"] in _PROBES:
            return None
        carrier = {name.decode(): value.decode("latin-1") for name, value in scope["headers"] if name in _CARRIED}
        client = scope.get("client") or ("", 0)
        span = self._tracer.start_span(
            str(scope["method"]),
            _PROPAGATOR.extract(carrier),
            SpanKind.SERVER,
            {
                "http.request.method": scope["method"],
                "url.path": scope["path"].encode(errors="backslashreplace").decode(),
                "url.scheme": scope["scheme"],
                "client.address": client[0],
                "network.protocol.version": scope["http_version"],
                "pagepool.request_id": requestids.current.get(),
            },
        )
        return RequestSpan(span, self._notes)

    def watch(self, kind: str, function: Callable[..., Result]) -> Callable[..., Result]:
        """The same function, which leaves a span if it takes `_SLOW_S` or longer: reads of the store among others.

        Args:
            kind: of the threads that it is called in.
        """
        asked = time.time_ns()

        def watched(*arguments: object) -> Result:
            began = time.time_ns()
            try:
                return function(*arguments)
            finally:
                ended = time.time_ns()
                if ended - began >= _SLOW_S * 1e9:
                    name = getattr(function, "__qualname__", type(function).__name__)
                    span = self._tracer.start_span(
                        f"{kind}: {name}",
                        start_time=began,
                        attributes={"code.function.name": name, "pagepool.waited_s": round((began - asked) / 1e9, 6)},
                    )
                    span.end(ended)

        return watched

    @contextlib.contextmanager
    def job(self, job: Job) -> Iterator[Callable[[Mapping[str, AttributeValue]], None]]:
        """The span of a job, for the length of a block; it has a link to the request that pushed the blob.

        Returns:
            takes attributes that are found out meanwhile.
        """
        blob = str(job.blob)
        attributes: dict[str, AttributeValue] = {
            "pagepool.job_id": job.number,
            "pagepool.blob": blob,
            "pagepool.attempt": job.attempts,
        }
        span = self._tracer.start_span(f"job {job.kind.name.lower()}", contexts.Context(), attributes=attributes)
        token = logfields.trace.set(f"{span.get_span_context().trace_id:032x}")
        try:
            with trace.use_span(span, record_exception=True, set_status_on_exception=True):
                yield span.set_attributes
        finally:
            # Now: the job may have begun before the request that pushed the blob was answered.
            pushed = None if self._notes is None else self._notes.find(blob)
            if pushed is not None:
                span.add_link(_context_of(pushed))
            logfields.trace.reset(token)
            span.end()


class RequestSpan:
    """The span of one request, which is the current one until it ends. In the task of the request."""

    def __init__(self, span: trace.Span, notes: PushNotes | None) -> None:
        self._span = span
        self._notes = notes
        self._token = contexts.attach(trace.set_span_in_context(span))
        logfields.trace.set(f"{span.get_span_context().trace_id:032x}")

    def answered(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Before the answer's head goes out: note which blob it says is stored."""
        if self._notes is None or status != 201:
            return
        digest = next((value for name, value in headers if bytes(name).lower() == b"docker-content-digest"), b"")
        if digest:
            told = self._span.get_span_context()
            name = SpanName(told.trace_id.to_bytes(16, "big"), told.span_id.to_bytes(8, "big"), int(told.trace_flags))
            self._notes.put(digest.decode("latin-1"), name)

    def end(self, scope: Scope, template: str, status: int, received: int, sent: int, user: str) -> None:
        """The request has ended.

        Args:
            template: of its route; "none" where there is none.
            status: 0 if there was no answer.
            received, sent: bytes of bodies.
            user: "" for nobody in particular.
        """
        span = self._span
        attributes: dict[str, Any] = {"http.request.body.size": received, "http.response.body.size": sent}
        if status:
            attributes["http.response.status_code"] = status
        if template != "none":
            attributes["http.route"] = template
            span.update_name(f"{scope['method']} {template}")
        repository = scope.get("path_params", {}).get("name")
        if repository and "{name" in template:
            attributes["pagepool.repository"] = str(repository).encode(errors="backslashreplace").decode()
        if user:
            attributes["enduser.id"] = user
        if status >= 500 or not status:
            attributes["error.type"] = str(status or "broken off")
            span.set_status(Status(StatusCode.ERROR))
        span.set_attributes(attributes)
        contexts.detach(self._token)
        span.end()


def _context_of(name: SpanName) -> SpanContext:
    trace_id, span_id = int.from_bytes(name.trace, "big"), int.from_bytes(name.span, "big")
    return SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(name.flags))


class _Seldom(logging.Filter):
    """Lets one message a minute through: a collector that is away is the same news every few seconds."""

    def __init__(self) -> None:
        super().__init__()
        self._due_s = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it is let through."""
        if not record.name.startswith("opentelemetry"):
            return True
        now = time.monotonic()
        if now < self._due_s:
            return False
        self._due_s = now + _SELDOM_S
        return True


def _speak_seldom() -> None:
    for handler in logging.getLogger().handlers:
        handler.addFilter(_Seldom())
