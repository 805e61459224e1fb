"""Mounts of file systems by FUSE, served by threads of this process.

A process must not use its own mount in a way that keeps other threads of Python from running: a page fault of a mapping
of one of its files, or starting a program with its working directory or its executable in the mount, waits for an
answer that nobody can give. Plain calls (open, read, stat and so on) let other threads run. `background` serves from
a process of its own, which has no such danger.

What a crash leaves: a dead mount (every use is ENOTCONN) and a record; the next `mount_fuse` at the same place, or
`unmount`, takes both away.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Lock, current_thread, main_thread
from typing import TYPE_CHECKING, Final

from pagepool.errors import BusyError, UnreachableError
from pagepool.linux.descriptors import is_readable
from pagepool.mount import records
from pagepool.mount.device import MountOptions, flush_device, is_root, mount_device, unmount_device
from pagepool.mount.fuse.server import MAX_THREADS, FuseServer
from pagepool.mount.holders import MountUnknownError, in_use
from pagepool.mount.mountinfo import FUSE_TYPE, is_dead, mounted_at, resolve

if TYPE_CHECKING:
    from types import FrameType, TracebackType

    from pagepool.mount.records import MountRecord
    from pagepool.vfs.interface import FileSystem

_READY_TIMEOUT_S: Final = 30.0
_END_TIMEOUT_S: Final = 60.0
_DETACHED_TIMEOUT_S: Final = 2.0
_QUIET_TIMEOUT_S: Final = 10.0
_READ_AHEAD_KIB: Final = 1024
_ENDING: Final = (signal.SIGTERM, signal.SIGHUP)

_log = logging.getLogger(__name__)

_mounts: dict[Path, Mount] = {}
"""What this process serves, by where it is."""


class Mount:
    """A mount that this process serves. As a context manager it is closed at the end.

    Args:
        path: where it is.
        server: what serves it.
        directory: where its record is.
    """

    def __init__(self, path: Path, server: FuseServer, directory: Path) -> None:
        self.path = path
        self.server = server
        self._directory = directory
        self._lock = Lock()
        point = mounted_at(path)
        self._device = None if point is None else point.device
        self._pid = os.getpid()
        _mounts[path] = self
        atexit.register(self.close)
        _take_signals()

    @property
    def is_own(self) -> bool:
        """Whether this process serves it: not if that is the one that this was forked from."""
        return os.getpid() == self._pid

    def unmount(self) -> None:
        """Unmount, and wait until everything is handled.

        Raises:
            BusyError: it is in use; it stays mounted.
        """
        with self._lock:
            if self._is_mounted():
                with suppress(MountUnknownError):  # somebody else was faster
                    _unmount(self.path, self._device)
            self._end(_END_TIMEOUT_S)

    def close(self) -> None:
        """Unmount in any case: whoever still uses it gets errors from now on. Does nothing if it is unmounted.

        Nor does it in a child of the process that serves it, which inherited it.
        """
        if not self.is_own:
            return
        with self._lock:
            timeout_s = _END_TIMEOUT_S
            if self._is_mounted():
                try:
                    unmount_device(self.path, detach=self.server.ended, device=self._device)
                except MountUnknownError:
                    pass  # somebody else was faster
                except BusyError:
                    _log.warning("%s is in use, and taken away nevertheless", self.path)
                    timeout_s = self._take_away()
            self._end(timeout_s)
        if _mounts.get(self.path) is self:
            del _mounts[self.path]
        if not _mounts:
            _give_signals_back()
        atexit.unregister(self.close)

    def _take_away(self) -> float:
        """Unmount though it is in use. Returns how long it makes sense to wait for the end."""
        # The kernel begins to hand over what was written through mappings, and does not say when it has.
        flush_device(self.path)
        self.server.wait_quiet(_QUIET_TIMEOUT_S)
        with suppress(OSError, MountUnknownError):
            unmount_device(self.path, detach=True, abort=True, device=self._device)
        # A user cannot end what is under way: that ends when the last one lets go, or with this process.
        return _END_TIMEOUT_S if is_root() else _DETACHED_TIMEOUT_S

    def _is_mounted(self) -> bool:
        """Whether it is this mount that is there: it may be gone, and another in its place with the same number."""
        point = mounted_at(self.path)
        if point is None or point.device != self._device:
            return False
        return not self.server.ended or is_dead(self.path)

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait until somebody has unmounted it. False if that took longer."""
        return self.server.join(timeout_s)

    def _end(self, timeout_s: float) -> None:
        if not self.server.join(timeout_s):
            _log.warning("%s is unmounted, but requests are still being handled", self.path)
        records.remove_record(self._directory, self.path, os.getpid())

    def __enter__(self) -> Mount:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _take_signals() -> None:
    """See that signals which would end this program at once end it by an exception, so that it unmounts.

    Only those that the program does nothing about, and only where that can be: in the main thread.
    """
    if current_thread() is main_thread():
        for number in _ENDING:
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, _end)


def _give_signals_back() -> None:
    if current_thread() is main_thread():
        for number in _ENDING:
            if signal.getsignal(number) is _end:
                signal.signal(number, signal.SIG_DFL)


def _end(number: int, _: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
    if any(mount.is_own for mount in list(_mounts.values())):
        raise SystemExit(128 + number)
    os.kill(os.getpid(), number)


def mount_fuse(
    filesystem: FileSystem,
    path: str | os.PathLike[str],
    *,
    options: MountOptions | None = None,
    upper: Path | None = None,
    max_threads: int = MAX_THREADS,
    directory: Path | None = None,
) -> Mount:
    """Mount a file system, and serve it by threads of this process. Returns when it can be used.

    Nobody else may change the file system meanwhile: the kernel keeps what it has seen. As long as there are mounts,
    SIGTERM and SIGHUP raise SystemExit in the main thread, if this was called there and they had no handler.

    Args:
        filesystem: read-write unless it, or `options`, say otherwise; closed by the caller, after the mount.
        path: an existing directory. A dead mount of ours there is taken away first.
        options: how to mount.
        upper: where the file system keeps what is written, for the record.
        max_threads: how many requests are handled at the same time.
        directory: where records are kept; None: `records.default_directory`.

    Raises:
        UnsupportedError: FUSE is not there, or this kernel's is too old.
        BusyError: something of ours is mounted there.
        OSError: it cannot be mounted there.
    """
    options = options or MountOptions()
    target = prepare_target(resolve(path))
    read_only = options.read_only or filesystem.read_only
    options = replace(options, read_only=read_only)
    directory = directory or records.default_directory()
    descriptor = mount_device(target, options)
    try:
        server = FuseServer(descriptor, filesystem, read_only=read_only, max_threads=max_threads)
        server.start()
        mount = Mount(target, server, directory)
    except BaseException:
        # That ends the server, whose the device is.
        with suppress(OSError, BusyError):
            unmount_device(target, detach=True)
        raise
    try:
        if not server.wait_ready(_READY_TIMEOUT_S):
            raise UnreachableError(str(target), "the kernel does not use the mount")
        _raise_read_ahead(target)
        record = records.new_record(target, options.source, upper=upper, read_only=read_only)
        records.write_record(directory, record)
    except BaseException:
        mount.close()
        raise
    return mount


def prepare_target(path: Path) -> Path:
    """See that a directory can be mounted upon: takes dead mounts of ours away.

    Args:
        path: resolved.

    Raises:
        BusyError: there is a mount of ours that is alive.
        NotADirectoryError, FileNotFoundError: it is not a directory.
    """
    while (point := mounted_at(path)) is not None and point.type == FUSE_TYPE:
        if not is_dead(path):
            raise BusyError(f"{path} is mounted already: {point.source}")
        with suppress(MountUnknownError):  # then what is seen now is looked at
            unmount_device(path, detach=True, device=point.device)
    os.scandir(path).close()
    return path


def unmount(path: str | os.PathLike[str], *, force: bool = False, directory: Path | None = None) -> None:
    """Unmount a mount of ours, alive or dead, and wait until the process that serves it has let go of everything.

    Args:
        force: also if it is in use: whoever uses it gets errors.
        directory: where records are kept; None: `records.default_directory`.

    Raises:
        MountUnknownError: nothing of ours is mounted there.
        BusyError: it is in use; the error names the processes that can be seen to use it. Or it is unmounted, and its
            process takes too long to end.
        OSError: it may not be unmounted.
    """
    target = resolve(path)
    directory = directory or records.default_directory()
    record = records.read_record(directory, target)
    point = mounted_at(target)
    if point is None or point.type != FUSE_TYPE:
        raise MountUnknownError(target)
    dead = is_dead(target)
    if dead:
        unmount_device(target, detach=True, device=point.device)
    elif force:
        _unmount_by_force(target, record, point.device)
    else:
        _unmount(target, point.device)
    if record is None:
        return
    if record.is_served and record.pid != os.getpid() and not _wait_end(record.pid, _END_TIMEOUT_S):
        raise BusyError(f"{target} is unmounted, but process {record.pid} has not let go of it")
    records.remove_record(directory, target, record.pid)


def _unmount_by_force(path: Path, record: MountRecord | None, device: tuple[int, int]) -> None:
    """Have whoever serves a mount take it away; if nobody is known who does, or it does not, do it from here."""
    if record is not None and record.pid == os.getpid() and path in _mounts:
        _mounts[path].close()
    elif record is not None and record.is_served and record.pid != os.getpid():
        with suppress(ProcessLookupError):
            os.kill(record.pid, signal.SIGTERM)
        _wait_end(record.pid, _END_TIMEOUT_S)
    point = mounted_at(path)
    if point is not None and (point.type, point.device) == (FUSE_TYPE, device):
        flush_device(path)
        with suppress(MountUnknownError):  # somebody else was faster
            unmount_device(path, detach=True, abort=True, device=device)


def _unmount(path: Path, device: tuple[int, int] | None) -> None:
    try:
        unmount_device(path, device=device)
    except BusyError:
        raise in_use(path) from None


def _raise_read_ahead(path: Path) -> None:
    """Let the kernel read further ahead than its 128 KiB. Only root may; without it reading is slower, that is all."""
    device = path.stat().st_dev
    control = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    with suppress(OSError):
        control.write_text(f"{_READ_AHEAD_KIB}\n")


def _wait_end(pid: int, timeout_s: float) -> bool:
    """Wait for a process that need not be a child."""
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return True
    try:
        return is_readable(descriptor, timeout_s)
    finally:
        os.close(descriptor)
