"""The store as a whole: one data directory, opened once in each process."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
from typing import TYPE_CHECKING

from pagepool.errors import DeniedError, StoreFormatError
from pagepool.linux import sync_directory
from pagepool_service.store.blobs import BlobStore
from pagepool_service.store.disk import is_read_only, refused
from pagepool_service.store.environment import FORMAT_VERSION, Environment
from pagepool_service.store.extents import ExtentStore
from pagepool_service.store.jobs import JobQueue
from pagepool_service.store.leases import Leases
from pagepool_service.store.registry import Registry
from pagepool_service.store.statistics import directory_bytes

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

_STAMP = re.compile(r"pagepool store ([0-9]+)")


class Store:
    """Everything that is kept under a data directory. Make with `open`, in the process that uses it, after forking."""

    def __init__(self, data: Path, env: Environment) -> None:
        self.data = data
        self.env = env
        self.extents = ExtentStore()
        self.jobs = JobQueue(env)
        self.blobs = BlobStore(env, self.extents, self.jobs, data / "spool")
        self.registry = Registry(env, self.blobs)
        self.leases = Leases(env)
        env.other_bytes = lambda: directory_bytes(data / "spool") + directory_bytes(data / "uploads")

    @classmethod
    def open(cls, data: Path, *, quota_bytes: int = 0, readonly: bool = False, shared: bool = False) -> Store:
        """Open a data directory, making it when it is not there.

        Args:
            quota_bytes: most bytes of database pages in use, spool and uploads together; 0 for no limit.
            readonly: open without writing anything, also on a read-only file system.
            shared: with `readonly`: others may write meanwhile, see `Environment.open`.

        Raises:
            StoreFormatError: another format, or not a store.
            StoreFullError, ReadOnlyError: it cannot be written to.
        """
        is_new = not (data / "store" / "data.mdb").exists()
        check_stamp(data)
        if not readonly:
            _prepare(data)
        env = Environment.open(data / "store", quota_bytes=quota_bytes, readonly=readonly, shared=shared)
        if is_new:  # LMDB syncs its file, and leaves the file's name to us
            sync_directory(data / "store")
        return cls(data, env)

    @property
    def uploads(self) -> Path:
        """Directory of open upload sessions."""
        return self.data / "uploads"

    @property
    def rebuilt(self) -> Path:
        """Directory of blobs that were made again for a pull."""
        return self.data / "rebuilt"

    def is_read_only(self) -> bool:
        """Whether nothing can be written now: it was opened so, or its file system takes no writes any more."""
        return self.env.readonly or is_read_only(self.data)

    def close(self) -> None:
        """Close the environment, once nothing is made out of it any more."""
        self.blobs.rebuilt.close()
        self.env.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _prepare(data: Path) -> None:
    """Make the directories, and the format file."""
    try:
        for name in ("store", "uploads", "spool"):
            (data / name).mkdir(parents=True, exist_ok=True)
        stamp = data / "format"
        if not stamp.exists():
            _write_stamp(stamp)
    except OSError as error:
        raise refused(error, str(error.filename or data)) from error


def check_there(data: Path) -> None:
    """Refuse a directory without a store, where one is not to be made.

    Raises:
        StoreFormatError: there is none.
        DeniedError: it is another user's.
    """
    try:
        (data / "store" / "data.mdb").stat()
    except PermissionError:
        raise DeniedError(f"{data} may not be read: {_whose(data)}") from None
    except (FileNotFoundError, NotADirectoryError):
        where = "--data, or PAGEPOOL_DATA, says where there is one"
        raise StoreFormatError(f"{data} holds no pagepool store: {where}") from None


def _whose(data: Path) -> str:
    try:
        user = data.stat().st_uid
    except OSError:
        return "a directory above it is closed to this user"
    try:
        name = pwd.getpwuid(user).pw_name
    except KeyError:
        name = str(user)
    return f"it belongs to the user {name}, as whom this has to be run"


def check_stamp(data: Path, *, whole: bool = True) -> None:
    """Refuse a data directory of another format, before anything in it is understood wrongly, or written.

    Args:
        whole: also one that is only being restored; fsck looks at those.

    Raises:
        StoreFormatError: its format file says something else. One that is not there says nothing.
    """
    stamp = data / "format"
    try:
        text = stamp.read_text(errors="replace").strip()
    except OSError:
        return
    said = _STAMP.fullmatch(text)
    if (whole and said is None) or (said is not None and said[1] != str(FORMAT_VERSION)):
        raise StoreFormatError(f"{stamp} says {text!r}; this pagepool reads 'pagepool store {FORMAT_VERSION}'")


def _write_stamp(stamp: Path) -> None:
    """Write the format file durably: after a power loss an empty one would keep the whole store from being opened."""
    fresh = stamp.with_name(f"{stamp.name}.{os.getpid()}")
    with fresh.open("w") as file:
        file.write(f"pagepool store {FORMAT_VERSION}\n")
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(stamp)
    sync_directory(stamp.parent)
    with contextlib.suppress(OSError):  # a parent that we may not read; it was there before us, mostly
        sync_directory(stamp.parent.parent)
