"""Free pages of the database go back to the file system, and nothing that anybody may read goes with them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import time
from typing import TYPE_CHECKING

import lmdb
import pytest

from pagepool_service.store.collect.freelist import FreeList, UnknownFormatError, read_heads, runs_of
from pagepool_service.store.collect.gate import Gate
from pagepool_service.store.collect.holes import give_back
from pagepool_service.store.environment import Environment, Table
from tests.store.helpers import noise

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pagepool_service.store.environment import Writer

_KEPT = 256 << 10
_ROUNDS = int(os.environ.get("PAGEPOOL_HOLES_ROUNDS", "1"))


@pytest.fixture
def env(tmp_path: Path) -> Iterator[Environment]:
    with Environment.open(tmp_path / "store") as opened:
        yield opened


def fill(env: Environment, first: int, count: int, size: int = 60_000) -> None:
    for number in range(first, first + count):
        with env.write() as txn:
            txn.put(Table.FRAMES, number.to_bytes(8, "big"), noise(size, number))


def drop(env: Environment, first: int, count: int) -> None:
    for number in range(first, first + count):
        with env.write() as txn:
            txn.delete(Table.FRAMES, number.to_bytes(8, "big"))


def look(env: Environment) -> dict[bytes, bytes]:
    with env.read() as txn:
        return {key: bytes(value) for key, value in txn.scan(Table.FRAMES)}


def settle(env: Environment) -> None:
    """Two commits, behind which all that was freed before is free for use."""
    for _ in range(2):
        with env.write() as txn:
            txn.put(Table.META, b"x", os.urandom(8))


def test_the_list_is_what_lmdb_has(env: Environment) -> None:
    """All pages but those in use by a tree are in it, each once; that is what LMDB's own check counts."""
    fill(env, 0, 40)
    drop(env, 5, 30)
    fd = os.open(env.file, os.O_RDONLY)
    with env.read() as txn:
        free = FreeList(fd, txn.version)
        pages = [
            page
            for _, record in free.records()
            for first, count in runs_of(record)
            for page in range(first, first + count)
        ]
        used = txn.used_bytes() // 4096
        assert [free.find(number) == record for number, record in free.records()].count(False) == 0
        assert free.find(10**9) is None
        last = free.head.last_page
    os.close(fd)
    assert len(set(pages)) == len(pages) > 300
    assert max(pages) <= last
    # Beside tables, and what is free: two heads, the tree of tables, and the pages of the list itself.
    assert 3 <= last + 1 - used - len(pages) <= 8


def test_free_pages_are_given_back_and_the_rest_is_as_it_was(env: Environment) -> None:
    fill(env, 0, 40)
    drop(env, 5, 30)
    settle(env)
    before, size, there = env.file_bytes(), env.file.stat().st_size, look(env)
    given = give_back(env, Gate(env))
    assert 25 * 60_000 < given <= before
    assert env.file_bytes() <= before - given + 65_536
    assert env.file.stat().st_size == size
    assert look(env) == there
    assert give_back(env, Gate(env)) < 100_000
    fill(env, 100, 25)
    assert look(env) == there | {number.to_bytes(8, "big"): noise(60_000, number) for number in range(100, 125)}
    assert env.file.stat().st_size < size + 200_000, "the holes are used again"


def test_pages_that_a_snapshot_has_are_left(env: Environment) -> None:
    fill(env, 0, 40)
    there = look(env)
    with env.read() as txn:
        records = [(key, value) for key, value in txn.scan(Table.FRAMES, check=False)]
        drop(env, 0, 40)
        settle(env)
        assert give_back(env, Gate(env)) == 0
        assert {key: bytes(value[:-8]) for key, value in records} == there
    assert give_back(env, Gate(env)) > 40 * 60_000 - _KEPT


def test_pages_that_are_used_again_meanwhile_are_left(env: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was free when it was looked for, and is not when the lock is had."""
    fill(env, 0, 40)
    drop(env, 0, 40)
    settle(env)
    run = Gate.run
    once: list[int] = []

    def run_later(self: Gate, act: object) -> object:
        if not once:
            once.append(1)
            fill(env, 100, 30)
        return run(self, act)  # type: ignore[arg-type]

    monkeypatch.setattr(Gate, "run", run_later)
    give_back(env, Gate(env))
    assert look(env) == {number.to_bytes(8, "big"): noise(60_000, number) for number in range(100, 130)}


def test_another_format_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "data.mdb"
    path.write_bytes(bytes(16) + (0xBEEFC0DE).to_bytes(4, "little") + (3).to_bytes(4, "little") + bytes(8192))
    fd = os.open(path, os.O_RDONLY)
    with pytest.raises(UnknownFormatError):
        read_heads(fd)
    os.close(fd)


def test_an_environment_that_maps_for_writing_is_not_what_we_open(tmp_path: Path) -> None:
    """In that mode LMDB reads free pages before it writes them: holes rest on the store never being opened so."""
    with Environment.open(tmp_path / "store") as env:
        assert not env._env.flags()["writemap"]
    assert lmdb.version()[0] == 0


# -- several processes, and their deaths ---------------------------------------------------------------------


def _write_for_ever(path: str, seed: int) -> None:
    randomness = random.Random(seed)
    with Environment.open(_path(path)) as env:
        while True:
            number = randomness.randrange(200)
            with env.write() as txn:
                _change(txn, number, randomness)


def _change(txn: Writer, number: int, randomness: random.Random) -> None:
    if randomness.random() < 0.5:
        txn.delete(Table.FRAMES, number.to_bytes(8, "big"))
    else:
        txn.put(Table.FRAMES, number.to_bytes(8, "big"), noise(randomness.randrange(10, 150_000), number))


def _punch_for_ever(path: str, _seed: int) -> None:
    with Environment.open(_path(path)) as env:
        while True:
            give_back(env, Gate(env))


def _read_for_ever(path: str, seed: int) -> None:
    randomness = random.Random(seed)
    with Environment.open(_path(path), readonly=True, shared=True) as env:
        while True:
            with env.read() as txn:  # every record is compared with its checksum
                for _ in txn.scan(Table.FRAMES):
                    if randomness.random() < 0.02:
                        time.sleep(0.001)


def _path(text: str) -> Path:
    from pathlib import Path

    return Path(text)


def test_readers_writers_and_punchers_that_are_killed_leave_it_whole(tmp_path: Path) -> None:
    """PAGEPOOL_HOLES_ROUNDS rounds; in each, all are killed at a random moment."""
    randomness = random.Random("holes")
    path = tmp_path / "store"
    with Environment.open(path) as env:
        fill(env, 0, 100)
    context = multiprocessing.get_context("spawn")
    for round_number in range(_ROUNDS):
        targets = [_write_for_ever, _punch_for_ever, _read_for_ever]
        processes = [context.Process(target=target, args=(str(path), round_number), daemon=True) for target in targets]
        for process in processes:
            process.start()
        deadline = time.monotonic() + 0.7 + randomness.random()
        while time.monotonic() < deadline and all(process.is_alive() for process in processes):
            time.sleep(0.01)
        died = [process.exitcode for process in processes if not process.is_alive()]
        assert not died, f"one of them met something wrong: {died}"
        randomness.shuffle(processes)
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid or 0, signal.SIGKILL)
        for process in processes:
            process.join()
        with Environment.open(path) as env:
            found = look(env)
        assert found
        assert all(value == noise(len(value), int.from_bytes(key, "big")) for key, value in found.items())
