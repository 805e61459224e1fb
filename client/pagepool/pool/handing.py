"""Handing open objects to other processes, over a Unix socket.

One message: a byte, and the descriptors with it (SCM_RIGHTS, unix(7)). What is handed on keeps the object held for as
long as the receiver has it open or mapped. Descriptors for processes that are not trusted are opened through a
`pagepool.pool.readonly.ReadOnlyMount`. Who may have which object is the caller's to decide.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Final

from pagepool.errors import CorruptError, InvalidError
from pagepool.linux.descriptors import receive_descriptors
from pagepool.pool.files import PoolFile, hash_file

if TYPE_CHECKING:
    from collections.abc import Sequence

MOST_AT_ONCE: Final = 128
"""Descriptors in one message; the kernel takes up to 253."""


def send_objects(channel: socket.socket, files: Sequence[PoolFile]) -> None:
    """Send descriptors of objects; the files stay open here. Blocks while the socket is full.

    Args:
        channel: a connected Unix socket.
        files: at most `MOST_AT_ONCE`, at least one.
    """
    if not 0 < len(files) <= MOST_AT_ONCE:
        raise InvalidError(len(files), f"between 1 and {MOST_AT_ONCE} objects go into a message")
    socket.send_fds(channel, [bytes((len(files),))], [file.fd for file in files])


def receive_objects(channel: socket.socket, digests: Sequence[bytes], *, verify: bool = False) -> list[PoolFile]:
    """Receive what `send_objects` sent. Blocks until it comes.

    Args:
        channel: a connected Unix socket.
        digests: of the objects that are expected, in order.
        verify: hash them, where the sender is not trusted.

    Returns:
        the objects, to be closed. Their `fd` is what was received, as long as they are not mapped.

    Raises:
        EOFError: the sender has gone.
        InvalidError: it sent another number of descriptors.
        CorruptError: `verify`, and one is not what it should be.
    """
    message, descriptors = receive_descriptors(channel, 1, MOST_AT_ONCE)
    files = [PoolFile(descriptor, os.fstat(descriptor).st_size, b"", _never) for descriptor in descriptors]
    try:
        if not message:
            raise EOFError("the sender of objects has gone")
        if len(files) != len(digests) or message[0] != len(digests):
            raise InvalidError(len(files), f"{len(digests)} objects were to come")
        for file, digest in zip(files, digests, strict=True):
            file.digest = digest
            if verify and hash_file(file.fd) != digest:
                raise CorruptError("object", digest.hex(), "what was handed over is something else")
    except BaseException:
        for file in files:
            file.close()
        raise
    return files


def _never(_digest: bytes) -> None:
    """There is no name here to open an object by."""
