"""The process that answers Prometheus, on a listener of its own: `GET /metrics`, and nothing else.

A process, so that a look at every record of the store takes no time from requests; a listener, so that who may see
figures is decided by where it listens, whoever may pull images. It only reads, and can be killed at any moment.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.multiprocess import MultiProcessCollector

from pagepool.scrapes import ScrapeHandler, ScrapeServer
from pagepool_service.metrics.collecting import ServiceCollector
from pagepool_service.pools import open_pool
from pagepool_service.store.store import Store

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable
    from pathlib import Path
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from pagepool_service.roster import Roster
    from pagepool_service.settings import Settings

log = logging.getLogger("pagepool.metrics")


class _Handler(ScrapeHandler, WSGIRequestHandler):
    """Logs nothing of a request that went well."""

    def log_message(self, format: str, *arguments: Any) -> None:
        log.debug(format, *arguments)


class _Server(ScrapeServer, WSGIServer):
    """Serves on a socket that listens already. Few clients at a time, and none for long: `pagepool.scrapes`."""

    def __init__(self, listener: socket.socket, app: WSGIApplication) -> None:
        super().__init__(listener.getsockname()[:2], _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.server_name, self.server_port = listener.getsockname()[:2]
        self.setup_environ()
        self.set_app(app)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the library's names
        log.debug("%s was not answered", client_address, exc_info=True)


def run(settings: Settings, listener: socket.socket, directory: Path, roster: Roster) -> None:
    """Answer until the process is ended. Blocks.

    Args:
        directory: with the other processes' figures.
    """
    with Store.open(settings.data, readonly=True, shared=not settings.read_only) as store:
        registry = CollectorRegistry()
        MultiProcessCollector(registry, str(directory))  # type: ignore[no-untyped-call]
        registry.register(ServiceCollector(settings, store, open_pool(settings), roster))
        _Server(listener, _only_metrics(make_wsgi_app(registry))).serve_forever()


def _only_metrics(app: Callable[..., Any]) -> WSGIApplication:
    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/metrics":
            found: Iterable[bytes] = app(environ, start_response)
            return found
        start_response("404 Not Found", [("Content-Type", "text/plain")])
        return [b"only /metrics is here\n"]

    return answer
