"""The lock of a data directory, between a service that was killed and the next one."""

from __future__ import annotations

import fcntl
import os
import select
import subprocess
import threading
from typing import TYPE_CHECKING

import pytest

from pagepool.errors import BusyError
from pagepool.linux.processes import has_ended
from pagepool_service.store import locking
from pagepool_service.store.locking import lock_data

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(params=["reaped", "zombie"])
def ended(request: pytest.FixtureRequest) -> Iterator[int]:
    """The number of a process that was killed; its parent has taken note of that, or not."""
    process = subprocess.Popen(["sleep", "1000"])
    fd = os.pidfd_open(process.pid)
    process.kill()
    assert select.select([fd], [], [], 60)[0]
    os.close(fd)
    if request.param == "reaped":
        process.wait()
    yield process.pid
    process.wait()


def held(data: Path, pid: int) -> int:
    """A descriptor with the lock that a process took, as those have it that it started."""
    fd = os.open(data / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(fd, fcntl.LOCK_EX)
    os.write(fd, f"{pid}\n".encode())
    return fd


def test_what_a_killed_service_left_is_waited_for(tmp_path: Path, ended: int) -> None:
    """Its workers share the lock, and one that the disk keeps waiting ends after it."""
    left = held(tmp_path, ended)
    ending = threading.Timer(0.3, os.close, [left])
    ending.start()
    fd = lock_data(tmp_path, read_only=False)
    ending.join()
    assert fd is not None
    assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"
    os.close(fd)


def test_not_for_ever(tmp_path: Path, ended: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locking, "_ENDING_S", 0.1)
    left = held(tmp_path, ended)
    with pytest.raises(BusyError, match=f"in use by process {ended}$"):
        lock_data(tmp_path, read_only=False)
    os.close(left)


@pytest.mark.parametrize("words", ["", "unknown", "-1"])
def test_a_holder_without_a_name_is_not_waited_for(tmp_path: Path, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locking, "_ENDING_S", 1e9)
    left = held(tmp_path, os.getpid())
    (tmp_path / "lock").write_text(words)
    with pytest.raises(BusyError, match=f"in use by process {words or 'unknown'}"):
        lock_data(tmp_path, read_only=False)
    os.close(left)


def test_who_runs_has_not_ended() -> None:
    assert not has_ended(os.getpid())
    assert not has_ended(0)
