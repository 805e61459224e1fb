"""What is installed of what a measurement needs, and how."""

from __future__ import annotations

import compileall
import os
import shutil
from typing import TYPE_CHECKING

import pagepool
from pagepool.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


def missing_tools(tools: Mapping[str, str]) -> list[str]:
    """Which programs are not there, each with how to get it, which stands beside it."""
    return [f"{tool} ({how})" for tool, how in tools.items() if shutil.which(tool) is None]


def require_tools(who: str, tools: Mapping[str, str], also_missing: Iterable[str] = ()) -> None:
    """See that these programs are there, and that we are root.

    Args:
        who: needs them.
        tools: program -> how to get it.
        also_missing: what else there is not.

    Raises:
        UnsupportedError: something is missing; the message names all of it.
    """
    missing = [*missing_tools(tools), *also_missing]
    if os.geteuid():
        missing.append("root")
    if missing:
        raise UnsupportedError(f"{who} needs {', '.join(missing)}")


def compile_client() -> None:
    """Have bytecode beside the client's modules, as where it was installed: else each command compiles what it loads,
    which takes longer than to run it, where Python is told to write none (PYTHONDONTWRITEBYTECODE)."""
    for directory in pagepool.__path__:
        compileall.compile_dir(directory, quiet=2)
