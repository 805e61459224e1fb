"""Control groups of a test's own, of either version."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pagepool.container.cgroup import remove_groups

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def counted_group() -> Iterator[Path]:
    """One that counts processes and threads: `pids.max` says how many there may be. Skips where there is none."""
    first, second = Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup")
    controllers = second / "cgroup.subtree_control"
    if not first.is_dir() and (not controllers.exists() or "pids" not in controllers.read_text()):
        pytest.skip("there are no cgroups that count processes")
    group = (first if first.is_dir() else second) / f"pagepool-test-{os.getpid()}"
    group.mkdir()
    try:
        yield group
    finally:
        group.joinpath("pids.max").write_text("max")
        for process in group.joinpath("cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):
                group.parent.joinpath("cgroup.procs").write_text(process)
        remove_groups([group])  # waits for those that end just now
