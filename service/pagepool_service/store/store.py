"""The store as a whole: one data directory, opened once in each process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pagepool.errors import ReadOnlyError, StoreFormatError

from pagepool_service.store.blobs import BlobStore
from pagepool_service.store.environment import FORMAT_VERSION, Environment
from pagepool_service.store.extents import ExtentStore
from pagepool_service.store.jobs import JobQueue
from pagepool_service.store.registry import Registry

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType


class Store:
    """Everything that is kept under a data directory. Make with `open`, in the process that uses it, after forking."""

    def __init__(self, data: Path, env: Environment) -> None:
        self.data = data
        self.env = env
        self.extents = ExtentStore()
        self.jobs = JobQueue(env)
        self.blobs = BlobStore(env, self.extents, self.jobs, data / "spool")
        self.registry = Registry(env, self.blobs)

    @classmethod
    def open(cls, data: Path, *, quota_bytes: int = 0, readonly: bool = False) -> Store:
        """Open a data directory, making it when it is not there.

        Args:
            quota_bytes: most bytes of database pages in use; 0 for no limit.
            readonly: open without writing anything, also on a read-only file system.

        Raises:
            StoreFormatError: another format, or not a store.
            ReadOnlyError: it cannot be written to.
        """
        if not readonly:
            _prepare(data)
        return cls(data, Environment.open(data / "store", quota_bytes=quota_bytes, readonly=readonly))

    @property
    def uploads(self) -> Path:
        """Directory of open upload sessions."""
        return self.data / "uploads"

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _prepare(data: Path) -> None:
    """Make the directories, and check or write the format file."""
    try:
        for name in ("store", "uploads", "spool"):
            (data / name).mkdir(parents=True, exist_ok=True)
        stamp = data / "format"
        if not stamp.exists():
            stamp.write_text(f"pagepool store {FORMAT_VERSION}\n")
    except OSError as error:
        raise ReadOnlyError(f"{error.filename}: {error.strerror}") from error
    text = stamp.read_text(errors="replace").strip()
    if text != f"pagepool store {FORMAT_VERSION}":
        raise StoreFormatError(f"{stamp} says {text!r}; this pagepool reads 'pagepool store {FORMAT_VERSION}'")
