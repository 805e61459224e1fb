"""What a file handle tells of a file that is gone while the kernel gives its inode to another one."""

from __future__ import annotations

import errno
import os
import signal
from typing import TYPE_CHECKING

import pytest

from pagepool.pool import handles
from pagepool.pool.handles import Handle, HandleDoor

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_FILES = 40
_ROUNDS = 3000


@pytest.fixture
def door(tmp_path: Path) -> Iterator[HandleDoor]:
    door = HandleDoor(tmp_path)
    if not door.usable:
        pytest.skip("needs CAP_DAC_READ_SEARCH, and a file system that has file handles")
    yield door
    door.close()


def make_and_remove(directory: Path, name: str) -> None:
    """Until it is killed, files whose inodes have the numbers of those that were removed before."""
    try:
        while True:
            for number in range(20):
                (directory / f"{name}-{number}").touch()
            for number in range(20):
                (directory / f"{name}-{number}").unlink()
    finally:
        os._exit(1)


def handle_of_a_removed_file(door: HandleDoor, path: Path) -> Handle:
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR)
    try:
        return door.name(descriptor)
    finally:
        os.close(descriptor)
        path.unlink()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_gone_while_others_are_made(tmp_path: Path, door: HandleDoor) -> None:
    """It is never "cannot be told"."""
    children = []
    for name in "ab":
        child = os.fork()
        if not child:
            make_and_remove(tmp_path, name)
        children.append(child)
    try:
        gone = [handle_of_a_removed_file(door, tmp_path / "one") for _ in range(_FILES)]
        assert {door.links(handle) for _ in range(_ROUNDS) for handle in gone} == {None}
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def test_a_machine_without_memory(tmp_path: Path, door: HandleDoor, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an error, and does not wait for ever."""
    handle = handle_of_a_removed_file(door, tmp_path / "one")

    def fail(name: str, *_: object) -> int:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), name)

    monkeypatch.setattr(handles, "call", fail)
    with pytest.raises(OSError, match="Cannot allocate memory"):
        door.links(handle)
