"""The program `pagepool`, run from this source tree as a user runs it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.support.tools import run

_ROOT = Path(__file__).parents[2]


def environment() -> dict[str, str]:
    """What the program needs to be found here, whether it is installed or not."""
    paths = (str(_ROOT / "client"), str(_ROOT / "service"), os.environ.get("PYTHONPATH", ""))
    return {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def pagepool(*argv: str | Path, server: str = "") -> str:
    """Run a command to its end, and return what it printed.

    Raises:
        ToolError: it failed.
    """
    chosen = {"PAGEPOOL_SERVER": server} if server else {}
    return run([sys.executable, "-m", "pagepool.cli", *argv], {**environment(), **chosen})
