"""What a directory takes on the disk, counted as containerd counts it."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from pagepool.linux.directories import walk_from_below

if TYPE_CHECKING:
    from pathlib import Path


def measure(directory: Path) -> tuple[int, int]:
    """Bytes of blocks, and inodes, of a directory and all in it; a file of several names once.

    Raises:
        OSError: it is not there, or cannot be read. What is removed meanwhile is left out.
    """
    status = directory.lstat()
    seen = {(status.st_dev, status.st_ino)}
    blocks = status.st_blocks
    for found in walk_from_below(directory):
        for name in (*found.directories, *found.others):
            with suppress(OSError):
                status = os.lstat(name, dir_fd=found.descriptor)
                if (status.st_dev, status.st_ino) not in seen:
                    seen.add((status.st_dev, status.st_ino))
                    blocks += status.st_blocks
    return 512 * blocks, len(seen)
