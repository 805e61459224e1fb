"""Tells a service manager how a process is: sd_notify(3), of which a line to a socket is all that is needed."""

from __future__ import annotations

import socket


def notify(address: str, state: str) -> None:
    """Tell the service manager something.

    Args:
        address: what it gave the process in ``NOTIFY_SOCKET``; empty: there is none, and nothing is told.
        state: ``READY=1``, ``STOPPING=1``, ``STATUS=…``; several are on lines of their own.

    Raises:
        OSError: it does not listen.
    """
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        channel.sendto(state.encode(), f"\0{address[1:]}" if address.startswith("@") else address)
