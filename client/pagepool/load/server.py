"""The coordinator's HTTP server: a few small JSON requests from each client, each second.

Without TLS and authentication: whoever reaches it can take part in the test, and spoil it. It listens on loopback
unless it is told otherwise, hands out nothing but the plan and truth files, and takes nothing but numbers.
"""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Final

from pagepool.errors import BusyError, InvalidError, PagepoolError, UnreachableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from pagepool.load.coordinator import Coordinator

_LARGEST: Final = 64 << 20
_TIMEOUT_S: Final = 30.0


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 256

    def __init__(self, address: tuple[str, int], coordinator: Coordinator, truths: Mapping[str, Path]) -> None:
        self.coordinator, self.truths = coordinator, truths
        super().__init__(address, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that broke off is missed soon enough."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = _TIMEOUT_S
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        coordinator = self.server.coordinator
        actions: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "/v1/join": coordinator.join,
            "/v1/ready": coordinator.ready,
            "/v1/beat": coordinator.beat,
            "/v1/failed": coordinator.failed,
            "/v1/done": coordinator.done,
        }
        action = actions.get(self.path)
        if action is None:
            self._answer(404, {"error": f"there is no {self.path}"})
            return
        try:
            size = int(self.headers.get("Content-Length", "-1"))
            if not 0 <= size <= _LARGEST:
                raise InvalidError(size, f"is no length of a body from 0 to {_LARGEST}")
            fields = json.loads(self.rfile.read(size))
            if not isinstance(fields, dict):
                raise InvalidError(type(fields).__name__, "is no object")
            self._answer(200, action(fields))
        except BusyError as error:
            self._answer(409, {"error": str(error)})
        except (PagepoolError, ValueError, KeyError, TypeError, AttributeError) as error:
            self._answer(400, {"error": f"{type(error).__name__}: {error}"})

    def do_GET(self) -> None:
        path = self.server.truths.get(self.path.removeprefix("/v1/truth/"))
        if path is not None:
            self._send(200, path.read_bytes(), "application/octet-stream")
        elif self.path == "/v1/state":
            clients = [{"client": one.number, "phase": one.phase} for one in self.server.coordinator.clients()]
            self._answer(200, {"clients": clients, "wanted": self.server.coordinator.plan.clients})
        else:
            self._answer(404, {"error": f"there is no {self.path}"})

    def _answer(self, status: int, fields: dict[str, Any]) -> None:
        self._send(status, json.dumps(fields).encode(), "application/json")

    def _send(self, status: int, data: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: clients ask each second."""


@contextmanager
def serving(coordinator: Coordinator, host: str, port: int, truths: Mapping[str, Path]) -> Iterator[int]:
    """Answer clients, by threads, for the length of the block.

    Args:
        host, port: to listen on; port 0 for any that is free.
        truths: files that clients may ask for, by their SHA-256.

    Yields:
        the port.

    Raises:
        UnreachableError: the address cannot be had.
    """
    try:
        server = _Server((host, port), coordinator, truths)
    except OSError as error:
        raise UnreachableError(f"{host}:{port}", f"cannot be listened on: {error.strerror or error}") from error
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
