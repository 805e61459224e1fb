"""The directories of a node: made for nobody else, and refused where they are somebody else's."""

from __future__ import annotations

import os
import socket
import stat
from typing import TYPE_CHECKING

import pytest

from pagepool.errors import DeniedError, InvalidError
from pagepool.node.places import NodePlaces

if TYPE_CHECKING:
    from pathlib import Path


def test_nobody_else_may_look_into_them(tmp_path: Path) -> None:
    """Credentials are in RUN, and containers' files in STATE; also where the directories were there before."""
    places = NodePlaces(tmp_path / "a" / "state", tmp_path / "run")
    places.run.mkdir(mode=0o755)
    places.make()
    for directory in (places.state, places.run, *places.state.iterdir(), *places.run.iterdir()):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700, directory
    assert sorted(path.name for path in places.state.iterdir()) == ["containers", "fetched", "trees"]
    assert sorted(path.name for path in places.run.iterdir()) == ["lazy", "mounts", "serving", "sources", "trees"]
    places.make()


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    """Whoever made it could lead it elsewhere."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").symlink_to("elsewhere")
    with pytest.raises(DeniedError, match="run belongs to somebody else"):
        NodePlaces(tmp_path / "state", tmp_path / "run").make()
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("top", ["state", "run"])
def test_a_directory_of_somebody_else(tmp_path: Path, top: str) -> None:
    """He could exchange what is in it. It stays as it is."""
    places = NodePlaces(tmp_path / "state", tmp_path / "run")
    directory = tmp_path / top
    directory.mkdir(mode=0o755)
    os.chown(directory, 1000, 1000)
    with pytest.raises(DeniedError, match=f"{directory} belongs to somebody else"):
        places.make()
    assert stat.S_IMODE(directory.stat().st_mode) == 0o755
    assert not list(directory.iterdir())


def test_the_longest_name_of_a_socket(tmp_path: Path) -> None:
    """One byte more, and nobody could ask the node: that is said before it is started."""
    room = 107 - len(os.fsencode(tmp_path / "state" / "control.sock"))
    longest = NodePlaces(tmp_path / "state", tmp_path / ("state" + "x" * room))
    longest.make()
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(longest.control))
    with pytest.raises(InvalidError, match="too long: a socket's name has 107 bytes at most"):
        NodePlaces(tmp_path / "state", tmp_path / ("state" + "x" * (room + 1))).make()
