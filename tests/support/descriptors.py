"""Which files a test's process has open."""

from __future__ import annotations

import gc
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def count_open(below: Path | None = None) -> int:
    """How many descriptors this process has.

    What an earlier test of the process left to be collected is collected first: it may hold some, and lose them at
    any moment.

    Args:
        below: count those only of this directory and of what is, or was, in it.
    """
    gc.collect()
    with os.scandir("/proc/self/fd") as entries:
        names = [entry.name for entry in entries]
    targets = [target for target in map(_target, names) if target is not None]
    return len(targets) if below is None else sum(target.startswith(f"{below}") for target in targets)


def _target(name: str) -> str | None:
    try:
        return os.readlink(f"/proc/self/fd/{name}")  # noqa: PTH115 - what it is of is no path
    except FileNotFoundError:  # the one that listed them
        return None
    except OSError:  # a name that is too long
        return ""
