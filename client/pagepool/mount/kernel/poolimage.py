"""A file system for a node's pool and uppers, in one file: XFS with reflinks and project quotas, on a loop device.

For hosts whose own file system has no reflinks (ext4): copy-up of a large file copies nothing then, and containers can
have a disk quota. The file takes its whole size from the host at once: were it sparse, a full host would look like a
broken disk to XFS, which then stops. The loop device reads and writes past the host's page cache (direct I/O).

What a crash leaves: a file `.NAME.new` while it is being made, which the next `create` replaces; a mount and its loop
device as long as nobody unmounts them, none after a boot.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

from pagepool.errors import BusyError, DiskFullError, InvalidError, UnsupportedError
from pagepool.linux import is_full, mounts
from pagepool.mount.kernel.loop import BLOCK_SIZE, loop_files, open_loop
from pagepool.mount.mountinfo import mounted_at, resolve

KIND: Final = "xfs"
POOL_IMAGE_MIN_SIZE: Final = 300 << 20
"""mkfs.xfs makes none that is smaller."""

_MKFS: Final = "mkfs.xfs"
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_TIMEOUT_S: Final = 300.0


class PoolImage:
    """An XFS in a file. Holds nothing open: the mount does."""

    def __init__(self, file: Path) -> None:
        self.file = file.absolute()

    @classmethod
    def create(cls, file: Path, size: int, *, sparse: bool = False) -> PoolImage:
        """Make the file, with an empty file system; it gets its name when it is whole.

        Args:
            file: that is not there.
            size: bytes, at least `POOL_IMAGE_MIN_SIZE`.
            sparse: take space from the host only as it is used; for those who know what a full host does to it.

        Raises:
            FileExistsError: it is there.
            InvalidError: too small.
            UnsupportedError: there is no mkfs.xfs here.
            DiskFullError: the host has not so much space.
            OSError: it cannot be made.
        """
        if size < POOL_IMAGE_MIN_SIZE:
            raise InvalidError(size, f"a pool image has at least {POOL_IMAGE_MIN_SIZE} bytes")
        program = shutil.which(_MKFS, path=_PATH)
        if program is None:
            raise UnsupportedError(f"a pool image needs the program {_MKFS}: install the package xfsprogs")
        file = file.absolute()
        if file.exists():
            raise FileExistsError(f"{file} is there already")
        new = file.with_name(f".{file.name}.new")
        try:
            _allocate(new, cls.rounded(size), sparse)
            _format(program, new)
            new.rename(file)
        finally:
            new.unlink(missing_ok=True)
        _sync(file.parent)
        return cls(file)

    @staticmethod
    def rounded(size: int) -> int:
        """Bytes of the file, if so many are asked for."""
        return size - size % BLOCK_SIZE

    def mount(self, at: Path) -> None:
        """Mount it, with project quotas if the kernel has them for XFS. Does nothing if it is mounted there.

        Args:
            at: an existing directory.

        Raises:
            BusyError: it is mounted somewhere else.
            OSError: it cannot be mounted; the text says what the kernel said.
        """
        target = resolve(at)
        device = self._device()
        if device is not None:
            point = mounted_at(target)
            if point is not None and point.source == str(device):
                return
            raise BusyError(f"{self.file} is in use as {device}")
        loop = open_loop(self.file, read_only=False)
        try:
            try:
                descriptor = _mount(loop.path, ["prjquota"])
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                # Kernels may be built without; whoever asks for a quota is told.
                descriptor = _mount(loop.path, [])
            try:
                mounts.move_mount(descriptor, target)
            finally:
                os.close(descriptor)
        finally:
            os.close(loop.descriptor)

    def is_mounted(self, at: Path) -> bool:
        """Whether it is what is mounted there."""
        device, point = self._device(), mounted_at(resolve(at))
        return device is not None and point is not None and point.source == str(device)

    def unmount(self, at: Path) -> None:
        """Unmount it; the loop device goes with it.

        Raises:
            OSError: EBUSY: it is in use.
        """
        mounts.unmount(resolve(at))

    def _device(self) -> Path | None:
        """The loop device of the file, if it has one."""
        real = self.file.resolve()
        return next((device for device, file in loop_files().items() if file == real), None)


def _mount(device: Path, flags: list[str]) -> int:
    with mounts.FileSystemContext(KIND) as context:
        context.set_string("source", device)
        for flag in flags:
            context.set_flag(flag)
        context.create()
        return context.mount(mounts.ATTR_NODEV)


def _allocate(file: Path, size: int, sparse: bool) -> None:
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        if sparse:
            os.truncate(descriptor, size)
        else:
            # Asked first: the host would be full for a moment otherwise.
            free = os.fstatvfs(descriptor)
            if size > free.f_bavail * free.f_frsize:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
            os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if is_full(error):
            raise DiskFullError(f"{file.parent} has no {size} bytes for a pool image") from error
        raise
    finally:
        os.close(descriptor)


def _format(program: str, file: Path) -> None:
    options = ["-q", "-f", "-K", "-m", "reflink=1", "-s", f"size={BLOCK_SIZE}", "-b", f"size={BLOCK_SIZE}"]
    done = subprocess.run(
        [program, *options, str(file)],
        env={"PATH": _PATH},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        timeout=_TIMEOUT_S,
    )
    if done.returncode:
        raise OSError(0, f"{_MKFS}: {' '.join(done.stderr.split())}", str(file))
    _sync(file)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
