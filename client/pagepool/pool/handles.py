"""File handles: whether a file that has lost its names is still there, because somebody has it in use unseen.

An overlay that has found an object keeps that file for as long as it remembers its own inode, open or not. Nothing
tells of it but the file itself: open_by_handle_at(2) finds a file without names while anybody has it, and is answered
ESTALE when the last one has let go. Tried with ext4, XFS and tmpfs. Needs CAP_DAC_READ_SEARCH.

While somebody makes a file whose inode has the number of one that is gone, ext4 answers ENOMEM (iget_locked of an inode
in I_CREATING), a moment later ESTALE: it is asked again.
"""

from __future__ import annotations

import ctypes
import errno
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pagepool.linux import call

if TYPE_CHECKING:
    from pathlib import Path

MOST_BYTES: Final = 128  # MAX_HANDLE_SZ
_AT_EMPTY_PATH: Final = 0x1000
_O_PATH: Final = os.O_PATH | os.O_CLOEXEC
_ATTEMPTS: Final = 50
_PAUSE_S: Final = 0.001


class _FileHandle(ctypes.Structure):
    _fields_ = (("size", ctypes.c_uint), ("type", ctypes.c_int), ("bytes", ctypes.c_ubyte * MOST_BYTES))


@dataclass(frozen=True, slots=True)
class Handle:
    """What names a file in its file system, as long as it is the same file.

    Args:
        type: the file system's own.
        raw: at most `MOST_BYTES`.
    """

    type: int
    raw: bytes


class HandleDoor:
    """Handles of the files of one file system.

    Args:
        directory: any of that file system; stays open until this is closed.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, directory: Path) -> None:
        self._mount = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.usable = False
        with suppress(OSError):
            self.usable = self.links(self.name(self._mount)) is not None

    def name(self, descriptor: int) -> Handle:
        """The handle of an open file.

        Raises:
            OSError: the file system has none.
        """
        handle = _FileHandle(MOST_BYTES, 0)
        mount = ctypes.c_int()
        arguments = (descriptor, b"", ctypes.byref(handle), ctypes.byref(mount), _AT_EMPTY_PATH)
        call("name_to_handle_at", *arguments)
        return Handle(handle.type, bytes(handle.bytes[: handle.size]))

    def links(self, handle: Handle) -> int | None:
        """How many names a file has; 0 while somebody has it without; None if there is no such file any more.

        Raises:
            OSError: it cannot be found out.
        """
        try:
            descriptor = self._open(handle)
        except OSError as error:
            if error.errno in (errno.ESTALE, errno.ENOENT):
                return None
            raise
        try:
            return os.fstat(descriptor).st_nlink
        finally:
            os.close(descriptor)

    def _open(self, handle: Handle) -> int:
        wanted = _FileHandle(len(handle.raw), handle.type)
        ctypes.memmove(wanted.bytes, handle.raw, len(handle.raw))
        for _ in range(_ATTEMPTS - 1):
            try:
                return call("open_by_handle_at", self._mount, ctypes.byref(wanted), _O_PATH)
            except OSError as error:
                if error.errno != errno.ENOMEM:
                    raise
                time.sleep(_PAUSE_S)
        return call("open_by_handle_at", self._mount, ctypes.byref(wanted), _O_PATH)

    def close(self) -> None:
        """Close the directory."""
        os.close(self._mount)
        self._mount = -1
