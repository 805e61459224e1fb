"""Where a snapshotter may listen."""

from __future__ import annotations

import socket
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from pagepool.errors import ListenError
from pagepool.snapshotter.serving import SnapshotServer

_NONE: Any = None
"""Nothing is asked."""


def test_where_it_cannot_listen() -> None:
    with TemporaryDirectory() as name:
        place = Path(name, "socket")
        place.write_text("a file")
        with pytest.raises(ListenError, match="no socket"):
            SnapshotServer(_NONE, place)
        assert place.read_text() == "a file"
        with pytest.raises(ListenError, match="at most 107 bytes"):
            SnapshotServer(_NONE, Path(name, "x" * 108))


def test_a_socket_is_only_taken_if_nobody_serves_it() -> None:
    with TemporaryDirectory() as name:
        place = Path(name, "socket")
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(place))
            other.listen()
            with pytest.raises(ListenError, match="another process"):
                SnapshotServer(_NONE, place)
            status = place.stat()
        assert place.stat() == status
        SnapshotServer(_NONE, place).stop(0)  # whoever had it was killed
