"""Public file-system test suites over an overlay's mount: pjdfstest (POSIX calls) and fsx (one file, every way at it).

Both are Rust programs, which no distribution packages: ``cargo install pjdfstest@0.2.2 fsx@0.3.2``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from pagepool.mount import MountOptions, serve_in_background, unmount
from tests.mount.overlays import open_overlay

_TIMEOUT_S = 300.0
_POSIX = """
[features]
posix_fallocate = {}
rename_ctime = {}
utimensat = {}
utime_now = {}
[settings]
naptime = 0.01
allow_remount = false
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"""
_EXERCISE = """
flen = 1048576
[opsize]
max = 262144
[weights]
close_open = 1
read = 10
write = 10
mapread = 10
mapwrite = 10
invalidate = 1
truncate = 3
fsync = 0.2
fdatasync = 0.2
posix_fallocate = 2
punch_hole = 2
sendfile = 3
posix_fadvise = 1
copy_file_range = 3
"""


def _program(crate: str) -> str:
    name = crate.partition("@")[0]
    places = f"{os.environ.get('PATH', '')}:{Path.home() / '.cargo/bin'}"
    return shutil.which(name, path=places) or pytest.skip(f"needs cargo: cargo install {crate}")


def _run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)
    failures = [line for line in done.stdout.splitlines() if "FAILED" in line or "panicked" in line]
    assert done.returncode == 0, (failures, done.stdout[-1000:], done.stderr[-2000:])
    return done.stdout + done.stderr


@pytest.fixture
def mounted(point: Path, records: Path, tmp_path: Path) -> Iterator[Path]:
    """A mount of an overlay, served by another process."""
    opener = partial(open_overlay, tmp_path / "upper")
    serve_in_background(opener, point, options=MountOptions(dev=True), directory=records)
    yield point
    unmount(point, force=True, directory=records)


def test_pjdfstest(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Not one test of POSIX calls fails."""
    program = _program("pjdfstest@0.2.2")
    configuration = tmp_path / "pjdfstest.toml"
    configuration.write_text(_POSIX)
    output = _run(program, "-c", configuration, "-p", request.getfixturevalue("mounted"))
    summary = re.search(r"Summary: (\d+) failed, (\d+) skipped, (\d+) passed", output)
    assert summary is not None, output[-2000:]
    failed, _, passed = map(int, summary.groups())
    assert failed == 0
    assert passed > 350


@pytest.mark.parametrize("seed", [1, 2])
def test_fsx(request: pytest.FixtureRequest, tmp_path: Path, seed: int) -> None:
    """Reads, writes, mappings, holes and truncations of a file, checked against a copy in memory."""
    program = _program("fsx@0.3.2")
    configuration = tmp_path / "fsx.toml"
    configuration.write_text(_EXERCISE)
    file = request.getfixturevalue("mounted") / "fsx"
    output = _run(program, "-f", configuration, "-N", "2000", "-S", str(seed), "-P", tmp_path, file)
    assert "All operations completed A-OK!" in output
