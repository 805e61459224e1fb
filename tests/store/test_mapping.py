"""However much of a store a process looks at, only little of it counts as the process's memory."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from pagepool_service.store.environment import Environment, Table
from pagepool_service.store.mapping import MappedFile

_MOST = 72 << 20  # what is kept, the program's own files, and what is mapped between two looks
_KEYS = 1500
_VALUE = bytes(100 << 10)
_PROGRAM = """
import sys
from pathlib import Path
from pagepool_service.store.environment import Environment, Table

def mapped():
    line = next(line for line in open("/proc/self/status") if line.startswith("RssFile:"))
    return int(line.split()[1]) << 10

most = 0
with Environment.open(Path(sys.argv[1]), readonly=True, shared=True) as env:
    for start in range(0, {keys}, 10):
        keys = [number.to_bytes(32, "big") for number in range(start, start + 10)]
        with env.read() as txn:
            {ask}
        most = max(most, mapped())
print(most)
""".replace("{keys}", str(_KEYS))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 150 MB."""
    path = tmp_path_factory.mktemp("mapped") / "store"
    with Environment.open(path) as env:
        for start in range(0, _KEYS, 100):
            with env.write() as txn:
                for number in range(start, start + 100):
                    txn.put(Table.FRAMES, number.to_bytes(32, "big"), _VALUE)
    return path


@pytest.mark.parametrize(
    "ask",
    [
        "[txn.get(Table.FRAMES, key) for key in keys]",
        "list(txn.scan(Table.FRAMES, keys[0][:31]))",
    ],
)
def test_mapped_pages_are_bounded(store: Path, ask: str) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", _PROGRAM.replace("{ask}", ask), str(store)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert 0 < int(done.stdout) < _MOST


def test_what_only_looks_whether_there_is_work_counts_too(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each transaction has the root of that moment mapped, and the pages around it."""
    looks: list[int] = []

    def look(_: MappedFile, most: int) -> bool:
        looks.append(most)
        return False

    monkeypatch.setattr(MappedFile, "trim", look)
    with Environment.open(store, readonly=True, shared=True) as env:
        for _ in range(100):
            with env.read() as txn:
                assert txn.version > 0
    assert 0 < len(looks) < 20


def test_trim(store: Path) -> None:
    with Environment.open(store, readonly=True, shared=True) as env:
        with env.read() as txn:
            assert len(list(txn.scan(Table.FRAMES))) == _KEYS
        mapped = MappedFile(store / "data.mdb")
        assert not mapped.trim(1 << 40)
        assert mapped.trim(1)
        with env.read() as txn:
            found = txn.get(Table.FRAMES, bytes(32))
            assert found is not None
            assert bytes(found) == _VALUE


def test_what_is_committed_without_a_descriptor_left(tmp_path: Path) -> None:
    """It counts, and is not said to have failed, though the process cannot look at what it has mapped."""
    key, (soft, hard) = bytes(32), resource.getrlimit(resource.RLIMIT_NOFILE)
    with Environment.open(tmp_path / "store") as env:
        with env.write() as txn:
            txn.put(Table.FRAMES, key, _VALUE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        try:
            for _ in range(100):
                with env.write() as txn:
                    assert txn.get(Table.FRAMES, key) is not None
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_file_that_is_not_mapped(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert not MappedFile(tmp_path / "file").trim(1)
