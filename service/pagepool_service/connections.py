"""The connections of a worker: how many there may be, and how long each may keep a place without doing anything.

A `BoundedProtocol` is a connection; the worker's `ConnectionGuard` knows all of them and looks at them once a second:

- Whoever has no request under way has the lowest claim. When there is no place left, the longest idle connection is
  closed, and the new one taken; one that has sent a part of a head counts as idle, too. Only if every place has a
  request is a new one told 503.
- A head that does not end in time is answered 408.
- A client whose turn it is, to send the body or to take the answer, has to move a least number of bytes in each span
  of time, by the kernel's own count (TCP_INFO). While the service works, nothing is asked of it.

So an attacker has to pay for each place with a request that moves. One address has a share of the places; loopback,
where a proxy or a node would be, has all. All is in the event loop's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import logging
import resource
import socket
import struct
from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from pagepool_service.handshakes import Handshakes

if TYPE_CHECKING:
    from pagepool_service.settings import Settings

log = logging.getLogger("pagepool.connections")

LONGEST_HEAD: Final = 64 << 10
_SWEEP_S: Final = 1.0
_IDLE_SWEEPS: Final = 2
"""A connection is idle once so many sweeps have found it so: who has just connected is about to send."""
_LINGER_S: Final = 1.0
_LINGER_TURNS: Final = 5
_LINGER_BYTES: Final = 8 << 20
_MOST_LINGERING: Final = 64
_KEPT_FILES: Final = 256
"""Descriptors that are not for connections: the store, the pool's objects, logs."""
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


@dataclass(frozen=True, slots=True)
class Limits:
    """What connections may take.

    Args:
        most: connections at a time.
        most_of_address: of these, from one address that is not loopback; 0 for all.
        head_s: longest time for the head of a request.
        window_s: a client whose turn it is has to move...
        least_rate: ...so many bytes a second in each such window; 0 for none.
    """

    most: int
    most_of_address: int
    head_s: float
    window_s: float
    least_rate: int

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        """Those of a service. Connections are no more than there are descriptors for."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = settings.max_connections
        if soft != resource.RLIM_INFINITY and (room := max(8, soft - min(_KEPT_FILES, soft // 2))) < most:
            log.warning("%d open files are allowed: there may be %d connections, not %d", soft, room, most)
            most = room
        return cls(
            most,
            settings.max_connections_per_address,
            settings.head_timeout_s,
            settings.body_timeout_s,
            settings.least_rate_bytes,
        )


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
    watch: _Watch | None = None

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


@dataclass(slots=True)
class _Watch:
    """How a request has gone since a moment.

    Args:
        cycle: the request.
        since: on the event loop's clock.
        moved: bytes of the connection then.
        sweeps, waits: how often it was looked at, and it was the client's turn.
    """

    cycle: object
    since: float
    moved: int
    sweeps: int = 0
    waits: int = 0


class ConnectionGuard:
    """Keeps the connections of a worker within limits.

    Args:
        limits: the limits.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.refused = 0
        """Connections that were told that there is no place, ever."""
        self.ended = 0
        """Connections that were ended because they did not move, ever."""
        self._open: dict[BoundedProtocol, None] = {}
        self._addresses: Counter[str] = Counter()
        self._idle: deque[BoundedProtocol] = deque()
        self._told = self._told_refused = 0

    def __len__(self) -> int:
        return len(self._open)

    def add(self, connection: BoundedProtocol) -> None:
        """Take a connection, close an idle one for it, or refuse it."""
        address = _address(connection)
        most, share = self.limits.most, self.limits.most_of_address
        if address and share and self._addresses[address] >= share:
            self._refuse(connection, f"there are {share} connections from {address} already: close some, or wait")
        elif len(self._open) >= most and not self._close_idle():
            self._refuse(connection, f"all {most} connections have a request under way: try again in a moment")
        else:
            self._open[connection] = None
            if address:
                self._addresses[address] += 1

    def remove(self, connection: BoundedProtocol) -> None:
        """A connection is gone."""
        if connection in self._open:
            del self._open[connection]
            if address := _address(connection):
                self._addresses[address] -= 1
                self._addresses += Counter()  # forgets those of none

    def count_waiting(self) -> int:
        """Requests that wait for the answer to an earlier one of their connection."""
        return sum(len(connection.pipeline) for connection in self._open)

    def _refuse(self, connection: BoundedProtocol, reason: str) -> None:
        self.refused += 1
        lingering = [one for one in connection.connections if getattr(one, "refused", False)]
        if len(lingering) > _MOST_LINGERING:
            connection.refused = True
            connection.transport.abort()
        else:
            connection.refuse(503, reason, retry_s=1)

    def _close_idle(self) -> bool:
        """Close the connection that has been idle for longest. False if none is."""
        while self._idle:
            connection = self._idle.popleft()
            if connection in self._open and connection.idle_sweeps and not connection.is_busy:
                self.remove(connection)
                connection.transport.close()
                return True
        return False

    def sweep(self, now_s: float) -> None:
        """Look at all connections, and end those that keep a place for nothing."""
        idle: list[BoundedProtocol] = []
        for connection in list(self._open):
            if connection.refused:  # until it has been closed: it ends by itself
                continue
            if connection.is_busy:
                connection.idle_sweeps, connection.head_since = 0, None
                self._watch(connection, now_s)
            else:
                connection.watch = None
                if connection.transport.is_closing():
                    continue
                connection.idle_sweeps += 1
                if connection.idle_sweeps >= _IDLE_SWEEPS:
                    idle.append(connection)
                self._check_head(connection, now_s)
        self._idle = deque(sorted(idle, key=lambda one: -one.idle_sweeps))
        if self.refused + self.ended > self._told:
            # Clients have connections in reserve that they end up not using: to end these is nothing to look into.
            level = logging.WARNING if self.refused > self._told_refused else logging.INFO
            log.log(level, "%d connections were refused and %d ended, so far", self.refused, self.ended)
            self._told, self._told_refused = self.refused + self.ended, self.refused

    def _check_head(self, connection: BoundedProtocol, now_s: float) -> None:
        """End a connection whose first or next request has begun, or should have, and does not come to its end."""
        scope = connection.scope
        if scope and "method" in scope:  # between requests: uvicorn's own time-out
            connection.head_since = None
            return
        if connection.head_since is None or connection.head_since[0] is not scope:
            connection.head_since = (scope, now_s)
            connection.idle_sweeps = 0
        elif now_s - connection.head_since[1] >= self.limits.head_s:
            self.ended += 1
            if scope:
                connection.refuse(408, f"the head of a request has to come within {self.limits.head_s:g} s")
            else:
                connection.transport.close()

    def _watch(self, connection: BoundedProtocol, now_s: float) -> None:
        """End a connection whose client does not move though it is its turn."""
        if not self.limits.least_rate:
            return
        watch = connection.watch
        if watch is None or watch.cycle is not connection.cycle:
            moved = connection.moved()
            connection.watch = None if moved is None else _Watch(connection.cycle, now_s, moved)
            return
        watch.sweeps += 1
        watch.waits += connection.waits_for_client
        if now_s - watch.since < self.limits.window_s:
            return
        moved = connection.moved()
        least = self.limits.least_rate * (now_s - watch.since)
        if moved is not None and moved - watch.moved < least and 10 * watch.waits >= 9 * watch.sweeps:
            self.ended += 1
            log.info("a client moved %d bytes in %.0f s: it is let go of", moved - watch.moved, now_s - watch.since)
            connection.drop()
        else:
            connection.watch = None

    def end_streams(self) -> None:
        """Break off uploads that are sent as streams: the service ends, and they may be longer than it can wait.

        It is as if the connection had been lost. The client asks where to go on, or begins anew, once there is a
        service again: the sooner this one has ended, the sooner that is.
        """
        streams = [connection for connection in self._open if connection.sends_stream]
        for connection in streams:
            connection.transport.abort()
        if streams:
            log.info("%d uploads were broken off; what came of them is kept", len(streams))

    async def run(self) -> None:
        """Look once a second, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_SWEEP_S)
            self.sweep(loop.time())


class GuardedConfig(uvicorn.Config):
    """uvicorn's configuration, with the guard that its connections are known to.

    Every answer says that it is what its type says: a blob may be anything, a page with scripts for one, and browsers
    look into what they are sent.
    """

    def __init__(self, app: Any, guard: ConnectionGuard, **options: Any) -> None:
        super().__init__(app, headers=[("X-Content-Type-Options", "nosniff")], **options)
        self.guard = guard


class GuardedServer(uvicorn.Server):
    """uvicorn's server, whose guard looks at its connections while it serves."""

    _guarding: asyncio.Task[None] | None = None
    _accepting: tuple[asyncio.Task[None], ...] = ()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to serve. With TLS, connections are accepted by `handshakes`."""
        config = self.config
        if not isinstance(config, GuardedConfig):
            await super().startup(sockets)
            return
        secure = sockets is not None and config.ssl is not None
        await super().startup([] if secure else sockets)
        self._guarding = asyncio.create_task(config.guard.run())
        if secure and self.started:
            self._accepting = tuple(asyncio.create_task(self._handshakes(one).run()) for one in sockets or ())

    def _handshakes(self, listener: socket.socket) -> Handshakes:
        config = self.config
        assert isinstance(config, GuardedConfig)
        assert config.ssl is not None
        limits = config.guard.limits

        def make() -> asyncio.Protocol:
            made: asyncio.Protocol = config.http_protocol_class(  # type: ignore[call-arg]
                config=config, server_state=self.server_state, app_state=self.lifespan.state
            )
            return made

        return Handshakes(listener, config.ssl, make, limits.most, limits.head_s)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Come to an end."""
        for accepting in self._accepting:
            accepting.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        if self._guarding is not None:
            self._guarding.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._guarding
        if isinstance(self.config, GuardedConfig):
            # Once no connection is taken any more, which is the first that is done: a client comes back at once.
            asyncio.get_running_loop().call_soon(self.config.guard.end_streams)
        await super().shutdown(sockets)


def _address(connection: BoundedProtocol) -> str:
    """The address of a client; "" of one on this machine."""
    found = connection.client
    if found is None:
        return ""
    try:
        return "" if ipaddress.ip_address(found[0]).is_loopback else found[0]
    except ValueError:
        return ""
