"""Records of containers and mounts where there is no room for them."""

from __future__ import annotations

import contextlib
import resource
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pagepool.container.records import hold
from pagepool.mount.records import MountRecord, write_record

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def no_room() -> Iterator[None]:
    """No file of this process may have a byte more, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_container_that_cannot_be_noted(tmp_path: Path) -> None:
    """What were left of each try would fill what is full already, and nobody would take it away."""
    with no_room(), pytest.raises(OSError, match="File too large"):
        hold(tmp_path, "a" * 32)
    assert [path.name for path in tmp_path.iterdir()] == [".names"]


def test_a_mount_that_cannot_be_noted(tmp_path: Path) -> None:
    record = MountRecord("/mnt", 1, 0, "image", None, True, 0.0)
    with no_room(), pytest.raises(OSError, match="File too large"):
        write_record(tmp_path, record)
    assert list(tmp_path.iterdir()) == []
