"""Mounts: what is said where none can be made."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

_PROGRAM = """
import os, sys
from pagepool.container import linux
from pagepool.linux import mounts
linux.unshare(linux.CLONE_NEWNS)
os.chroot(sys.argv[1])
mounts.make_private()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_chroot_is_named(tmp_path: Path) -> None:
    """Its root is no mount, and the kernel has only "Invalid argument" for that."""
    done = subprocess.run([sys.executable, "-c", _PROGRAM, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "is no mount point, as in a chroot" in done.stderr
