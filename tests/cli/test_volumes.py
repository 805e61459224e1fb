"""Volumes that `pagepool run` refuses: pools that could be written to, and the node's socket."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pagepool.cli.volumes import check_volumes
from pagepool.container.options import OptionInvalidError, parse_volume
from pagepool.pool import Pool

if TYPE_CHECKING:
    from pathlib import Path

_POOL = r"it is a pool's: give it with :ro"
_STATE = r"what all containers share in .*: give it with :ro"
_SOCKET = r"whoever reaches the node's socket may do everything"


def check(text: str, top: Path) -> None:
    """Check one volume, with a node below `top`."""
    check_volumes([parse_volume(text)], top / "node" / "state", top / "node" / "run")


@pytest.mark.parametrize(
    ("source", "mode", "refused"),
    [
        ("pool", "", _POOL),
        ("pool/objects/ab", "rw", _POOL),
        ("link/objects", "rw", _POOL),
        ("pool/objects", "ro", ""),
        ("node/state", "", _STATE),
        ("node/state/containers/x", "", _STATE),
        ("node/state", "ro", ""),
        ("node/run", "ro", _SOCKET),
        ("node/run/sources", "ro", _SOCKET),
        ("node", "rw", _SOCKET),
        (".", "ro", _SOCKET),
        ("elsewhere", "rw", ""),
        ("node/statement", "rw", ""),
    ],
)
def test_volumes(tmp_path: Path, source: str, mode: str, refused: str) -> None:
    Pool.open(tmp_path / "pool", budget=1 << 20).close()
    (tmp_path / "link").symlink_to("pool")
    text = f"{tmp_path / source}:/at:{mode}"
    if not refused:
        check(text, tmp_path)
        return
    with pytest.raises(OptionInvalidError, match=refused) as told:
        check(text, tmp_path)
    assert str(tmp_path / source) in str(told.value)
