"""Stacks that are unmounted afterwards."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.node.stack import Stack, lazy_stack, needs_stack


@pytest.fixture
def mounted() -> Iterator[tuple[Stack, int]]:
    """A stack whose lazy mount nobody serves yet, and its device."""
    needs_stack()
    with tempfile.TemporaryDirectory() as directory, lazy_stack(Path(directory).resolve()) as mounted:
        yield mounted
