"""A record of each mount: which process serves it, and what it shows.

One JSON file for each mount point, named by a hash of its path, in a directory of the user's: replaced by rename, so
that it is whole or not there. A record may outlive its mount, when its process was killed; the kernel's list of mounts
is what counts, and `list_mounts` removes what neither is mounted nor has its process.
"""

from __future__ import annotations

import json
import os
import stat
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from pagepool.digest import blake3_raw
from pagepool.errors import DeniedError
from pagepool.mount.mountinfo import FUSE_TYPE, is_dead, mount_points

_SUFFIX: Final = ".json"


@dataclass(frozen=True, slots=True)
class MountRecord:
    """A mount.

    Args:
        path: where it is mounted.
        pid: of the process that serves it.
        born: when that process was started, in clock ticks after boot: a number may be another process's later.
        source: the image.
        upper: where what is written goes; None if nothing can be.
        read_only: whether nothing can be changed.
        since: seconds since 1970.
        backend: what kind of mount it is.
    """

    path: str
    pid: int
    born: int
    source: str
    upper: str | None
    read_only: bool
    since: float
    backend: str = "fuse"

    @property
    def is_served(self) -> bool:
        """Whether its process is alive."""
        return process_born(self.pid) == self.born


@dataclass(frozen=True, slots=True)
class MountState:
    """A mount of ours that the kernel has.

    Args:
        path: where it is.
        source: what it is of.
        read_only: whether nothing can be changed.
        dead: whether nobody serves it any more.
        record: what else is known of it.
    """

    path: Path
    source: str
    read_only: bool
    dead: bool
    record: MountRecord | None


def default_directory() -> Path:
    """Where records are: under /run, which does not outlive the machine; for a user without a directory there, /tmp."""
    user = os.geteuid()
    if user == 0:
        return Path("/run/pagepool/mounts")
    own = Path(f"/run/user/{user}")
    return own / "pagepool/mounts" if own.is_dir() else Path(f"/tmp/pagepool-{user}/mounts")


def new_record(path: Path, source: str, *, upper: Path | None, read_only: bool) -> MountRecord:
    """A record of a mount that this process serves."""
    pid = os.getpid()
    written = None if upper is None else str(upper)
    return MountRecord(str(path), pid, process_born(pid) or 0, source, written, read_only, time.time())


def write_record(directory: Path, record: MountRecord) -> None:
    """Write a record, in place of an older one of the same mount point.

    Raises:
        DeniedError: the directory belongs to somebody else.
        OSError: it cannot be written; nothing is left of it.
    """
    ready_directory(directory)
    target = _file(directory, record.path)
    part = target.with_suffix(f".{record.pid}.part")
    try:
        part.write_text(json.dumps(asdict(record)))
        part.replace(target)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def log_file(directory: Path, path: Path) -> Path:
    """Where the process that serves a mount writes what it has to say. The directory is made.

    Raises:
        DeniedError: the directory belongs to somebody else.
    """
    ready_directory(directory)
    return _file(directory, str(path)).with_suffix(".log")


def read_record(directory: Path, path: Path) -> MountRecord | None:
    """The record of a mount point, if there is a whole one."""
    return _parse(_file(directory, str(path)))


def remove_record(directory: Path, path: Path, pid: int | None = None) -> None:
    """Remove the record of a mount point, if there is one.

    Args:
        pid: only if it is of this process: another may serve a new mount at the same place.
    """
    record = read_record(directory, path)
    if record is None or pid is None or record.pid == pid:
        file = _file(directory, str(path))
        file.unlink(missing_ok=True)
        remove_log(directory, path)


def remove_log(directory: Path, path: Path) -> None:
    """Remove the log of a mount point that has no record any more, or never had one, if there is nothing in it."""
    file = _file(directory, str(path))
    with suppress(OSError):
        log = file.with_suffix(".log")
        if not file.exists() and not log.stat().st_size:
            log.unlink()


def list_mounts(directory: Path) -> list[MountState]:
    """The mounts of ours that this process sees; removes records of others whose process is gone."""
    points = [point for point in mount_points() if point.type == FUSE_TYPE]
    records = {Path(record.path): record for record in _read_all(directory)}
    for path, record in records.items():
        if not record.is_served and all(point.path != path for point in points):
            remove_record(directory, path, record.pid)
    return [
        MountState(point.path, point.source, point.read_only, is_dead(point.path), records.get(point.path))
        for point in points
    ]


def process_born(pid: int) -> int | None:
    """When a process was started, in clock ticks after boot; None if there is none."""
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return None if fields[0] in "ZX" else int(fields[19])
    return None


def ready_directory(directory: Path) -> Path:
    """Make a directory of records, if it is not there.

    Raises:
        DeniedError: it belongs to somebody else.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for place in (directory, directory.parent):
        status = place.lstat()
        if status.st_uid not in (os.geteuid(), 0) or not stat.S_ISDIR(status.st_mode):
            raise DeniedError(f"{place} belongs to somebody else")
    return directory


def _read_all(directory: Path) -> list[MountRecord]:
    found = (_parse(path) for path in directory.glob(f"*{_SUFFIX}"))
    return [record for record in found if record is not None]


def _parse(path: Path) -> MountRecord | None:
    try:
        return MountRecord(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _file(directory: Path, path: str) -> Path:
    return directory / (blake3_raw(os.fsencode(path)).hex()[:32] + _SUFFIX)
