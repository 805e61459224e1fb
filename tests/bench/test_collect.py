"""`pagepool bench collect` on three small images: what it says, and what it leaves behind."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.bench.samples import write_layout
from tests.support.cli import pagepool
from tests.support.tools import ToolError


@pytest.fixture
def layouts(tmp_path: Path) -> Path:
    directory = tmp_path / "layouts"
    for number in range(3):
        write_layout(directory / f"tool-{number}", {"own": os.urandom(3 << 20), "small": bytes([number]) * 10_000})
    return directory


def test_pushes_and_reads_go_on(layouts: Path, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    told: dict[str, Any] = json.loads(
        pagepool("bench", "collect", "--images", layouts, "--work", tmp_path / "work", "--quiet-time", "0.5", "--json")
    )
    assert told["images"] == ["tool-0", "tool-1", "tool-2"]
    assert told["collection"]["freed"]["layers"] == 2
    assert told["collection"]["punched_bytes"] > 5 << 20
    figures = {one["name"]: one for one in told["figures"]}
    assert figures["writer's lock held at most, ms"]["value"] == 1000 * told["collection"]["longest_hold_s"]
    compared = [one for one in told["figures"] if one["against"] == "without a collection"]
    assert len(compared) == 9
    assert all(one["value"] > 0 and one["other"] > 0 for one in compared)
    assert not list((tmp_path / "work").iterdir())


def test_one_image_is_not_enough(layouts: Path) -> None:
    with pytest.raises(ToolError, match="two images at least"):
        pagepool("bench", "collect", "--images", layouts / "tool-1")
