"""A connection of a worker: uvicorn's, with bounds on what it gathers without end, and with what can be told of it.

Bounded are the line and headers of a request, trailers and extensions of chunks, and requests that wait for the answer
to an earlier one. How long a connection may keep its place is the guard's to say (`connections`). All is in the event
loop's thread.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
from typing import TYPE_CHECKING, Final

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from pagepool_service.connections import GuardedConfig

if TYPE_CHECKING:
    import asyncio

    from pagepool_service.connections import Watch

LONGEST_HEAD: Final = 64 << 10
_LINGER_S: Final = 1.0
_LINGER_TURNS: Final = 5
_LINGER_BYTES: Final = 8 << 20
_MOST_WAITING: Final = 16384
"""Requests of all connections that wait for the answer to an earlier one of theirs. Each takes about 2 KiB of memory,
and 18 bytes to send."""
_LOOK_EVERY: Final = 64
_UPLOADS: Final = "/blobs/uploads/"
_WHOLE_OR_NOT: Final = (b"content-length", b"content-range")
"""Headers with which nothing of a body counts unless all of it comes (`routes.uploads`)."""
_AT_ONCE: Final = struct.pack("ii", 1, 0)
_MOVED: Final = struct.Struct("=120xQQ")
"""Of struct tcp_info: bytes that the other end has acknowledged, and bytes that came from it (Linux 4.1)."""


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with a bound on a request's line and headers: it would gather them without end.

    Known to the guard of its `GuardedConfig`.
    """

    _head_size = 0
    _in_head = False
    _in_body = False
    _came = False
    _between = 0
    refused = False
    _unread = 0
    idle_sweeps = 0
    head_since: tuple[object, float] | None = None
    watch: Watch | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, if there is a place for it."""
        super().connection_made(transport)
        if isinstance(self.config, GuardedConfig):
            self.config.guard.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        super().connection_lost(exc)
        if isinstance(self.config, GuardedConfig):
            self.config.guard.remove(self)

    def data_received(self, data: bytes) -> None:
        """Take bytes, unless the head of the request has become too large. Called for each page read: kept short."""
        if self.refused:
            self._unread += len(data)
            if self._unread > _LINGER_BYTES:
                self.transport.close()
            return
        if self._in_head and self._head_size > LONGEST_HEAD:
            self.refuse(431, f"the head of a request may have {LONGEST_HEAD} bytes")
            return
        self._unset_keepalive_if_required()
        self._parse(data)
        # A scope is made when a head begins, and its method is known when the head has ended.
        if not self.scope or "method" in self.scope:
            self._in_head = False
            if self._in_body:
                self._bound_between(len(data))
        elif self._in_head:
            # What a head begins or ends in may be mostly bodies; a head that goes on over a whole read is all head.
            self._head_size += len(data)
        else:
            self._in_head, self._head_size = True, 0

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client sends no more. One that has sent all of a request, as nc and socat do, still gets its answer."""
        cycle = self.cycle
        if self.refused or self.scheme == "https" or cycle is None or cycle.response_complete or cycle.more_body:
            return False
        cycle.keep_alive = False
        cycle.scope["state"]["sends_no_more"] = True  # he may have left: `PieceResponse`
        return True

    def _parse(self, data: bytes | memoryview) -> None:
        """Take requests apart.

        One that offers another protocol, as Java's HTTP client does to every server without TLS, is answered as if it
        did not (RFC 9110, section 7.8). The parser takes its body for that protocol's, and so gets the head once more.
        """
        try:
            while True:
                try:
                    self.parser.feed_data(data)
                    return
                except httptools.HttpParserUpgrade as offer:
                    data = memoryview(data)[offer.args[0] :]
                    self.parser.feed_data(self._head_without_offer())
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):  # CONNECT is another protocol in any case
            self.logger.warning("Invalid HTTP request received.")
            self.send_400_response("")

    def _head_without_offer(self) -> bytes:
        parser = self.parser
        head = [b"%b %b HTTP/%b\r\n" % (parser.get_method(), self.url, parser.get_http_version().encode())]
        head += [b"%b: %b\r\n" % field for field in self.headers if field[0] != b"upgrade"]
        return b"".join([*head, b"\r\n"])

    def _bound_between(self, size: int) -> None:
        """Bound what is sent with a body and is none of it: trailers, of which the parser gathers one to its end, and
        extensions of chunks.

        Args:
            size: of a read that did not end the request.
        """
        self._between = 0 if self._came else self._between + size
        self._came = False
        if self._between <= LONGEST_HEAD:
            return
        if self.cycle is None or self.cycle.response_complete:
            self.end()  # it has its answer
        else:
            self.refuse(431, f"between and behind the chunks of a body there may be {LONGEST_HEAD} bytes")

    def _bound_waiting(self) -> None:
        """End the connection if too many requests wait: nobody sends so many who takes the answers."""
        if isinstance(self.config, GuardedConfig) and self.config.guard.count_waiting() > _MOST_WAITING:
            self.refused = True  # an answer in between would be taken for a part of the one under way
            self.config.guard.ended += 1
            self.drop()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header has ended. Trailers are left aside, as RFC 9110 (section 6.5.1) has it: whoever sits before the
        service and looks at headers may not have looked at them."""
        if "method" not in self.scope:
            HttpToolsProtocol.on_header(self, name, value)

    def on_headers_complete(self) -> None:
        """A head has ended."""
        if not self.parser.should_upgrade() and not self.refused:
            HttpToolsProtocol.on_headers_complete(self)
            self._in_body = self._came = True
            self._between = 0
            if self.pipeline and not len(self.pipeline) % _LOOK_EVERY:
                self._bound_waiting()

    def on_body(self, body: bytes) -> None:
        """A part of a body has come."""
        self._came = True
        HttpToolsProtocol.on_body(self, body)

    def on_message_complete(self) -> None:
        """A request has ended."""
        self._in_body = False
        if not self.parser.should_upgrade():
            HttpToolsProtocol.on_message_complete(self)

    def refuse(self, status: int, message: str, *, retry_s: int = 0) -> None:
        """Answer instead of the application, and close once the client has had time to read it."""
        self.refused = True
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # what it says would follow the end
            self.cycle.message_event.set()
        body = json.dumps({"errors": [{"code": "TOOMANYREQUESTS" if retry_s else "UNSUPPORTED", "message": message}]})
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n" % len(body)
        common = b"".join([b"%b: %b\r\n" % pair for pair in self.server_state.default_headers])
        retry = b"retry-after: %d\r\n" % retry_s if retry_s else b""
        self.transport.write(b"".join((STATUS_LINE[status], common, head, retry, b"\r\n", body.encode())))
        if self.transport.can_write_eof():  # not with TLS
            self.transport.write_eof()
        self._linger(-1, _LINGER_TURNS)

    def _linger(self, seen: int, turns: int) -> None:
        """Close, unless bytes still come: closed with some that were not read, the kernel would reset the connection,
        and the client, who may read only after having sent everything, would not have the answer. What comes is not
        kept, and has a bound in time here, and in bytes in `data_received`."""
        if self.transport.is_closing():
            return
        if seen == self._unread or not turns:
            self.end()
        else:
            self.loop.call_later(_LINGER_S, self._linger, self._unread, turns - 1)

    def end(self) -> None:
        """Close: at once, if what was to be sent has been; else nobody may ever take it, and it would stay open."""
        if self.transport.get_write_buffer_size():
            self.drop()
        else:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  (uvicorn's; ours say what was expected)
        """Answer what is no request."""
        self.refuse(400, "that is no request of HTTP/1.1")

    def drop(self) -> None:
        """Break the connection off, and what waits in the kernel to be taken with it."""
        found = self.transport.get_extra_info("socket")
        with contextlib.suppress(AttributeError, OSError):
            found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
        self.transport.abort()

    @property
    def is_busy(self) -> bool:
        """Whether a request is under way whose head has come, or its answer."""
        if self.pipeline or not (self.cycle is None or self.cycle.response_complete):
            return True
        return self._is_left

    @property
    def waits_for_client(self) -> bool:
        """Whether the request under way cannot go on before the client sends, or takes, something."""
        if self.flow.write_paused or self._is_left:
            return True
        cycle = self.cycle
        return cycle.more_body and not cycle.body and not cycle.response_started

    @property
    def sends_stream(self) -> bool:
        """Whether the request under way sends an upload as a stream: what has come of it is kept, however it ends."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete or not cycle.more_body:
            return False
        scope = cycle.scope
        return (
            scope["method"] == "PATCH"
            and _UPLOADS in scope["path"]
            and not any(name in _WHOLE_OR_NOT for name, _ in scope["headers"])
        )

    @property
    def _is_left(self) -> bool:
        """Whether something is still to be sent of what the application has said, or before it is closed."""
        return self.transport.get_write_buffer_size() > 0

    def moved(self) -> int | None:
        """Bytes that went over the connection, both ways; None where the kernel does not tell."""
        found = self.transport.get_extra_info("socket")
        try:
            acknowledged, received = _MOVED.unpack_from(found.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256))
        except (AttributeError, OSError, struct.error):
            return None
        return int(acknowledged + received)
