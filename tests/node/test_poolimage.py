"""A node whose pool is on a file system of its own."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from pagepool.errors import InvalidError
from pagepool.linux import can_reflink
from pagepool.mount.mountinfo import mounted_at
from pagepool.node.client import NodeClient
from pagepool.node.places import NodePlaces
from pagepool.node.start import arguments, ensure_node, parse
from pagepool.node.worker import WorkerOptions
from tests.support.nodeserver import require_kernel_mounts, running_node

if TYPE_CHECKING:
    from pathlib import Path

_SIZE = 320 << 20


def test_options_arrive_as_they_were_given(tmp_path: Path) -> None:
    places = NodePlaces(tmp_path / "state", tmp_path / "run")
    options = WorkerOptions(1 << 30, 5.0, 1 << 20, fill=False, profiles=False, reserve=1 << 30)
    assert parse(["start", *arguments(places, options)]) == ("start", places, options)
    assert parse(["start", *arguments(places, WorkerOptions())]) == ("start", places, WorkerOptions())


@pytest.fixture
def xfs() -> None:
    """Skip where none can be made."""
    require_kernel_mounts()
    if shutil.which("mkfs.xfs", path="/usr/sbin:/sbin:/usr/bin:/bin") is None:
        pytest.skip("needs mkfs.xfs (package xfsprogs)")


@pytest.mark.usefixtures("xfs")
def test_it_is_made_mounted_and_taken_up_again(tmp_path: Path) -> None:
    with running_node(tmp_path, WorkerOptions(pool_image=_SIZE)) as node:
        state = node.places.state
        point = mounted_at(state)
        assert point is not None
        assert point.type == "xfs"
        assert can_reflink(state)
        assert node.places.objects.is_dir()
        (state / "kept").touch()
    assert mounted_at(state) is None
    with pytest.raises(InvalidError, match="does not change its size"):
        ensure_node(node.places, WorkerOptions(pool_image=2 * _SIZE))
    assert not (state / "kept").exists()
    with running_node(tmp_path) as node:
        assert (node.places.state / "kept").exists()


@pytest.mark.usefixtures("xfs")
def test_a_pool_that_is_there_is_not_hidden(tmp_path: Path) -> None:
    with running_node(tmp_path) as node:
        places = node.places
    again = NodePlaces(places.state, tmp_path / "run")
    with pytest.raises(InvalidError, match="which a pool image would hide"):
        ensure_node(again, WorkerOptions(pool_image=_SIZE))
    assert not NodeClient(again).is_running()
    assert not places.pool_image.exists()
    with pytest.raises(InvalidError, match="at least"):
        ensure_node(NodePlaces(tmp_path / "other", tmp_path / "run"), WorkerOptions(pool_image=1 << 20))
