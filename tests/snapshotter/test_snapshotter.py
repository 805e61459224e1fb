"""What a snapshotter never does to what is not its own, and what it does where no node can run."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pagepool.errors import InvalidError
from pagepool.node.client import NodeClient
from pagepool.node.places import NodePlaces
from pagepool.snapshotter.catalogue import TARGET, ImageRecord, SnapshotExistsError
from pagepool.snapshotter.claims import Claims
from pagepool.snapshotter.imagemounts import ImageMounts
from pagepool.snapshotter.snapshotter import Snapshotter

_IMAGE = ImageRecord("host", "app", f"sha256:{'1' * 64}", 1, "host/app:1")


def _open(root: Path) -> Snapshotter:
    (root.parent / "node").touch()  # where the node's directory would be
    node = NodeClient(NodePlaces(root.parent / "node", root.parent / "run"))
    return Snapshotter(root, Claims(()), lambda directory: ImageMounts(node, {}, directory, 1.0))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


@pytest.fixture
def snapshotter(root: Path) -> Iterator[Snapshotter]:
    found = _open(root)
    yield found
    found.close()


@pytest.mark.parametrize("database", [None, b""])
def test_a_root_of_another_program_is_left_alone(root: Path, database: bytes | None) -> None:
    """containerd's own snapshotters call their directories the same."""
    precious = root / "snapshots" / "1" / "fs" / "precious"
    precious.parent.mkdir(parents=True)
    precious.touch()
    if database is not None:
        (root / "snapshots.db").write_bytes(database)
    with pytest.raises(InvalidError, match="no snapshots"):
        _open(root)
    assert precious.exists()


def test_what_others_have_mounted_below_is_kept(root: Path, snapshotter: Snapshotter, tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("needs root")
    snapshotter.prepare("a", "", {})
    (inside,) = root.glob("snapshots/*/fs")
    (inside / "data").mkdir()
    other = tmp_path / "other"
    other.mkdir()
    (other / "precious").touch()
    subprocess.run(["mount", "--bind", other, inside / "data"], check=True)
    try:
        snapshotter.remove("a")
        snapshotter.cleanup()
        assert (other / "precious").exists()
    finally:
        subprocess.run(["umount", inside / "data"], check=True)
    snapshotter.cleanup()
    assert list((root / "snapshots").iterdir()) == []


def test_a_claim_that_was_never_tried_is_not_relied_on(snapshotter: Snapshotter) -> None:
    """A kill leaves one whose image may not be mountable at all."""
    found, _ = snapshotter._catalogue.claim("c1", "", {TARGET: "c1"}, _IMAGE, 1)
    assert [mount.type for mount in snapshotter.prepare("a", "", {TARGET: "c1"})] == ["bind"]
    snapshotter.commit("a", "A", {TARGET: "c1"})
    with pytest.raises(SnapshotExistsError):  # now it is here, whatever became of the image
        snapshotter.prepare("b", "", {TARGET: "c1"})
    assert [one.name for one in snapshotter.find([f'labels."{TARGET}"==c1'])] == ["A", found.name]
