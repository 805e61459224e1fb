"""Dumps of trees: every tree comes back as the same bytes, and what is no dump is an error that names the line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pagepool.errors import ImageInvalidError
from pagepool.image import TreeFile, TreeMerger, encode_tree, iter_members
from pagepool.image.treedump import HEAD, build_tree, dump_tree, escape
from tests.image.harness import ingest
from tests.image.stacks import STACKS
from tests.image.test_treefile import make_tree, runs_of
from tests.image.test_treefile_golden import golden_tree

if TYPE_CHECKING:
    from collections.abc import Sequence

GOLDEN = Path(__file__).parent.parent / "golden"
_DIGEST = "ab" * 32
_ROOT = "/ d 0755 0:0 0.000000000"


def check(raw: bytes) -> None:
    """A tree file becomes text of printing ASCII, and that the same tree file."""
    lines = list(dump_tree(TreeFile(raw)))
    assert all(line.isascii() and line.isprintable() for line in lines)
    assert build_tree(lines) == raw
    assert build_tree([line + "\n" for line in lines]) == raw


def test_version_1_is_what_is_written() -> None:
    """Dumps are compared by people and tests."""
    raw = (GOLDEN / "tree-v1.tree").read_bytes()
    assert "".join(f"{line}\n" for line in dump_tree(TreeFile(raw))) == (GOLDEN / "tree-v1.dump").read_text()
    check(raw)


@pytest.mark.parametrize("seed", range(6))
def test_random_trees(seed: int) -> None:
    """Names, targets and attributes of any bytes, times of any size."""
    check(encode_tree(make_tree(seed, 300), runs_of))


@pytest.mark.parametrize("layers", STACKS.values(), ids=STACKS.keys())
def test_stacks_of_layers(layers: Sequence[bytes]) -> None:
    """Whatever layers bring."""
    merger = TreeMerger()
    for tar in layers:
        merger.apply_layer(iter_members(ingest(tar).decoded))
    check(encode_tree(merger.finish(), runs_of))


def test_a_line_says_all_of_a_file() -> None:
    """As the page of the format has it."""
    lines = list(dump_tree(TreeFile(encode_tree(golden_tree(), runs_of))))
    assert lines[0] == HEAD
    assert "/link l 0777 0:0 0.000000000 bin/tool" in lines
    assert "/bin/tool h /bin/again" in lines
    assert "/loop\\xff b 0660 0:0 0.000000000 4095:1048575" in lines
    assert [escape(text) for text in (b"", b"-", b"a b=\\", "ä".encode())] == [
        "-",
        "\\x2d",
        "a\\x20b\\x3d\\x5c",
        "\\xc3\\xa4",
    ]


@pytest.mark.parametrize(
    ("lines", "at"),
    [
        ([], 0),
        (["pagepool-tree 2", _ROOT], 1),
        ([HEAD], 1),
        ([HEAD, "/a d 0755 0:0 0.000000000"], 2),
        ([HEAD, "/ f 0755 0:0 0.000000000 0 -"], 2),
        ([HEAD, _ROOT, _ROOT], 3),
        ([HEAD, _ROOT, ""], 3),
        ([HEAD, _ROOT, "/a"], 3),
        ([HEAD, _ROOT, "/a x 0644 0:0 0.000000000"], 3),
        ([HEAD, _ROOT, "/a/b p 0644 0:0 0.000000000"], 3),
        ([HEAD, _ROOT, "a p 0644 0:0 0.000000000"], 3),
        ([HEAD, _ROOT, "/.. p 0644 0:0 0.000000000"], 3),
        ([HEAD, _ROOT, "/a\\x00 p 0644 0:0 0.000000000"], 3),
        ([HEAD, _ROOT, "/a\\ p 0644 0:0 0.000000000"], 3),
        ([HEAD, _ROOT, "/\u00e4 p 0644 0:0 0.000000000"], 3),
        ([HEAD, _ROOT, "/a p 644 0:0 0.000000000"], 3),
        ([HEAD, _ROOT, "/a p 0644 0:4294967296 0.000000000"], 3),
        ([HEAD, _ROOT, "/a p 0644 0:0 0.0"], 3),
        ([HEAD, _ROOT, "/a c 0644 0:0 0.000000000 1"], 3),
        ([HEAD, _ROOT, "/a f 0644 0:0 0.000000000 5 -"], 3),
        ([HEAD, _ROOT, f"/a f 0644 0:0 0.000000000 0 {_DIGEST}"], 3),
        ([HEAD, _ROOT, "/a f 0644 0:0 0.000000000 0 x"], 3),
        ([HEAD, _ROOT, "/a p 0644 0:0 0.000000000 user.a"], 3),
        ([HEAD, _ROOT, "/a p 0644 0:0 0.000000000 user.a=1 user.a=1"], 3),
        ([HEAD, _ROOT, "/a h /b"], 3),
        ([HEAD, _ROOT, "/a h /"], 3),
        ([HEAD, _ROOT, f"/a f 0644 0:0 0.000000000 1 {_DIGEST}", f"/b f 0644 0:0 0.000000000 2 {_DIGEST}"], 4),
        ([HEAD, _ROOT, f"/a f 0644 0:0 0.000000000 131073 {_DIGEST}"], 3),
        ([HEAD, _ROOT, f"/a f 0644 0:0 0.000000000 131073 {_DIGEST}", f"{_DIGEST} 1*{_DIGEST}"], 4),
        ([HEAD, _ROOT, f"/a f 0644 0:0 0.000000000 131073 {_DIGEST}", f"{_DIGEST} 2*{_DIGEST} x"], 4),
        ([HEAD, _ROOT, f"{_DIGEST} 2*{_DIGEST}"], 3),
    ],
)
def test_what_is_no_dump_is_refused(lines: list[str], at: int) -> None:
    """With the number of the line."""
    with pytest.raises(ImageInvalidError, match=f"line {at} of the dump"):
        build_tree(lines)
