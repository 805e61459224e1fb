"""pjdfstest (POSIX calls) in a container's stack of layers, beside plain overlayfs on the same machine.

What plain overlayfs does not do (its whiteouts are character devices 0:0, which the suite makes, too: 41 tests), nobody
can ask of ours; but nothing else may fail. Both results are printed:
``pytest -rP tests/node/test_suites.py``. ``cargo install pjdfstest@0.2.2`` installs the program.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.node.stacks import mounted_stack
from tests.support.tools import require, run

_TIMEOUT_S = 300.0
_CONFIGURATION = """
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
_DIRECTORY = "srv"
"""A directory of the image, in which the tests are run."""


@dataclass(frozen=True)
class Result:
    """What the program said: tests that failed, and how many did not."""

    failed: frozenset[str]
    passed: int
    skipped: int

    def __str__(self) -> str:
        return f"{self.passed} passed, {self.skipped} skipped, failed: {sorted(self.failed) or 'none'}"


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory with a short path, as sockets need, where other users may go."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_pjdfstest(place: Path, tmp_path: Path) -> None:
    """No test fails that does not fail on plain overlayfs."""
    program = shutil.which("pjdfstest", path=f"{os.environ.get('PATH', '')}:{Path.home() / '.cargo/bin'}")
    if program is None:
        pytest.skip("needs cargo: cargo install pjdfstest@0.2.2")
    require("umount")
    with mounted_stack(place / "ours", {f"{_DIRECTORY}/file": b"o" * 9000}, {"small": b"s"}) as stack:
        ours = _pjdfstest(program, stack.root / _DIRECTORY, tmp_path)
    with _plain_overlay(place / "plain") as root:
        plain = _pjdfstest(program, root / _DIRECTORY, tmp_path)
    print(f"metadata image and data-only layers: {ours}\nplain overlayfs: {plain}")
    assert ours.passed > 330
    assert ours.failed <= plain.failed
    assert (ours.skipped, ours.passed) == (plain.skipped, plain.passed + len(plain.failed - ours.failed))


@contextmanager
def _plain_overlay(directory: Path) -> Iterator[Path]:
    root, lower, upper, work = (directory / name for name in ("root", "lower", "upper", "work"))
    for path in (root, lower / _DIRECTORY, upper, work):
        path.mkdir(parents=True)
    (lower / _DIRECTORY / "file").write_bytes(b"o" * 9000)
    run(["mount", "-t", "overlay", "overlay", "-o", f"lowerdir={lower},upperdir={upper},workdir={work}", root])
    try:
        yield root
    finally:
        run(["umount", root])


def _pjdfstest(program: str, directory: Path, where: Path) -> Result:
    configuration = where / "pjdfstest.toml"
    configuration.write_text(_CONFIGURATION)
    command: list[str | Path] = [program, "-c", configuration, "-p", directory]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)
    summary = re.search(r"Summary: (\d+) failed, (\d+) skipped, (\d+) passed", done.stdout)
    assert summary is not None, (done.stdout[-2000:], done.stderr[-2000:])
    failed, skipped, passed = map(int, summary.groups())
    names = frozenset(re.findall(r"^(\S+)[ \t]+FAILED", done.stdout, re.MULTILINE))
    assert len(names) == failed, done.stdout[-4000:]
    return Result(names, passed, skipped)
