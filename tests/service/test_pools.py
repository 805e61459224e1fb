"""Pools in memory: how large they may be, and those that data directories have left which are gone."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pagepool.pool import Pool
from pagepool.pool.door import door_path
from pagepool_service import pools
from pagepool_service.pools import cache_directory, note_served, remove_abandoned
from pagepool_service.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What stands for /dev/shm, where other pools of the machine are not to be touched."""
    directory = tmp_path / "shm"
    directory.mkdir()
    monkeypatch.setattr(pools, "_MEMORY", directory)
    return directory


def serve(data: Path) -> Path:
    """What a service leaves. Returns the pool's directory."""
    data.mkdir()
    settings = Settings(data)
    with Pool.open(cache_directory(settings), budget=1 << 20) as pool:
        note_served(settings, pool)
    with socket.socket(socket.AF_UNIX) as door:
        here = os.open(pool.path.parent, os.O_PATH)
        try:  # a socket's path is at most 107 bytes
            door.bind(f"/proc/self/fd/{here}/{door_path(pool.path).name}")
        finally:
            os.close(here)
    return pool.path


@pytest.mark.usefixtures("memory")
@pytest.mark.parametrize("name", ["data", "d\udcffta"])
def test_the_pool_of_a_data_directory_that_is_gone_goes(tmp_path: Path, name: str) -> None:
    stays, goes = serve(tmp_path / "other"), serve(tmp_path / name)
    assert remove_abandoned() == []
    (tmp_path / name).rmdir()
    assert remove_abandoned() == [tmp_path / name]
    assert not goes.exists()
    assert not door_path(goes).exists()
    assert stays.exists()
    assert door_path(stays).exists()
    assert remove_abandoned() == []


@pytest.mark.usefixtures("memory")
def test_a_pool_that_cannot_be_noted_is_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The keeper ended of it, again and again, and with it the pool's door."""
    settings = Settings(tmp_path / "data")
    with Pool.open(cache_directory(settings), budget=1 << 20) as pool:
        (pool.path / "served").mkdir()
        note_served(settings, pool)
        assert f"whose {pool.path} is cannot be noted: Is a directory" in caplog.text


@pytest.mark.usefixtures("memory")
def test_a_pool_elsewhere_is_nobodys_to_remove(tmp_path: Path) -> None:
    settings = Settings(tmp_path / "data", cache_dir=tmp_path / "cache")
    with Pool.open(cache_directory(settings), budget=1 << 20) as pool:
        note_served(settings, pool)
        assert not (pool.path / "served").exists()
    assert remove_abandoned() == []


def _without_note(pool: Path) -> None:
    (pool / "served").unlink()


def _damaged(pool: Path) -> None:
    (pool / "served").write_bytes(b'{"data": 1, "root": []')


def _no_object(pool: Path) -> None:
    (pool / "served").write_text("[]")


def _of_another_root(pool: Path) -> None:
    note = json.loads((pool / "served").read_text())
    (pool / "served").write_text(json.dumps({**note, "root": [note["root"][0], note["root"][1] + 1]}))


def _of_another_name(pool: Path) -> None:
    pool.rename(pool.with_name(f"pagepool-{os.geteuid()}-0123456789abcdef"))


def _a_link(pool: Path) -> None:
    pool.rename(pool.with_name("elsewhere"))
    pool.symlink_to("elsewhere")


@pytest.mark.parametrize("change", [_without_note, _damaged, _no_object, _of_another_root, _of_another_name, _a_link])
def test_what_may_be_somebody_elses_stays(tmp_path: Path, memory: Path, change: Callable[[Path], None]) -> None:
    change(serve(tmp_path / "data"))
    (tmp_path / "data").rmdir()
    before = sorted(memory.rglob("*"))
    assert remove_abandoned() == []
    assert sorted(memory.rglob("*")) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a directory away")
def test_a_pool_of_another_user_stays(tmp_path: Path, memory: Path) -> None:
    pool = serve(tmp_path / "data")
    shutil.rmtree(tmp_path / "data")
    os.chown(pool, 65534, 65534)
    assert remove_abandoned() == []
    assert pool.exists()
    assert memory.exists()


def test_files_in_memory_leave_a_limited_service_its_own(limited: Path) -> None:
    """They count as the service's: beyond that its processes would be ended, again and again."""
    program = "import pathlib, pagepool_service.pools as pools; print(pools.default_budget(pathlib.Path('/dev/shm')))"
    words = ["sh", "-c", f'echo 0 > {limited}/cgroup.procs && exec "$@"', "sh", sys.executable, "-c", program]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert int(done.stdout) == 64 << 20
