"""Where the processes of a service keep their figures: a directory of one run, with a file or two for each process.

In memory where that can be had: the files are written all the time and are worth nothing after the run. The supervisor
makes it at its start and removes it at its end. What a run left that was killed goes when the same data directory is
served again.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from pagepool.digest import blake3_raw

if TYPE_CHECKING:
    from pagepool_service.settings import Settings

_MEMORY = Path("/dev/shm")


def make_directory(settings: Settings, *, alone: bool) -> Path:
    """Make the directory of this run, empty and for this user only.

    Args:
        alone: nobody else serves this data directory, so that what is left of other runs may go.
    """
    parent = _MEMORY if os.access(_MEMORY, os.W_OK) else Path(tempfile.gettempdir())
    prefix = f"pagepool-metrics-{blake3_raw(os.fsencode(settings.data.absolute()))[:8].hex()}-"
    for left in parent.glob(f"{prefix}*") if alone else ():
        if left.lstat().st_uid == os.geteuid():
            remove_directory(left)
    return Path(tempfile.mkdtemp(prefix=prefix, dir=parent))


def remove_directory(directory: Path) -> None:
    """Remove the directory of a run."""
    shutil.rmtree(directory, ignore_errors=True)
