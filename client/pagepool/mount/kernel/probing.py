"""Whether this machine can mount images by the kernel, and what it has for that.

Versions are not believed where it can be tried: an overlay with a data layer is made, whose upper is in the directory
that uppers will be in. It is never attached, and nothing is left of it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pagepool.errors import UnsupportedError
from pagepool.linux import can_reflink, why_no_trusted_attributes
from pagepool.linux.mounts import unmount
from pagepool.linux.quota import quota_usage
from pagepool.mount.kernel import erofs, stack
from pagepool.mount.kernel.stack import Layers, Way, open_overlay

LEAST: Final = (6, 5)
"""The first kernel with data-only layers."""
ESCAPES: Final = (6, 7)
"""The first kernel that shows images' own ``trusted.overlay.`` attributes."""

_MODPROBE_PATH: Final = "/usr/sbin:/sbin:/usr/bin:/bin"
_MODPROBE_TIMEOUT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Support:
    """What this machine can do.

    Args:
        kernel: whether images can be mounted by the kernel.
        reason: one line for people: why not, or what there is.
        way: how layers are given to the kernel; None: not at all.
        escapes: whether attributes of an image that begin with ``trusted.overlay.`` can be seen.
        reflink: whether copy-up shares blocks with the pool.
        quota: whether containers can have a disk quota.
    """

    kernel: bool
    reason: str
    way: Way | None = None
    escapes: bool = False
    reflink: bool = False
    quota: bool = False


def probe(state: Path) -> Support:
    """Find out what this machine can do. Takes milliseconds; may load the kernel's modules.

    Args:
        state: where pool and uppers are, or will be; what there is of its path is what is tried.
    """
    reason = _why_not()
    if reason:
        return Support(False, reason)
    place = next(path for path in (state.absolute(), *state.absolute().parents) if path.is_dir())
    try:
        way = _try_overlay(place)
        reflink = can_reflink(place)
    except (OSError, UnsupportedError) as error:
        return Support(False, f"no overlay can be made in {place}: {error}")
    release = _release()
    escapes, quota = release >= ESCAPES, _has_quota(place)
    return Support(True, _describe(release, reflink, quota, escapes), way, escapes, reflink, quota)


def _why_not() -> str:
    """Why it cannot be, before anything is tried; "" if it may be."""
    if reason := why_no_trusted_attributes():
        return reason
    if _release() < LEAST:
        return f"it needs Linux {LEAST[0]}.{LEAST[1]}, for data-only layers, and this is {os.uname().release}"
    missing = [kind for kind in (erofs.KIND, stack.KIND) if not _has_file_system(kind)]
    return f"the kernel has no {' and no '.join(missing)}" if missing else ""


def _describe(release: tuple[int, int], reflink: bool, quota: bool, escapes: bool) -> str:
    words = [f"Linux {release[0]}.{release[1]}", "EROFS and overlayfs"]
    words.append("reflinks" if reflink else "no reflinks")
    words += ["project quotas"] * quota + ["no trusted.overlay.* attributes of images"] * (not escapes)
    return ", ".join(words)


def _try_overlay(place: Path) -> Way | None:
    """Make an overlay that is as those of containers will be. Raises what keeps it from being made."""
    with tempfile.TemporaryDirectory(prefix=".pagepool-probe-", dir=place) as name:
        root = Path(name)
        meta, data, upper, work, at = (root / part for part in ("meta", "data", "upper", "work", "at"))
        for directory in (meta, data, upper, work, at):
            directory.mkdir()
        # Where this fails the kernel would go on without metacopy, and say so nowhere but in its log.
        os.setxattr(upper, "trusted.overlay.opaque", b"y")
        os.removexattr(upper, "trusted.overlay.opaque")
        layers = Layers(meta, [data], upper, work)
        for way in (Way.DESCRIPTORS, Way.NAMES):
            with suppress(UnsupportedError):
                os.close(open_overlay(layers, source="probe", way=way))
                return way
        stack.mount_overlay(layers, at, source="probe", way=Way.MOUNT)
        unmount(at)
        return Way.MOUNT


def _has_quota(place: Path) -> bool:
    try:
        quota_usage(place, 0)
    except (UnsupportedError, OSError):
        return False
    return True


def _release() -> tuple[int, int]:
    found = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _has_file_system(kind: str) -> bool:
    if _is_known(kind):
        return True
    program = shutil.which("modprobe", path=_MODPROBE_PATH)
    if program is not None:
        with suppress(OSError, subprocess.TimeoutExpired):
            command = [program, "-q", kind]
            subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=_MODPROBE_TIMEOUT_S
            )
    return _is_known(kind)


def _is_known(kind: str) -> bool:
    return any(line.split()[-1:] == [kind] for line in Path("/proc/filesystems").read_text().splitlines())
