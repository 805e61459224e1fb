"""What runs while another version is installed in its place: of the modules it has not loaded, it has no more."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.cli import pagepool as program
from tests.support.nodeserver import commands_of, left_over, running_node
from tests.support.tools import require, run

if TYPE_CHECKING:
    import pytest

    from tests.support.server import Service

_PACKAGE = Path(__file__).parents[2] / "client" / "pagepool"
_COMMAND = (sys.executable, "-P", "-m", "pagepool.cli")
_WAITING = "echo ready; read line; exit 7"


def make_another(package: Path) -> None:
    """Put modules in the place of a package's that cannot be used with those that are loaded."""
    for module in package.rglob("*.py"):
        module.write_text("raise ImportError('of another version')\n")


def test_containers_end_and_mounts_go_as_if_nothing_was(
    slim: Path, service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their roots stayed mounted, and `pagepool run` ended with 1."""
    require("runc")
    package, point, name = tmp_path / "lib/pagepool", tmp_path / "mounted", f"test-{secrets.token_hex(6)}"
    shutil.copytree(_PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    point.mkdir()
    program("push", "--quiet", slim, "app:1", server=service.url)
    monkeypatch.syspath_prepend(package.parent)  # a node has what whoever starts it has
    with running_node(tmp_path) as node:
        ours = {**os.environ, **commands_of(node, service.url)}
        theirs = ours | {"PYTHONPATH": str(package.parent)}
        run([*_COMMAND, "mount", "app:1", point], theirs)
        run(
            [*_COMMAND, "run", "-d", "--rm", "--runtime", "own", "--name", name, "app:1", "--", "sleep", "1000"], theirs
        )
        attended = subprocess.Popen(
            [*_COMMAND, "run", "-i", "--runtime", "runc", "app:1", "--", "sh", "-c", _WAITING],
            env=theirs,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with attended:
            assert attended.stdout is not None
            assert attended.stdout.readline() == "ready\n"
            make_another(package)
            assert attended.communicate("\n") == ("", "")
        assert attended.returncode == 7
        assert run([*_COMMAND, "stop", "--time", "0", name], ours) == f"{name}\n"
        run([*_COMMAND, "umount", point], ours)
        assert left_over(node) == []
