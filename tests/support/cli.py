"""The program `pagepool`, run from this source tree as a user runs it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.forkserver import fork
from tests.support.tools import ToolError

if TYPE_CHECKING:
    from typing import BinaryIO

_ROOT = Path(__file__).parents[2]
_TIMEOUT_S = 300.0


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
    words = [str(word) for word in argv]
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = fork(words, {**os.environ, **environment(), **chosen}, output.fileno(), errors.fileno())
        try:
            code = process.wait(_TIMEOUT_S)
        finally:
            process.kill()
        said = [_read(output), _read(errors)]
    if code != 0:
        last = "\n".join("".join(said).splitlines()[-25:])
        raise ToolError(f"pagepool {' '.join(words)[:500]}: exit status {code}\n{last}")
    return said[0]


def _read(file: BinaryIO) -> str:
    file.seek(0)
    return file.read().decode()
