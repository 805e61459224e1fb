"""The measurement of mounts runs, and every figure comes out of something that was done."""

from __future__ import annotations

from pathlib import Path

import pytest

from pagepool.mount.mountinfo import mounted_at
from pagepool_service.bench.fusereads import Workload, measure_mount
from tests.mount.conftest import needs_fuse
from tests.support.tools import require

__all__ = ["needs_fuse"]


@pytest.mark.usefixtures("needs_fuse")
def test_a_small_measurement(tmp_path: Path) -> None:
    """With little work; the files are the same each way, and nothing stays mounted."""
    require("mksquashfs", "squashfuse", root=False)
    figures = measure_mount(tmp_path, Workload(big_size=4 << 20, small_count=100, repeats=500))
    assert len({pair.name for pair in figures.pairs}) == 8
    for pair in figures.pairs:
        assert pair.mount > 0
        assert pair.plain > 0
        assert pair.ratio == pair.mount / pair.plain
    beside = {pair.name for pair in figures.pairs if pair.peer is not None}
    assert len(beside) == 4
    assert all(pair.peer > 0 for pair in figures.pairs if pair.peer is not None)
    assert mounted_at(tmp_path / "mount") is mounted_at(tmp_path / "peer") is None
    assert {path.name for path in (tmp_path / "plain/new").iterdir()} == {"big", *map(str, range(100))}
