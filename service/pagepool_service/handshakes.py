"""Takes connections that begin with a TLS handshake, and bounds what those cost that do not come to its end.

A connection is known to `connections.ConnectionGuard` once its handshake is done; until then it would take a descriptor
and hold no place. So connections are accepted here, one after the other: only so many handshakes go on at a time. When
there are as many, the oldest is ended, unless it has just begun: then whoever comes next waits in the kernel's queue.
All is in the event loop's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

log = logging.getLogger("pagepool.connections")

_FEWEST: Final = 8
_PART: Final = 8
_YOUNG_S: Final = 1.0
"""A handshake takes that long with a client far away: none is ended before."""
_AGAIN_S: Final = 0.05
_HEAD: Final = 65536
_BODY: Final = b'{"errors":[{"code":"UNSUPPORTED","message":"this port speaks TLS: its address begins with https://"}]}'
_PLAIN: Final = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(_BODY), _BODY)
)


class Handshakes:
    """Accepts the connections of a listener, and does their handshakes.

    Args:
        listener: others may accept from it, too.
        context: of the certificate.
        make: makes the protocol of a connection whose handshake is done.
        places: how many connections there may be; an eighth as many handshakes go on beside them.
        longest_s: of a handshake.
    """

    def __init__(
        self,
        listener: socket.socket,
        context: ssl.SSLContext,
        make: Callable[[], asyncio.Protocol],
        places: int,
        longest_s: float,
    ) -> None:
        self._listener = listener
        self._context = context
        self._make = make
        self._most = max(_FEWEST, places // _PART)
        self._longest_s = longest_s
        self._pending: dict[asyncio.Task[None], tuple[socket.socket, float]] = {}  # the oldest first

    def __len__(self) -> int:
        return len(self._pending)

    async def run(self) -> None:
        """Accept, until it is cancelled."""
        loop = asyncio.get_running_loop()
        self._listener.setblocking(False)
        try:
            while True:
                await self._make_room(loop)
                try:
                    connection, _ = await loop.sock_accept(self._listener)
                except OSError as error:  # it has left, or there are no descriptors
                    log.debug("no connection was accepted: %s", error)
                    await asyncio.sleep(_AGAIN_S)
                    continue
                task = loop.create_task(self._shake_hands(loop, connection))
                self._pending[task] = connection, loop.time()
                task.add_done_callback(self._pending.pop)
        finally:
            for connection, _ in list(self._pending.values()):
                _end(connection)

    async def _make_room(self, loop: asyncio.AbstractEventLoop) -> None:
        while len(self._pending) >= self._most:
            connection, since = next(iter(self._pending.values()))
            if loop.time() - since >= _YOUNG_S:
                _end(connection)
            await asyncio.sleep(_AGAIN_S)

    async def _shake_hands(self, loop: asyncio.AbstractEventLoop, connection: socket.socket) -> None:
        begun = loop.time()
        with contextlib.suppress(OSError):  # it was none, took too long, or was ended
            try:
                async with asyncio.timeout(self._longest_s):
                    await _readable(loop, connection)
                if _speaks_plainly(connection):
                    _refuse(connection)
                    return
            except BaseException:
                connection.close()
                raise
            left_s = max(_AGAIN_S, self._longest_s - (loop.time() - begun))
            await loop.connect_accepted_socket(self._make, connection, ssl=self._context, ssl_handshake_timeout=left_s)


async def _readable(loop: asyncio.AbstractEventLoop, connection: socket.socket) -> None:
    """Wait until the client has sent something, or has gone."""
    come = asyncio.Event()
    loop.add_reader(connection, come.set)
    try:
        await come.wait()
    finally:
        loop.remove_reader(connection)


def _speaks_plainly(connection: socket.socket) -> bool:
    """Whether what came is a request instead of a handshake, which begins with 22."""
    return connection.recv(1, socket.MSG_PEEK).isalpha()


def _refuse(connection: socket.socket) -> None:
    """Say what is wrong to a client that was told of http where it is https: as it is, it would say "EOF"."""
    with contextlib.closing(connection), contextlib.suppress(OSError):
        connection.recv(_HEAD)  # what is not read makes the kernel reset the connection, answer and all
        connection.sendall(_PLAIN)
        connection.shutdown(socket.SHUT_WR)


def _end(connection: socket.socket) -> None:
    """Break a connection off. It is the event loop's, which closes it when it finds that."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
