"""Sockets that a service listens on, and how they are called."""

from __future__ import annotations

import socket

from pagepool.errors import ListenError


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        ListenError: the address is not ours, or in use.
    """
    where = f"{host}:{port}"
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, proto)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted sockets inherit it: a client that vanished without a word does not hold its request for ever.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        listener.bind(address)
        listener.listen(2048)
        listener.setblocking(False)
    except OSError as error:
        raise ListenError(where, error.strerror or str(error)) from error
    return listener


def address_of(listener: socket.socket, *, secure: bool = False) -> str:
    """The URL of a listening socket, with the port it really has."""
    host, port = listener.getsockname()[:2]
    scheme = "https" if secure else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
