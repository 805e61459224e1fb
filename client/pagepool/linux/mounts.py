"""Mounting: mount(2), umount2(2), and the file-descriptor API (fsopen(2) and its kin, Linux 5.2; open_tree(2)).

A mount made by `FileSystemContext` is in no namespace until `move_mount` attaches it: it is gone with its last
descriptor, so that a process that is killed half way leaves nothing behind. What the kernel says about a failure it
says in the context's log, and that is in the text of the OSError here.

All of it needs CAP_SYS_ADMIN.
"""

from __future__ import annotations

import ctypes
import errno
import os
from typing import TYPE_CHECKING, Final

from pagepool.errors import UnsupportedError
from pagepool.linux.calls import call

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType
    from typing import Self

# By mount(2).
MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_REMOUNT: Final = 32
MS_BIND: Final = 4096
MS_MOVE: Final = 8192
MS_REC: Final = 16384
MS_PRIVATE: Final = 1 << 18
MS_RELATIME: Final = 1 << 21
MS_STRICTATIME: Final = 1 << 24
# By umount2(2).
MNT_FORCE: Final = 1
MNT_DETACH: Final = 2
UMOUNT_NOFOLLOW: Final = 8
# Of mounts, by fsmount(2) and mount_setattr(2).
ATTR_RDONLY: Final = 1
ATTR_NOSUID: Final = 2
ATTR_NODEV: Final = 4
ATTR_NOEXEC: Final = 8
ATTR_NOATIME: Final = 0x10

MAX_STRING: Final = 255
"""Most bytes of a value given as a string; the kernel's limit has one for the zero at the end."""

_OPEN_TREE, _MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT, _MOUNT_SETATTR = 428, 429, 430, 431, 432, 442
_SET_FLAG, _SET_STRING, _SET_FD, _CREATE = 0, 1, 5, 6
_CLOEXEC: Final = 1
_OPEN_TREE_CLONE: Final = 1
_FROM_EMPTY_PATH: Final = 4
_AT_EMPTY_PATH: Final = 0x1000
_AT_RECURSIVE: Final = 0x8000
_AT_FDCWD: Final = -100
_MOST_LOG: Final = 4096


class _MountAttributes(ctypes.Structure):
    _fields_ = (
        ("set", ctypes.c_uint64),
        ("clear", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns", ctypes.c_uint64),
    )


def mount(
    source: str | Path | None,
    target: str | Path,
    kind: str | None = None,
    flags: int = 0,
    data: str | bytes | None = None,
) -> None:
    """Mount as mount(2) does.

    Args:
        source: what; None where the flags need none.
        target: on which directory.
        kind: the file system's type; None where the flags need none.
        flags: ``MS_…``.
        data: options of the file system, less than a page.
    """
    origin = None if source is None else os.fsencode(source)
    name = None if kind is None else kind.encode()
    options = os.fsencode(data) if data else None
    call("mount", origin, os.fsencode(target), name, ctypes.c_ulong(flags), options, path=target)


def unmount(target: str | Path, flags: int = 0) -> None:
    """Unmount what is seen at a path; a symlink there is not followed. `flags`: ``MNT_…``."""
    call("umount2", os.fsencode(target), flags | UMOUNT_NOFOLLOW, path=target)


def make_private() -> None:
    """Have no mount that is made in this namespace from now on be seen in another one.

    Raises:
        UnsupportedError: this process's root is no mount, so that nobody can say that of it.
    """
    try:
        mount("none", "/", flags=MS_REC | MS_PRIVATE)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        reason = "this process's root directory is no mount point, as in a chroot: nothing can be mounted for it alone"
        raise UnsupportedError(reason) from error


def clone_mount(path: Path) -> int:
    """A directory as a mount of its own that is in no namespace. Returns its descriptor."""
    flags = ctypes.c_uint(_OPEN_TREE_CLONE | os.O_CLOEXEC)
    return _syscall(_OPEN_TREE, _AT_FDCWD, os.fsencode(path), flags)


def restrict_mount(descriptor: int, attributes: int, *, recursive: bool = False) -> None:
    """Set attributes (``ATTR_…``) of the mount that a descriptor is the root of. Linux 5.12.

    Args:
        recursive: also of the mounts below it.
    """
    wanted = _MountAttributes(set=attributes)
    size = ctypes.c_size_t(ctypes.sizeof(wanted))
    flags = ctypes.c_uint(_AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0))
    _syscall(_MOUNT_SETATTR, descriptor, b"", flags, ctypes.byref(wanted), size)


def move_mount(descriptor: int, target: Path) -> None:
    """Attach a mount that is in no namespace, in that of this process. The descriptor stays open."""
    _syscall(_MOVE_MOUNT, descriptor, b"", _AT_FDCWD, os.fsencode(target), ctypes.c_uint(_FROM_EMPTY_PATH))


class FileSystemContext:
    """A file system that is about to be mounted: set parameters, `create` it, `mount` it. For one thread; close it.

    Every failure is an OSError, with the parameter and what the kernel said about it.

    Args:
        kind: the file system's type.

    Raises:
        OSError: ENOSYS or EPERM: there is no such system call, or it is not allowed; ENODEV: no such file system.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.descriptor = -1
        self.descriptor = self._try(kind, _FSOPEN, kind.encode(), ctypes.c_uint(_CLOEXEC))

    def set_string(self, key: str, value: str | Path) -> None:
        """Set a parameter, of at most `MAX_STRING` bytes."""
        self._configure(f"{key}={value}", _SET_STRING, key.encode(), os.fsencode(value), 0)

    def set_flag(self, key: str) -> None:
        """Set a parameter that has no value."""
        self._configure(key, _SET_FLAG, key.encode(), None, 0)

    def set_descriptor(self, key: str, descriptor: int) -> None:
        """Set a parameter that is an open file or directory."""
        shown = f"{key}={_path_of(descriptor)}"
        self._configure(shown, _SET_FD, key.encode(), None, descriptor)

    def create(self) -> None:
        """Make the superblock."""
        try:
            self._configure(self.kind, _CREATE, None, None, 0)
        except OSError as error:
            # Some reasons are given in the kernel's own log only.
            if error.errno == errno.EINVAL and error.strerror == os.strerror(errno.EINVAL):
                error.strerror += " (dmesg may say why)"
            raise

    def mount(self, attributes: int = 0) -> int:
        """Mount it, in no namespace. Returns the mount's descriptor.

        Args:
            attributes: ``ATTR_…``.
        """
        return self._try(self.kind, _FSMOUNT, self.descriptor, ctypes.c_uint(_CLOEXEC), ctypes.c_uint(attributes))

    def close(self) -> None:
        """Let go of it; a mount that was made stays. Twice is once."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _configure(self, shown: str, command: int, key: bytes | None, value: bytes | None, number: int) -> None:
        self._try(shown, _FSCONFIG, self.descriptor, ctypes.c_uint(command), key, value, number)

    def _try(self, shown: str, number: int, *arguments: object) -> int:
        try:
            return _syscall(number, *arguments)
        except OSError as error:
            said = self._log()
            raise OSError(error.errno, f"{error.strerror}{f' ({said})' if said else ''}", shown) from None

    def _log(self) -> str:
        """What the kernel has said since it was asked last: errors and warnings, without their letter."""
        lines: list[str] = []
        while self.descriptor >= 0:
            try:
                line = os.read(self.descriptor, _MOST_LOG)
            except OSError as error:
                if error.errno == errno.EINTR:
                    continue
                break  # ENODATA: that was all
            letter, _, text = line.decode("utf-8", "backslashreplace").strip().partition(" ")
            if letter != "i":
                lines.append(text)
        return "; ".join(lines)


def _syscall(number: int, *arguments: object) -> int:
    return call("syscall", ctypes.c_long(number), *arguments)


def _path_of(descriptor: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115 (it need not be a path)
    except OSError:
        return str(descriptor)
