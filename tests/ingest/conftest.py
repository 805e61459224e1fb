"""A store in a directory of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pagepool_service.store.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Where a store is, or will be."""
    return tmp_path / "data"


@pytest.fixture
def store(data: Path) -> Iterator[Store]:
    """An open, empty store."""
    with Store.open(data) as opened:
        yield opened
