"""Where the service's pool lies, how large it may be, and what is done when it cannot be had.

The pool is the extent cache that all workers share, and that clients on the same machine map: files in memory (tmpfs)
unless told otherwise. A service without one serves the same bytes, out of the store each time.

It stays when the service ends, so that what clients have mounted can still be read, and a service that is started
again begins with a warm cache. Whoever wants the memory back removes the directory while no service runs. A pool in
memory whose data directory is gone goes when the same user starts a service again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from pagepool.digest import blake3_raw
from pagepool.errors import PagepoolError
from pagepool.pool import Pool
from pagepool.pool.door import door_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pagepool_service.settings import Settings

log = logging.getLogger("pagepool.pools")

_MEMORY = Path("/dev/shm")
_GROUPS = Path("/sys/fs/cgroup")
_LARGEST_BUDGET = 4 << 30
_SHARE_OF_MEMORY = 4
_SERVED = "served"
_LONGEST_NOTE = 65536


def cache_directory(settings: Settings) -> Path:
    """Where the pool is: as was said, else in memory, by the data directory's name; else below the data directory."""
    if settings.cache_dir is not None:
        return settings.cache_dir
    if not _MEMORY.is_dir() or not os.access(_MEMORY, os.W_OK):
        return settings.data / "cache"
    return _in_memory(settings.data.absolute())


def _in_memory(data: Path) -> Path:
    return _MEMORY / f"pagepool-{os.geteuid()}-{blake3_raw(os.fsencode(data))[:8].hex()}"


def default_budget(directory: Path) -> int:
    """Most bytes of a pool when nothing was said: a quarter of the memory, 4 GiB, or half of its file system.

    Files in memory count as the service's. Beyond what its control group may have the kernel would end one process
    after the other, and would have nothing of that, since the files stay.
    """
    while not directory.exists():
        directory = directory.parent
    status = os.statvfs(directory)
    return min(_LARGEST_BUDGET, memory_size() // _SHARE_OF_MEMORY, status.f_blocks * status.f_frsize // 2)


def memory_size() -> int:
    """Bytes of memory that this process may have: the machine's, or less if its control groups say so."""
    return min([os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), *_memory_limits()])


def _memory_limits() -> Iterator[int]:
    """Bytes of memory that this process's control groups may have, from its own up, as far as they can be seen."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, kinds, path = line.split(":", 2)
            if kinds and "memory" not in kinds.split(","):
                continue
            top, name = (_GROUPS / "memory", "memory.limit_in_bytes") if kinds else (_GROUPS, "memory.max")
            group = top / path.lstrip("/")
            for directory in (group, *group.parents):
                with contextlib.suppress(OSError, ValueError):  # not there; or there is no limit, which is "max"
                    yield int((directory / name).read_text())


def open_pool(settings: Settings) -> Pool | None:
    """The service's pool, made if it is not there; None if there is to be none, or it cannot be had (which is logged).

    Called by each worker for itself.
    """
    directory = cache_directory(settings)
    budget = default_budget(directory) if settings.cache_bytes is None else settings.cache_bytes
    if not budget:
        return None
    try:
        pool = Pool.open(directory, budget=budget)
        _protect(directory, shared=settings.shares_pool)
        return pool
    except (OSError, PagepoolError) as error:
        log.warning("no cache in %s: %s", directory, error)
        return None


def _protect(directory: Path, *, shared: bool) -> None:
    """Let others look into the pool, or nobody: whoever may enter the directory can read all that is in it."""
    mode = directory.stat().st_mode & 0o777
    if not shared and mode & 0o077:
        directory.chmod(0o700)
    elif shared and mode == 0o700:
        directory.chmod(0o755)


def note_served(settings: Settings, pool: Pool) -> None:
    """Write down in a pool in memory of which data directory it is, for `remove_abandoned`."""
    data = settings.data.absolute()
    if pool.path != _in_memory(data):
        return
    place = pool.path / _SERVED
    part = place.with_name(f".{_SERVED}")
    try:
        # ASCII, whatever bytes the path has.
        part.write_text(json.dumps({"data": str(data), "root": _root()}), encoding="ascii")
        part.replace(place)
    except OSError as error:  # that memory is full, say; the pool does without
        log.warning("whose %s is cannot be noted: %s", pool.path, error.strerror)


def remove_abandoned() -> list[Path]:
    """Remove the pools in memory of this user whose data directories are gone: nothing else would before a boot.

    Returns:
        the data directories.
    """
    removed = []
    for directory in list(_MEMORY.glob(f"pagepool-{os.geteuid()}-*")):
        data = _served(directory)
        if data is None or not _is_gone(data):
            continue
        shutil.rmtree(directory, ignore_errors=True)
        with contextlib.suppress(OSError):
            door_path(directory).unlink(missing_ok=True)
        removed.append(data)
    return removed


def _served(directory: Path) -> Path | None:
    """The data directory that a pool in memory is of; None if that is not known, or not known here."""
    # Anybody can make such a directory there, or a link of that name.
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        status = directory.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            return None
        with (directory / _SERVED).open("rb") as file:
            note = json.loads(file.read(_LONGEST_NOTE))
        data = Path(note["data"])
        if note["root"] == _root() and _in_memory(data) == directory:
            return data
    return None


def _root() -> list[int]:
    """Which root paths begin at: containers may share the memory of the machine, and not its files."""
    status = Path("/").stat()
    return [status.st_dev, status.st_ino]


def _is_gone(path: Path) -> bool:
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False
