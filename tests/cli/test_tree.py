"""``pagepool tree``: dumps of images and tree files, and back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from pagepool.digest import Digest
from pagepool.image.treedump import HEAD
from tests.service.pushes import push_image
from tests.service.test_images_api import settled

if TYPE_CHECKING:
    from tests.cli.conftest import Run

GOLDEN = Path(__file__).parent.parent / "golden"


def test_dump_and_build_a_file(run: Run, tmp_path: Path) -> None:
    """The same bytes come back, and their digest is printed."""
    dumped = run("tree", "dump", GOLDEN / "tree-v1.tree")
    assert (dumped.code, dumped.out) == (0, (GOLDEN / "tree-v1.dump").read_text())
    (tmp_path / "dump").write_text(dumped.out)
    built = run("tree", "build", tmp_path / "dump", tmp_path / "tree")
    raw = (tmp_path / "tree").read_bytes()
    assert raw == (GOLDEN / "tree-v1.tree").read_bytes()
    digest = str(Digest.of(raw, "blake3"))
    assert (built.code, built.out) == (0, f"{digest}\n")
    assert run("tree", "build", tmp_path / "dump", tmp_path / "tree", "--json").json == {
        "tree": digest,
        "size": len(raw),
    }
    as_json = run("tree", "dump", tmp_path / "tree", "--json").json
    assert as_json == {"tree": digest, "lines": dumped.out.splitlines()}


def test_dump_an_image(run: Run, service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its name."""
    monkeypatch.setenv("PAGEPOOL_POOL", str(tmp_path / "pool"))
    with httpx.Client(base_url=f"http://{service}", timeout=30) as http:
        push_image(http, "tree/app", "1", {"etc/one": b"1"})
        settled(http, "/v1/tree/app/images/1")
    dumped = run("tree", "dump", f"{service}/tree/app:1")
    lines = dumped.out.splitlines()
    assert (dumped.code, lines[0]) == (0, HEAD)
    assert [line.split(" ")[:2] for line in lines[1:]] == [["/", "d"], ["/etc", "d"], ["/etc/one", "f"]]


@pytest.mark.parametrize("text", ["", "something else\n", "\u00e4"])
def test_what_is_no_dump(run: Run, tmp_path: Path, text: str) -> None:
    """Is invalid input; no file is written."""
    (tmp_path / "dump").write_text(text)
    result = run("tree", "build", tmp_path / "dump", tmp_path / "tree")
    assert (result.code, result.out) == (4, "")
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["dump"]


def test_what_is_no_tree(run: Run, tmp_path: Path) -> None:
    """A file that is none, one that is not there, an image that is not there."""
    (tmp_path / "file").write_bytes(b"no tree")
    assert run("tree", "dump", tmp_path / "file").code == 5
    assert run("tree", "dump", tmp_path / "nothing").code == 1
