"""Pools in memory and on the disk."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pagepool.pool import Pool

if TYPE_CHECKING:
    from collections.abc import Iterator

BUDGET = 16 << 20


@pytest.fixture
def memory_dir() -> Iterator[Path]:
    """A directory on tmpfs."""
    directory = Path(tempfile.mkdtemp(dir="/dev/shm"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(params=["memory", "disk"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Where a pool may be made: on tmpfs, and on whatever temporary directories are on, as durable."""
    if request.param == "memory":
        directory: Path = request.getfixturevalue("memory_dir")
        return directory / "pool"
    return tmp_path / "pool"


@pytest.fixture
def pool(place: Path) -> Iterator[Pool]:
    """An empty pool of 16 MiB."""
    with Pool.open(place, budget=BUDGET, durable=place.parts[1] != "dev") as opened:
        yield opened
