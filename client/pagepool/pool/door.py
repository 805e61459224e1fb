"""A pool for other processes on the machine: handed to them as the descriptor of a read-only mount.

The owner clones the pool's directory as a mount of nobody's namespace (open_tree(2), mount_setattr(2), Linux 5.12),
makes it read-only, and sends its descriptor to whoever connects to a Unix socket. What is opened below it cannot be
written to, nor reopened for writing through /proc/self/fd, not by root either. Nothing is left when the owner is
killed: the mount is gone with its last descriptor. Needs CAP_SYS_ADMIN.

Which objects are in the pool everybody who connects can find out, and read: a door is for machines whose users may
read every image that the pool's owner serves.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import stat
import struct
import time
from typing import TYPE_CHECKING, Final

from pagepool.errors import DeniedError
from pagepool.linux import mounts
from pagepool.linux.descriptors import is_passing, receive_descriptors

if TYPE_CHECKING:
    from pathlib import Path

_RESTRICT: Final = mounts.ATTR_RDONLY | mounts.ATTR_NOSUID | mounts.ATTR_NODEV | mounts.ATTR_NOEXEC
_TIMEOUT_S: Final = 5.0
_AGAIN_S: Final = 0.1
_CREDENTIALS: Final = struct.Struct("=iII")  # struct ucred: process, user, group


log = logging.getLogger("pagepool.pool")


def open_read_only(path: Path) -> int:
    """A directory as a read-only mount that is in no namespace.

    Returns:
        its descriptor; the mount lives as long as that, and what is opened below it.

    Raises:
        OSError: EPERM without CAP_SYS_ADMIN, ENOSYS on an old kernel.
    """
    descriptor = mounts.clone_mount(path)
    try:
        mounts.restrict_mount(descriptor, _RESTRICT)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def door_path(pool: Path) -> Path:
    """Where the socket of a pool is: beside its directory."""
    return pool.with_name(f"{pool.name}.door")


class Door:
    """Hands a pool's directory to whoever connects. One for each pool; `serve` blocks.

    Args:
        pool: the pool's directory; its door, if somebody left one, is replaced.

    Raises:
        OSError: it cannot be made read-only, or the socket cannot be made.
    """

    def __init__(self, pool: Path) -> None:
        self.path = door_path(pool)
        with contextlib.ExitStack() as undo:
            self._mount = open_read_only(pool)
            undo.callback(os.close, self._mount)
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            undo.callback(self._listener.close)
            self.path.unlink(missing_ok=True)
            self._listener.bind(os.fsencode(self.path))
            self.path.chmod(0o666)
            self._listener.listen(128)
            self._undo = undo.pop_all()

    def serve(self) -> None:
        """Answer until the socket is closed: each connection gets the descriptor, and nothing else is said."""
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError as error:
                if not is_passing(error):
                    return
                log.warning("who wants the pool at %s has to wait: %s", self.path, error)
                time.sleep(_AGAIN_S)
                continue
            with connection, contextlib.suppress(OSError):
                connection.settimeout(_TIMEOUT_S)
                socket.send_fds(connection, [b"."], [self._mount])

    def close(self) -> None:
        """Close it. What was handed out stays good."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._undo.close()
        self.path.unlink(missing_ok=True)


def knock(pool: Path) -> int:
    """Ask the owner of a pool for its directory.

    Returns:
        the descriptor of a directory below which nothing can be written; the caller closes it.

    Raises:
        OSError: there is no door, or nobody behind it.
        DeniedError: somebody else is behind it, or what came is no directory.
    """
    owner = pool.stat().st_uid
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_TIMEOUT_S)
        connection.connect(os.fsencode(door_path(pool)))
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        if _CREDENTIALS.unpack(credentials)[1] != owner:
            raise DeniedError(f"{door_path(pool)} is not of user {owner}, whose pool it is")
        _, descriptors = receive_descriptors(connection, 1, 1)
    if len(descriptors) != 1 or not stat.S_ISDIR(os.fstat(descriptors[0]).st_mode):
        for descriptor in descriptors:
            os.close(descriptor)
        raise DeniedError(f"{door_path(pool)} handed out no directory")
    return descriptors[0]
