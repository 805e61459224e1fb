"""Loop devices: a file as a block device, for file systems that cannot be mounted from a file.

A device made here goes away with its last user (autoclear): with the descriptor that `open_loop` returns, or with the
mount that was made of it meanwhile. Its reads and writes go past the page cache of the file (direct I/O) where the
file's own file system can do that; everything would be in memory twice otherwise.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
from pathlib import Path
from typing import Final, NamedTuple

from pagepool.errors import UnsupportedError

CONTROL: Final = Path("/dev/loop-control")
BLOCK_SIZE: Final = 4096

_GET_FREE: Final = 0x4C82
_CONFIGURE: Final = 0x4C0A
_READ_ONLY, _AUTOCLEAR, _DIRECT_IO = 1, 4, 16
_MAJOR: Final = 7
_TRIES: Final = 64


class _Info(ctypes.Structure):
    # struct loop_info64
    _fields_ = (
        ("device", ctypes.c_uint64),
        ("inode", ctypes.c_uint64),
        ("rdevice", ctypes.c_uint64),
        ("offset", ctypes.c_uint64),
        ("sizelimit", ctypes.c_uint64),
        ("number", ctypes.c_uint32),
        ("encrypt_type", ctypes.c_uint32),
        ("encrypt_key_size", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("file_name", ctypes.c_char * 64),
        ("crypt_name", ctypes.c_char * 64),
        ("encrypt_key", ctypes.c_char * 32),
        ("init", ctypes.c_uint64 * 2),
    )


class _Config(ctypes.Structure):
    # struct loop_config
    _fields_ = (
        ("fd", ctypes.c_uint32),
        ("block_size", ctypes.c_uint32),
        ("info", _Info),
        ("reserved", ctypes.c_uint64 * 8),
    )


class Loop(NamedTuple):
    """An open loop device; whoever has it closes the descriptor."""

    path: Path
    descriptor: int


def open_loop(file: Path, *, read_only: bool) -> Loop:
    """Make a loop device of a file, with blocks of `BLOCK_SIZE`.

    Raises:
        UnsupportedError: there are no loop devices here.
        OSError: the file cannot be opened, or all devices are in use.
    """
    backing = os.open(file, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
    try:
        config = _Config(fd=backing, block_size=BLOCK_SIZE)
        config.info.flags = _AUTOCLEAR | _DIRECT_IO | (_READ_ONLY if read_only else 0)
        config.info.file_name = os.fsencode(file)[:63]
        for _ in range(_TRIES):
            path = _free_device()
            device = _open_device(path, read_only)
            try:
                fcntl.ioctl(device, _CONFIGURE, bytes(config))
            except OSError as error:
                os.close(device)
                # Somebody else has taken it since.
                if error.errno != errno.EBUSY:
                    raise OSError(error.errno, f"{os.strerror(error.errno or 0)} (loop device)", str(file)) from error
            else:
                return Loop(path, device)
        raise OSError(errno.EBUSY, "no loop device is free", str(file))
    finally:
        os.close(backing)


def loop_files() -> dict[Path, Path]:
    """The loop devices that are in use, and the file that each is of, as the kernel knows it."""
    found: dict[Path, Path] = {}
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            text = backing.read_bytes()
        except OSError:
            continue  # it went away meanwhile
        found[Path("/dev") / backing.parts[-3]] = Path(os.fsdecode(text.removesuffix(b"\n")))
    return found


def _free_device() -> Path:
    try:
        control = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise UnsupportedError(f"there is no {CONTROL}: it needs the kernel's module loop") from None
    try:
        return Path(f"/dev/loop{fcntl.ioctl(control, _GET_FREE)}")
    finally:
        os.close(control)


def _open_device(path: Path, read_only: bool) -> int:
    flags = (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC
    try:
        return os.open(path, flags)
    except FileNotFoundError:
        # A /dev that is not kept by the kernel, as containers have it.
        number = int(path.name.removeprefix("loop"))
        os.mknod(path, stat.S_IFBLK | 0o600, os.makedev(_MAJOR, number))
        return os.open(path, flags)
