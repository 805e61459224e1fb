"""Random system calls, the same in two directories: made up once, and done in each of them.

An action is a function of a root and of the files that are held open there; what it returns, or the errno of what it
raises, must be the same in both. Names are few, so that they meet.
"""

from __future__ import annotations

import ctypes
import os
import random
import stat
from collections.abc import Callable
from pathlib import Path

Held = dict[int, int]
Action = Callable[[Path, Held], object]

_libc = ctypes.CDLL(None, use_errno=True)
NAMES = ("a", "b", "c", "d\u00e9", "e" * 255)
_SIZES = (0, 1, 511, 4095, 4096, 4097, 12_288, 70_000, 200_000)
_MODES = (0o644, 0o600, 0o755, 0o4755, 0o2755, 0o2644, 0o6777, 0o1777, 0)
_FLAGS = (0, os.O_EXCL, os.O_TRUNC, os.O_APPEND, os.O_TRUNC | os.O_APPEND, os.O_DIRECT)
_FALLOCATE_MODES = (0, 1, 3, 16, 17)
_HANDLES = 4
_AT_SYMLINK_FOLLOW = 0x400


def act(action: Action, root: Path, held: Held) -> object:
    """What an action came to."""
    try:
        return action(root, held)
    except OSError as error:
        return f"errno {error.errno}"


def link_descriptor(descriptor: int, path: Path) -> None:
    """Name an open file. Python's own `os.link` follows no symlink, whatever it is told."""
    if _libc.linkat(-100, b"/proc/self/fd/%d" % descriptor, -100, os.fsencode(path), _AT_SYMLINK_FOLLOW):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(path))


class Actions:
    """Makes actions up.

    Args:
        seed: of what is made up.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def next(self) -> tuple[str, Action]:
        """A further action, with its description."""
        make = self._random.choice(_MAKERS)
        action = make(self)
        return make.__name__.strip("_"), action

    def _path(self) -> str:
        return "/".join(self._random.choices(NAMES, k=self._random.choice((1, 1, 2, 2, 3))))

    def _bytes(self) -> bytes:
        return self._random.randbytes(self._random.choice(_SIZES))

    def _write(self) -> Action:
        path, data, offset = self._path(), self._bytes(), self._random.choice(_SIZES)

        def action(root: Path, _: Held) -> object:
            descriptor = os.open(root / path, os.O_RDWR | os.O_NONBLOCK)
            try:
                return os.pwrite(descriptor, data, offset), os.pread(descriptor, 300_000, 0)
            finally:
                os.close(descriptor)

        return action

    def _create(self) -> Action:
        path, data = self._path(), self._bytes()
        mode, flags = self._random.choice(_MODES), self._random.choice(_FLAGS) & ~os.O_DIRECT

        def action(root: Path, _: Held) -> object:
            descriptor = os.open(root / path, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | flags, mode)
            try:
                return os.write(descriptor, data), os.fstat(descriptor).st_mode
            finally:
                os.close(descriptor)

        return action

    def _hold(self) -> Action:
        path, number = self._path(), self._random.randrange(_HANDLES)
        flags = self._random.choice((os.O_RDWR | os.O_NONBLOCK, os.O_RDWR | os.O_APPEND | os.O_NONBLOCK))

        def action(root: Path, held: Held) -> object:
            descriptor = os.open(root / path, flags)
            if number in held:
                os.close(held[number])
            held[number] = descriptor
            return os.fstat(descriptor).st_size

        return action

    def _use_held(self) -> Action:
        number, data, size = self._random.randrange(_HANDLES), self._bytes(), self._random.choice(_SIZES)
        cut = self._random.random() < 0.3

        def action(_: Path, held: Held) -> object:
            if (descriptor := held.get(number)) is None:
                return None
            written = -1
            if cut:
                os.ftruncate(descriptor, size)
            else:
                written = os.write(descriptor, data)
            status = os.fstat(descriptor)
            os.fsync(descriptor)
            return written, status.st_size, status.st_nlink, os.pread(descriptor, 1_000_000, 0)

        return action

    def _truncate(self) -> Action:
        path, size = self._path(), self._random.choice(_SIZES)
        return lambda root, _: os.truncate(root / path, size)

    def _mkdir(self) -> Action:
        path, mode = self._path(), self._random.choice(_MODES)
        return lambda root, _: (root / path).mkdir(mode)

    def _rmdir(self) -> Action:
        path = self._path()
        return lambda root, _: (root / path).rmdir()

    def _unlink(self) -> Action:
        path = self._path()
        return lambda root, _: (root / path).unlink()

    def _rename(self) -> Action:
        old, new, flags = self._path(), self._path(), self._random.choice((0, 0, 0, 1, 2, 4, 5, 6))

        def action(root: Path, _: Held) -> object:
            if _libc.renameat2(-100, os.fsencode(root / old), -100, os.fsencode(root / new), flags):
                return f"errno {ctypes.get_errno()}"
            return "done"

        return action

    def _link(self) -> Action:
        old, new = self._path(), self._path()
        return lambda root, _: os.link(root / old, root / new, follow_symlinks=False)

    def _tmpfile(self) -> Action:
        path, new, data = self._path(), self._path(), self._bytes()
        mode, flags = self._random.choice(_MODES), self._random.choice((0, 0, os.O_EXCL))

        def action(root: Path, _: Held) -> object:
            descriptor = os.open(root / path, os.O_TMPFILE | os.O_RDWR | flags, mode)
            try:
                os.write(descriptor, data)
                before = os.fstat(descriptor)
                link_descriptor(descriptor, root / new)
                after = os.fstat(descriptor)
                return before.st_mode, before.st_nlink, before.st_size, after.st_nlink, os.pread(descriptor, 99, 0)
            finally:
                os.close(descriptor)

        return action

    def _symlink(self) -> Action:
        path, target = self._path(), self._path()
        return lambda root, _: (root / path).symlink_to(target)

    def _mknod(self) -> Action:
        path, mode = self._path(), self._random.choice((stat.S_IFIFO | 0o640, stat.S_IFCHR | 0o600, stat.S_IFSOCK))
        # Numbers that no driver can have: somebody may open it.
        device = os.makedev(self._random.randrange(1000, 1 << 12), self._random.randrange(1 << 20))
        return lambda root, _: os.mknod(root / path, mode, device if stat.S_ISCHR(mode) else 0)

    def _chmod(self) -> Action:
        path, mode = self._path(), self._random.choice(_MODES)
        return lambda root, _: (root / path).chmod(mode)

    def _chown(self) -> Action:
        path, uid, gid = self._path(), self._random.choice((-1, 0, 7)), self._random.choice((-1, 0, 70_000))
        return lambda root, _: os.chown(root / path, uid, gid, follow_symlinks=False)

    def _utime(self) -> Action:
        path, times = self._path(), (self._random.randrange(1 << 60), self._random.randrange(1 << 60))

        def action(root: Path, _: Held) -> object:
            os.utime(root / path, ns=times, follow_symlinks=False)
            return (root / path).lstat().st_mtime_ns

        return action

    def _setxattr(self) -> Action:
        path, name = self._path(), self._random.choice(("user.a", "user.b", "trusted.c"))
        value, flags = self._random.randbytes(20), self._random.choice((0, 0, os.XATTR_CREATE, os.XATTR_REPLACE))
        return lambda root, _: os.setxattr(root / path, name, value, flags)

    def _removexattr(self) -> Action:
        path, name = self._path(), self._random.choice(("user.a", "user.b", "trusted.c"))
        return lambda root, _: os.removexattr(root / path, name)

    def _fallocate(self) -> Action:
        path, mode = self._path(), self._random.choice(_FALLOCATE_MODES)
        offset, size = self._random.choice(_SIZES), self._random.choice(_SIZES)

        def action(root: Path, _: Held) -> object:
            descriptor = os.open(root / path, os.O_RDWR | os.O_NONBLOCK)
            try:
                wide = ctypes.c_int64
                if _libc.fallocate(descriptor, mode, wide(offset), wide(size)):
                    return f"errno {ctypes.get_errno()}"
                return os.pread(descriptor, 1_000_000, 0)
            finally:
                os.close(descriptor)

        return action

    def _list(self) -> Action:
        path = self._path()
        return lambda root, _: sorted(child.name for child in (root / path).iterdir())

    def _stat(self) -> Action:
        path = self._path()
        return lambda root, _: (root / path).lstat().st_mode


_MAKERS = (
    *(Actions._write, Actions._write, Actions._create, Actions._create, Actions._create, Actions._hold),
    *(Actions._use_held, Actions._use_held, Actions._truncate, Actions._mkdir, Actions._mkdir, Actions._mkdir),
    *(Actions._rmdir, Actions._unlink, Actions._rename, Actions._rename, Actions._rename, Actions._link),
    Actions._tmpfile,
    *(Actions._symlink, Actions._mknod, Actions._chmod, Actions._chown, Actions._utime, Actions._setxattr),
    *(Actions._removexattr, Actions._fallocate, Actions._list, Actions._stat),
)
