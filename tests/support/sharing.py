"""What all processes of a run of the tests have in common: made by the one that needs it first."""

from __future__ import annotations

import fcntl
import os
import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest


def share(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A directory for the length of the run. Nobody writes to it.

    Args:
        factory: of the process.
        name: of the directory.
        make: called in one process with a path that does not exist yet; others wait.
    """
    base = factory.getbasetemp()
    place = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / f"shared-{name}"
    with place.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.exists():
            part = place.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)
            make(part)
            part.rename(place)
    return place
