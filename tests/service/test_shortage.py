"""Memory runs out below a service."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.service.test_supervisor import until
from tests.support.server import Service

if TYPE_CHECKING:
    from pathlib import Path

_STEP = 4 << 20
_HOG = f"""
import sys
taken = []
while sys.stdin.buffer.read(1):
    taken.append(b"x" * {_STEP})
    sys.stdout.buffer.write(b"y")
    sys.stdout.buffer.flush()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: control groups")
def test_the_kernel_ends_what_is_started_again(tmp_path: Path, limited: Path) -> None:
    """Of all processes of a service the supervisor has most, and must not be the one."""
    enter = ("sh", "-c", f'echo 0 > {limited}/cgroup.procs && exec "$@"', "sh")
    # So that it is none of the hog's turn, which has more than any of them.
    rather = ("sh", "-c", 'echo 600 > /proc/self/oom_score_adj && exec "$@"', "sh")
    service = Service(tmp_path / "data", ("--cache-size", "16MiB", "--ingest-processes", "1"), prefix=(*enter, *rather))
    service.start()
    words = [*enter, sys.executable, "-c", _HOG]
    try:
        before = set(service.children())
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as hog:
            assert hog.stdin is not None
            assert hog.stdout is not None
            while before <= set(service.children()):
                hog.stdin.write(b"x")
                assert hog.stdout.read(1) == b"y"
            hog.kill()
        assert service.process is not None
        assert service.process.poll() is None, "the supervisor was ended"
        until(lambda: len(service.children()) >= len(before), "all are there again")
        assert httpx.get(f"{service.url}/readyz").status_code == 200
        assert "ended (signal SIGKILL); it starts again" in service.log()
        assert service.stop() == 0
    finally:
        service.kill()
