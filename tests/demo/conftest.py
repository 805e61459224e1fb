"""Running demos, and seeing that each cleaned up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.demo.runner import Running, Start, start_demo


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts demos; what a failed test leaves of them is ended."""
    running: list[Running] = []

    def begin(*arguments: Any, **options: Any) -> Running:
        running.append(start_demo(*arguments, **options))
        return running[-1]

    yield begin
    for demo in running:
        demo.close()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """The directory that demos take for temporary files; it must be empty in the end."""
    place = tmp_path / "tmp"
    place.mkdir()
    yield place
    assert list(place.iterdir()) == []
