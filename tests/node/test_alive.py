"""Which kernel mounts are alive: those that a mount namespace of some process has."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from pagepool.node.alive import mounts_alive

if TYPE_CHECKING:
    from pathlib import Path

_CHROOTED = """
import os, subprocess, sys
child = subprocess.Popen(["cat"], stdout=subprocess.DEVNULL)
os.chroot(sys.argv[1])
print("ready", flush=True)
child.wait()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_process_with_another_root_hides_no_mount(tmp_path: Path) -> None:
    """It sees what is below its root only, whoever else is in its namespace."""
    for name in ("one", "two", "mounted", "root"):
        (tmp_path / name).mkdir()
    layers = f"lowerdir={tmp_path}/one:{tmp_path}/two"
    script = f'mount -t overlay pagepool:chrooted-test:image -o {layers} {tmp_path}/mounted && exec "$@"'
    started = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", script, "sh", sys.executable, "-c", _CHROOTED, str(tmp_path / "root")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with started:
        try:
            assert started.stdout is not None
            assert started.stdout.readline() == b"ready\n"
            assert "chrooted-test" in mounts_alive()
        finally:
            assert started.stdin is not None
            started.stdin.close()
    assert "chrooted-test" not in mounts_alive()
