"""What is noted beside an upper."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pagepool.digest import Digest
from pagepool.errors import CorruptError, DeniedError
from pagepool.upper import UpperInfo, UpperUnknownError, find_upper, read_upper, read_upper_info
from pagepool.upper import check as checks
from tests.faults import cut_power, file_size_limit, small_file_system
from tests.support.trees import TreeBuilder

_INFO = UpperInfo(
    "team/app", "http://127.0.0.1:5000", Digest("blake3", bytes(32)), "app:1", Digest("sha256", bytes(32))
)


def test_round_trip(tmp_path: Path) -> None:
    """It comes back as it was noted, by the upper or the directory that it is in."""
    upper = tmp_path / "upper"
    upper.mkdir()
    assert find_upper(upper) is None
    assert find_upper(tmp_path) is None
    with pytest.raises(UpperUnknownError, match="upper"):
        read_upper_info(upper)
    for info in (_INFO, UpperInfo("app", "http://h", _INFO.tree)):
        info.write(tmp_path)
        assert find_upper(upper) == find_upper(tmp_path) == upper
        assert read_upper_info(upper) == info
    assert sorted(path.name for path in tmp_path.iterdir()) == ["info.json", "upper"]


def test_a_note_that_cannot_be_written(tmp_path: Path) -> None:
    """Nothing is left of it."""
    with file_size_limit(1), pytest.raises(OSError, match="File too large"):
        _INFO.write(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_note_outlives_a_loss_of_power(tmp_path: Path) -> None:
    """Its name does, too."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    with small_file_system(first, 16 << 20) as mounted:
        (mounted / "here" / "upper").mkdir(parents=True)
        os.sync()
        _INFO.write(mounted / "here")
        cut_power(mounted)
    with small_file_system(second, 16 << 20, image=first / "small.img") as mounted:
        assert read_upper_info(mounted / "here" / "upper") == _INFO


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"repository": "a", "url": "b", "tree": "c"}', "\xff"], ids=range(5))
def test_what_cannot_be_read(tmp_path: Path, text: str) -> None:
    """It is said which upper it is of."""
    (tmp_path / "upper").mkdir()
    (tmp_path / "info.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CorruptError, match="upper"):
        read_upper_info(tmp_path / "upper")


def test_more_fields(tmp_path: Path) -> None:
    """A later version may note more."""
    _INFO.write(tmp_path)
    fields = json.loads((tmp_path / "info.json").read_text())
    (tmp_path / "info.json").write_text(json.dumps(fields | {"later": 1}))
    assert read_upper_info(tmp_path / "upper") == _INFO


def test_a_tree_without_its_algorithm(tmp_path: Path) -> None:
    """As the node names files of trees."""
    fields = {"repository": "app", "url": "http://h", "tree": "00" * 32, "image": "app:1", "manifest": ""}
    (tmp_path / "info.json").write_text(json.dumps(fields))
    assert read_upper_info(tmp_path / "upper") == UpperInfo("app", "http://h", _INFO.tree, "app:1")


def test_without_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who does not see the kernel's marks is not shown a file system without them."""
    monkeypatch.setattr(checks, "why_no_trusted_attributes", lambda: "it needs root")
    with pytest.raises(DeniedError, match="it needs root"):
        read_upper(tmp_path, TreeBuilder().build())
