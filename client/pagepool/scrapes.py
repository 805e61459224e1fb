"""What the listeners for Prometheus, of a service and of a node, have in common: how few connections they hold.

Who scrapes sends one small request at once, and takes the answer. So a connection has a thread of its own, there are
no more than `MOST` of them, and when a new one comes beyond that, the oldest whose request has not come yet makes room.
A request has to come within `HEAD_S`; an answer has to be taken within `TAKEN_S`. Nothing here depends on the figures.

A `ScrapeServer` is a mixin for `socketserver` servers of HTTP, a `ScrapeHandler` one for their handlers. What is
accepted is accepted by one thread; the others only take themselves off the list.
"""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from socketserver import BaseServer
from typing import Any, Final

MOST: Final = 16
HEAD_S: Final = 5.0
TAKEN_S: Final = 10.0
_LOOK_S: Final = 0.2


class ScrapeServer(BaseServer):
    """Answers each connection in a thread, and bounds them. `service_actions` is to be called now and then."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._ended = threading.Condition()
        self._open: dict[socket.socket, float] = {}
        """Connections, the oldest first, and since when their request is waited for."""
        self._answered: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Take a connection, once there is a place for it."""
        with self._ended:
            while len(self._open) >= MOST:
                self._break_off(next((one for one in self._open if one not in self._answered), None))
                self._break_off_late()
                self._ended.wait(_LOOK_S)
            self._open[request] = time.monotonic()
        arguments = (request, client_address)
        try:
            threading.Thread(target=self._answer, args=arguments, name="scrape", daemon=True).start()
        except RuntimeError:  # there can be no more threads; the server ends the connection
            self._leave(request)
            raise

    def begin_answer(self, request: Any) -> None:
        """A request has come, and keeps its place until it is answered."""
        with self._ended:
            self._answered.add(request)

    def service_actions(self) -> None:
        """Break off whose request does not come."""
        super().service_actions()
        with self._ended:
            self._break_off_late()

    def _break_off_late(self) -> None:
        for one, since in self._open.items():
            if one not in self._answered and time.monotonic() - since > HEAD_S:
                self._break_off(one)

    def _break_off(self, connection: socket.socket | None) -> None:
        """End a connection, which its thread finds."""
        if connection is not None:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _answer(self, request: Any, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        except Exception:  # noqa: BLE001  (it is handed on)
            self.handle_error(request, client_address)
        finally:
            self.shutdown_request(request)
            self._leave(request)

    def _leave(self, request: socket.socket) -> None:
        with self._ended:
            del self._open[request]
            self._answered.discard(request)
            self._ended.notify_all()


class ScrapeHandler(BaseHTTPRequestHandler):
    """One request, and its answer."""

    server: ScrapeServer
    timeout = TAKEN_S

    def parse_request(self) -> bool:
        """Read the request's head."""
        found = super().parse_request()
        if found:
            self.server.begin_answer(self.connection)
        return found
