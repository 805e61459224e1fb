"""Mounts and unmounts FUSE file systems: mount(2) as root, and otherwise `fusermount3`, which may do it for users.

Nothing is kept here. A mount lives as long as its device is open somewhere and it is not unmounted; when the process
that has the device ends, by whatever cause, what is left is a mount whose every use is ENOTCONN, until it is unmounted.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import stat
import subprocess
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pagepool.errors import BusyError, UnsupportedError
from pagepool.linux import mounts, syncfs
from pagepool.linux.descriptors import receive_descriptors
from pagepool.mount.fuse.protocol import MAX_IO
from pagepool.mount.holders import MountUnknownError
from pagepool.mount.mountinfo import FUSE_TYPE, mounted_at
from pagepool.mount.turns import turn

if TYPE_CHECKING:
    from collections.abc import Sequence

DEVICE: Final = Path("/dev/fuse")

_HELPER: Final = "fusermount3"
_HELPER_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_HELPER_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class MountOptions:
    """How to mount.

    Args:
        source: what the mount is said to be of.
        read_only: whether nothing can be changed through it.
        allow_other: whether other users may look into it; None: as root they may. For a user without privileges it
            needs ``user_allow_other`` in /etc/fuse.conf.
        suid: whether setuid, setgid and file capabilities count. Never, for a user without privileges.
        dev: whether device nodes are devices. Never, for a user without privileges.
    """

    source: str = "pagepool"
    read_only: bool = False
    allow_other: bool | None = None
    suid: bool = True
    dev: bool = False


def is_root() -> bool:
    """Whether this process may mount by itself."""
    return os.geteuid() == 0


def mount_device(path: Path, options: MountOptions) -> int:
    """Mount, and return the open device that is to be served. Until INIT is answered every use of the mount waits.

    Args:
        path: an existing directory, resolved.

    Raises:
        UnsupportedError: FUSE, or what a user needs for it, is not there.
        OSError: mounting failed.
    """
    if not DEVICE.exists():
        raise UnsupportedError(f"there is no {DEVICE}: FUSE needs the kernel's module fuse, and access to the device")
    if options.allow_other is None:
        options = replace(options, allow_other=is_root())
    return _mount_as_root(path, options) if is_root() else _mount_by_helper(path, options)


def unmount_device(
    path: Path, *, detach: bool = False, abort: bool = False, device: tuple[int, int] | None = None
) -> None:
    """Unmount, once whoever else of ours unmounts at this path is done.

    Args:
        path: resolved.
        detach: also when it is in use; those who use it keep it for as long as it is served.
        abort: first end all requests, now and in future, with an error. Only as root.
        device: only if this mount of ours is what is seen there; None: whatever is.

    Raises:
        MountUnknownError: something else is there, or nothing.
        BusyError: it is in use.
        OSError: it is not mounted, or may not be unmounted.
    """
    with turn(path):
        if device is not None:
            point = mounted_at(path)
            if point is None or (point.type, point.device) != (FUSE_TYPE, device):
                raise MountUnknownError(path)
        _unmount_seen(path, detach=detach, abort=abort)


def _unmount_seen(path: Path, *, detach: bool, abort: bool) -> None:
    if not is_root():
        _unmount_by_helper(path, detach=detach)
        return
    if abort:
        # Being in use does not keep it from being aborted. If it is not in use it is gone by that alone.
        with suppress(OSError):
            mounts.unmount(path, mounts.MNT_FORCE)
            return
    try:
        mounts.unmount(path, mounts.MNT_DETACH if detach or abort else 0)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise BusyError(f"{path} is in use") from None
        if not (abort and error.errno in (errno.EINVAL, errno.ENOENT)):
            raise OSError(error.errno, error.strerror, str(path)) from None


def flush_device(path: Path) -> None:
    """Have the kernel hand over what programs wrote through mappings. Blocks; does nothing if that is impossible."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            syncfs(descriptor)
        finally:
            os.close(descriptor)


def _mount_as_root(path: Path, options: MountOptions) -> int:
    descriptor = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    mode = stat.S_IFMT(path.stat().st_mode)
    data = f"fd={descriptor},rootmode={mode:o},user_id={os.geteuid()},group_id={os.getegid()}"
    data += f",default_permissions,max_read={MAX_IO}" + (",allow_other" if options.allow_other else "")
    flags = mounts.MS_RDONLY if options.read_only else 0
    flags |= (0 if options.suid else mounts.MS_NOSUID) | (0 if options.dev else mounts.MS_NODEV)
    try:
        mounts.mount(options.source, path, FUSE_TYPE, flags, data)
    except OSError as error:
        os.close(descriptor)
        raise OSError(error.errno, error.strerror, str(path)) from None
    return descriptor


def _mount_by_helper(path: Path, options: MountOptions) -> int:
    words = ["default_permissions", f"max_read={MAX_IO}", f"fsname={_escape(options.source)}", "subtype=pagepool"]
    words += ["ro"] * options.read_only + ["allow_other"] * bool(options.allow_other)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours:
        with theirs:
            _run_helper(
                ["-o", ",".join(words), "--", str(path)], _FUSE_COMMFD=str(theirs.fileno()), descriptor=theirs.fileno()
            )
        return _receive_descriptor(ours)


def _unmount_by_helper(path: Path, *, detach: bool) -> None:
    try:
        _run_helper(["-u", *(["-z"] if detach else []), "--", str(path)])
    except OSError as error:
        if "busy" in str(error):
            raise BusyError(f"{path} is in use") from error
        raise


def _run_helper(arguments: Sequence[str], descriptor: int | None = None, **environment: str) -> None:
    program = shutil.which(_HELPER, path=_HELPER_PATH)
    if program is None:
        raise UnsupportedError(f"mounting as a user needs the program {_HELPER}: install the package fuse3")
    kept = () if descriptor is None else (descriptor,)
    done = subprocess.run(
        [program, *arguments],
        env={"PATH": _HELPER_PATH, **environment},
        pass_fds=kept,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=_HELPER_TIMEOUT_S,
    )
    if done.returncode:
        words = " ".join(done.stderr.split()).removeprefix(f"{program}: ").removeprefix(f"{_HELPER}: ")
        raise OSError(errno.EPERM, f"{_HELPER}: {words or f'it ended with {done.returncode}'}", arguments[-1])


def _receive_descriptor(ours: socket.socket) -> int:
    _, descriptors = receive_descriptors(ours, 1, 1)
    if not descriptors:
        raise OSError(errno.EIO, f"{_HELPER} handed no device over")
    return descriptors[0]


def _escape(value: str) -> str:
    """A value of an option of fusermount3."""
    return value.replace("\\", "\\\\").replace(",", "\\,")
