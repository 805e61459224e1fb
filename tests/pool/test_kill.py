"""Processes that are killed at any point leave a pool that opens, is right, and has an exact account."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pagepool.digest import blake3_raw
from pagepool.extents import EXTENT_SIZE
from pagepool.pool import Pool
from tests.pool.helpers import files_below, thing

if TYPE_CHECKING:
    from collections.abc import Iterator

BUDGET = 24 * EXTENT_SIZE
ROUNDS = 8

_BUSY = """
import random, sys
from pathlib import Path
from pagepool.errors import StoreFullError
from pagepool.pool import Pool
from tests.pool.helpers import thing
seed, budget = int(sys.argv[2]), int(sys.argv[3])
source = random.Random(seed)
print("begun", flush=True)
pool = Pool.open(Path(sys.argv[1]), budget=budget)
while True:
    number = source.randrange(60)
    one = thing(number, 1 + number * 5000)
    what = source.random()
    if what < 0.4:
        file = pool.put(one.digest, one.data)
    elif what < 0.7:
        file = pool.get(one.digest)
    elif what < 0.75:
        pool.remove(one.digest)
        continue
    else:
        try:
            with pool.partial(one.digest, one.size, one.extents) as partial:
                for n in partial.missing(0, len(one.parts)):
                    partial.write(n, one.parts[n])
        except StoreFullError:
            pass
        continue
    if file is not None:
        assert bytes(file.view) == one.data
        file.close()
"""


def start(place: Path, seed: int) -> subprocess.Popen[str]:
    """A process that puts, gets, removes and fills without end."""
    arguments = [sys.executable, "-c", _BUSY, str(place), str(seed), str(BUDGET)]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    return process


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    """Whatever is in the list at the end is killed."""
    running: list[subprocess.Popen[str]] = []
    yield running
    for process in running:
        stop(process)


def stop(process: subprocess.Popen[str]) -> None:
    """Kill a process and wait for its end."""
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def progress(pool: Pool) -> int:
    """A figure that grows while others use the pool."""
    stats = pool.stats()
    return stats.hits + stats.misses + stats.evictions


def check_pool(place: Path) -> None:
    """Every name is of what it says; what is counted is what is there; everything can be used."""
    with Pool.open(place, budget=BUDGET) as pool:
        for path in files_below(place / "objects"):
            assert blake3_raw(path.read_bytes()).hex() == path.parent.name + path.name
            assert path.stat().st_mode & 0o777 == 0o444
        stats = pool.stats()
        assert stats.temporary_bytes == stats.retired_bytes == 0
        assert not files_below(place / "tmp")
        # An extent may have been counted and not been written any more.
        assert stats.objects == len(files_below(place / "objects"))
        assert stats.partials == len(list((place / "partial").glob("*.data")))
        assert stats.used <= stats.budget
        for number in range(0, 60, 7):
            one = thing(number, 1 + number * 5000)
            with pool.partial(one.digest, one.size, one.extents) as partial:
                for n in partial.missing(0, len(one.parts)):
                    partial.write(n, one.parts[n])
                assert bytes(partial.view(0, one.size)) == one.data
            del partial
        assert pool.stats().used <= BUDGET


def test_kill_at_any_point(place: Path, processes: list[subprocess.Popen[str]]) -> None:
    """Three processes work on one pool; again and again one is killed, and what it leaves is looked at."""
    source = random.Random(place.parts[1])
    with Pool.open(place, budget=BUDGET, durable=place.parts[1] != "dev") as pool:
        processes += [start(place, seed) for seed in range(2)]
        for number in range(ROUNDS):
            victim = start(place, 100 + number)
            processes.append(victim)
            before = progress(pool)
            for _ in range(source.randrange(3, 60)):
                while progress(pool) == before:
                    os.sched_yield()
                before = progress(pool)
            stop(victim)
            stats = pool.stats()
            assert stats.used <= stats.budget
        assert [process.poll() for process in processes[:2]] == [None, None], "a survivor failed"
        for process in processes:
            stop(process)
    check_pool(place)
