"""Merging against `umoci unpack`, which writes the same layers to disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.image.stacks import REFUSED, STACKS
from tests.image.umoci import check_same, needs_umoci, unpack

pytestmark = needs_umoci


@pytest.mark.parametrize("layers", STACKS.values(), ids=STACKS.keys())
def test_the_same_tree(layers: Sequence[bytes], tmp_path: Path) -> None:
    check_same(tmp_path, layers)


@pytest.mark.parametrize("layers", [layers for layers, _ in REFUSED.values()], ids=REFUSED.keys())
def test_the_same_refusals(layers: Sequence[bytes], tmp_path: Path) -> None:
    assert unpack(tmp_path, layers).returncode != 0
