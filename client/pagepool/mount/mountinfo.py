"""What is mounted where, as /proc/self/mountinfo says it; see proc_pid_mountinfo(5)."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Final, NamedTuple

FUSE_TYPE: Final = "fuse.pagepool"
"""The file system type of mounts of ours."""

_ESCAPE: Final = re.compile(rb"\\([0-7]{3})")
_SHOWN: Final = re.compile(rb"[ \t\n\\]")
"""What is shown as an escape."""
_DEAD: Final = (errno.ENOTCONN, errno.ECONNABORTED, errno.ESHUTDOWN)


class MountPoint(NamedTuple):
    """A mount.

    Args:
        path: where.
        type: of its file system.
        source: what its file system says it is of.
        device: major and minor number of what is mounted.
        read_only: whether it is.
    """

    path: Path
    type: str
    source: str
    device: tuple[int, int]
    read_only: bool


def parse_mountinfo(data: bytes) -> list[MountPoint]:
    """Mounts in the order in which they were made; of several at one path the last one is what is seen."""
    found: list[MountPoint] = []
    for line in _lines(data):
        fields = line.split(b" ")
        dash = fields.index(b"-")
        major, _, minor = fields[2].partition(b":")
        path, kind, source = (_text(fields[number]) for number in (4, dash + 1, dash + 2))
        read_only = b"ro" in fields[5].split(b",")
        found.append(MountPoint(Path(path), kind, source, (int(major), int(minor)), read_only))
    return found


def mount_points() -> list[MountPoint]:
    """Mounts that this process sees."""
    return parse_mountinfo(Path("/proc/self/mountinfo").read_bytes())


def mounted_at(path: Path) -> MountPoint | None:
    """What is mounted at a path, if anything is; the uppermost.

    Args:
        path: absolute, without symlinks.
    """
    # Of hundreds of mounts only those that may be there are looked at.
    shown = b" %b " % _shown(path)
    lines = [line for line in Path("/proc/self/mountinfo").read_bytes().split(b"\n") if shown in line]
    return next((point for point in reversed(parse_mountinfo(b"\n".join(lines))) if point.path == path), None)


def mounted_below(directory: Path) -> list[MountPoint]:
    """What is mounted in a directory, or below it, and not upon it, in the order in which it was mounted.

    Args:
        directory: absolute, without symlinks.
    """
    shown = b" %b/" % _shown(directory)
    lines = [line for line in Path("/proc/self/mountinfo").read_bytes().split(b"\n") if shown in line]
    return [point for point in parse_mountinfo(b"\n".join(lines)) if directory in point.path.parents]


def is_dead(path: Path) -> bool:
    """Whether a mount's server is gone. Blocks as long as a server that is alive takes to answer."""
    try:
        os.statvfs(path)  # which is never answered from what the kernel remembers, as stat is
    except OSError as error:
        return error.errno in _DEAD
    return False


def resolve(path: str | os.PathLike[str]) -> Path:
    """A path as mounts have it: absolute, without symlinks; also where a dead mount is in the way."""
    return Path(os.path.realpath(path))


def _lines(data: bytes) -> list[bytes]:
    # Not `splitlines`: of what ends a line elsewhere, a carriage return for one, the kernel shows all but \n as it is,
    # and any user can have it in the name of a mount.
    return [line for line in data.split(b"\n") if line]


def _shown(path: Path) -> bytes:
    return _SHOWN.sub(lambda found: b"\\%03o" % found[0][0], os.fsencode(path))


def _text(field: bytes) -> str:
    return os.fsdecode(_ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), field))
