"""The connections of a worker: how many there may be, and how long each may keep a place without doing anything.

A connection is a `BoundedProtocol` (`boundedhttp`). The worker's `ConnectionGuard` knows all of them, and looks at
them once a second:

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
import logging
import resource
import socket
from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import uvicorn

from pagepool_service.handshakes import Handshakes

if TYPE_CHECKING:
    from pagepool_service.boundedhttp import BoundedProtocol
    from pagepool_service.settings import Settings

log = logging.getLogger("pagepool.connections")

_SWEEP_S: Final = 1.0
_IDLE_SWEEPS: Final = 2
"""A connection is idle once so many sweeps have found it so: who has just connected is about to send."""
_MOST_LINGERING: Final = 64
_KEPT_FILES: Final = 256
"""Descriptors that are not for connections: the store, the pool's objects, logs."""


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


@dataclass(slots=True)
class Watch:
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
            connection.watch = None if moved is None else Watch(connection.cycle, now_s, moved)
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
