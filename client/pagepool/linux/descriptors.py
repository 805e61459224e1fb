"""Descriptors: those that come over a Unix socket (SCM_RIGHTS, unix(7)), those that cannot be had just now, and whether
there is something to read."""

from __future__ import annotations

import array
import errno
import select
import socket
from typing import Final

_INT: Final = array.array("i").itemsize
_PASSING: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.ECONNABORTED, errno.EINTR)


def is_passing(error: OSError) -> bool:
    """Whether what was refused, a file or a connection, may be had a moment later: once others have closed theirs."""
    return error.errno in _PASSING


def is_readable(descriptor: int, timeout_s: float | None) -> bool:
    """Whether something can be read from a descriptor, or comes within that time; None: wait for it.

    By poll(2): select(2) knows no descriptor from 1024 on, and a program that reads images may have thousands.
    """
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(None if timeout_s is None else 1000 * timeout_s))


def receive_descriptors(channel: socket.socket, size: int, most: int) -> tuple[bytes, list[int]]:
    """Receive bytes, and the descriptors that come with them. Blocks as the socket does.

    No program that this process starts inherits them, not even one that another thread starts at this very moment:
    `socket.recv_fds` takes flags for that, and hands them on to nobody (Python 3.11).

    Args:
        channel: a connected Unix socket.
        size: bytes, at most.
        most: descriptors; what comes beyond them is closed by the kernel.

    Returns:
        the bytes, empty if the other end has gone; and the descriptors, which the caller closes.

    Raises:
        OSError: the connection broke, or there is nothing yet on a socket that does not block.
    """
    room = socket.CMSG_LEN(most * _INT)
    data, ancillary, _, _ = channel.recvmsg(size, room, socket.MSG_CMSG_CLOEXEC)
    found = array.array("i")
    for level, kind, part in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found.frombytes(part[: len(part) - len(part) % _INT])
    return data, found.tolist()
