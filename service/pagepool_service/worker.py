"""One HTTP worker: an event loop that serves the application on a socket it was handed.

Runs after the fork: it opens the store (LMDB environments do not survive a fork), says when it serves, and ends after
the requests in flight once it is told to. It can be killed at any moment; see `store` and `uploads` for what stays.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import logging
import os
import re
import signal
from typing import TYPE_CHECKING, ClassVar, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from pagepool_service.allocator import share_one_arena
from pagepool_service.app import create_app
from pagepool_service.boundedhttp import BoundedProtocol
from pagepool_service.connections import ConnectionGuard, GuardedConfig, GuardedServer, Limits
from pagepool_service.encoders import keep_compiled
from pagepool_service.observing import Observer
from pagepool_service.panic import end_at_once
from pagepool_service.store.store import Store

if TYPE_CHECKING:
    import socket
    from pathlib import Path

    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

    from pagepool_service.auth.authority import Authority
    from pagepool_service.metrics.recording import RequestMetrics
    from pagepool_service.roster import Roster
    from pagepool_service.seeing.tally import Tally
    from pagepool_service.settings import Settings
    from pagepool_service.tls import Certificate
    from pagepool_service.tracing.exporting import Tracing
    from pagepool_service.tracing.notes import PushNotes

log = logging.getLogger("pagepool.worker")

_OBJECTS = b"/objects/"
_AS_IT_IS = (b"connection", b"keep-alive")
"""What httpx and requests send with each request, and HTTP/1.1 is without."""
_PLAIN_URL = re.compile(rb"/v1/[a-z0-9:/._-]+")
_SMALL = 64 << 10  # bytes that are worth copying, so that head and body are one call of the system


class _Nobody:
    """An event that nobody waits for."""

    def set(self) -> None:
        """Nothing to do."""


class _Answered:
    """Stands for a request that was answered at once, where uvicorn asks for the last one."""

    response_complete = True
    message_event = _Nobody()


class PageProtocol(BoundedProtocol):
    """Answers page reads as soon as their heads are read, without a task of the event loop.

    Only what a client does all day is taken: a GET of HTTP/1.1 without a body, on a connection that stays open and has
    nothing under way, of an object that `routes.objects.ObjectFront` can answer at once. Everything else, and all that
    goes wrong, takes uvicorn's own way.
    """

    _common: ClassVar[list[tuple[bytes, bytes]]] = []
    _common_lines: ClassVar[bytes] = b""
    """The headers of every answer, of all connections, and how they are written."""

    def on_headers_complete(self) -> None:
        """A head has ended."""
        if _OBJECTS not in self.url or not self._answer_page():
            BoundedProtocol.on_headers_complete(self)

    def _answer_page(self) -> bool:
        front, cycle, parser = self.config.app, self.cycle, self.parser
        if (
            not isinstance(front, Observer)
            or front.logs
            or self.flow.write_paused
            or not (cycle is None or cycle.response_complete)
            or parser.get_method() != b"GET"
            or parser.get_http_version() != "1.1"
            or not parser.should_keep_alive()
            or not _PLAIN_URL.fullmatch(self.url)
            or any(name in front.not_plain for name, value in self.headers if (name, value) != _AS_IT_IS)
        ):
            return False
        found = front.page(self.url.decode("ascii"), self.headers)
        if found is None:
            return False
        status, fields, body = found
        common = self.server_state.default_headers
        if common is not PageProtocol._common:  # once a second there are new ones
            PageProtocol._common = common
            PageProtocol._common_lines = b"".join([b"%b: %b\r\n" % pair for pair in common])
        head = [STATUS_LINE[status], PageProtocol._common_lines, fields, b"\r\n"]
        size = len(body)
        front.page_reads += 1
        front.page_bytes += size
        if size <= _SMALL:
            self.transport.write(b"".join([*head, body]))
        else:
            self.transport.write(b"".join(head))
            self.transport.write(body)
        self.scope["method"] = "GET"  # the head has been read
        self.cycle = cast("RequestResponseCycle", _Answered)
        self.on_response_complete()
        return True


class Worker(GuardedServer):
    """uvicorn's server that tells a descriptor when it serves."""

    def __init__(self, config: uvicorn.Config, ready_fd: int) -> None:
        super().__init__(config)
        self._ready_fd = ready_fd

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to serve."""
        await super().startup(sockets)
        if self.started:
            os.write(self._ready_fd, b".")


def run_worker(
    settings: Settings,
    listener: socket.socket,
    wake_fd: int,
    ready_fd: int,
    *,
    place: int = 1,
    roster: Roster | None = None,
    figures: Path | None = None,
    authority: Authority | None = None,
    certificate: Certificate | None = None,
    tally: Tally | None = None,
    pushes: PushNotes | None = None,
) -> None:
    """Serve until told to end. Blocks.

    Args:
        listener: the bound socket, shared with the other workers.
        wake_fd: an eventfd that wakes the maintenance process.
        ready_fd: gets one byte when this worker serves.
        place: number of this worker; no other that runs has it.
        roster: of the service's processes.
        figures: directory for metrics; None to keep none.
        authority: says who asks and what he may do; None where everybody may do everything.
        certificate: to serve with TLS; None to serve without.
        tally: of all workers.
        pushes: where traces of pushes are noted.
    """
    share_one_arena()
    with Store.open(settings.data, quota_bytes=settings.quota_bytes, readonly=settings.read_only) as store:
        store.registry.renewed_after_ns = settings.renewed_after_ns
        keep_compiled(settings.data / "encoders")
        store.blobs.rebuilt.limit = 0 if settings.read_only else settings.rebuilt_bytes
        store.blobs.on_job = lambda: _wake(wake_fd)
        store.env.on_panic = end_at_once
        config = GuardedConfig(
            create_app(
                settings,
                store,
                authority=authority,
                certificate=certificate,
                roster=roster,
                metrics=_open_metrics(figures, place),
                tally=tally,
                place=place - 1,
                tracing=open_tracing(settings, f"worker {place}", pushes),
            ),
            ConnectionGuard(Limits.of(settings)),
            http=PageProtocol,
            loop="uvloop",
            lifespan="on",
            log_config=None,
            access_log=False,  # the observer has it, with more in it
            server_header=False,
            proxy_headers=bool(settings.trusted_proxies),  # uvicorn would believe whoever comes from loopback
            forwarded_allow_ips=list(settings.trusted_proxies),
            backlog=2048,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=max(1, round(settings.graceful_s)),
        )
        config.load()
        config.ssl = None if certificate is None else certificate.context
        gc.freeze()
        _serve(Worker(config, ready_fd), listener)


def _open_metrics(figures: Path | None, place: int) -> RequestMetrics | None:
    if figures is None:
        return None
    recording = importlib.import_module("pagepool_service.metrics.recording")
    found: RequestMetrics = recording.RequestMetrics(recording.keep_in(figures, f"worker-{place}"))
    return found


def open_tracing(settings: Settings, process: str, pushes: PushNotes | None) -> Tracing | None:
    """The tracer of a process that has just been forked; None if no traces are made."""
    if settings.trace_endpoint is None:
        return None
    made: Tracing = importlib.import_module("pagepool_service.tracing.exporting").Tracing(settings, process, pushes)
    return made


def _serve(server: uvicorn.Server, listener: socket.socket) -> None:
    # The server puts back the handlers it found and raises the signal once more when it is done; by default that
    # would end the process before the requests that were cut off have put their uploads in order.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, server.handle_exit)
    server.run(sockets=[listener])


def _wake(wake_fd: int) -> None:
    with contextlib.suppress(BlockingIOError):  # the counter is full: it is awake already
        os.eventfd_write(wake_fd, 1)
