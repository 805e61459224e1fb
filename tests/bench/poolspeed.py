"""What a pool's calls cost, in processor time.

    python -m tests.bench.poolspeed [DIR]

Objects of 4 KiB, in a new pool below DIR; the best of three runs of 2000 calls each, in microseconds.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pagepool.digest import blake3_raw
from pagepool.pool import Pool

if TYPE_CHECKING:
    from collections.abc import Callable

    from pagepool.pool import PoolFile

_CALLS = 2000
_RUNS = 3


def measure(call: Callable[[int], object]) -> float:
    """Microseconds of processor time that a call takes; it is given a number that counts up."""
    best = float("inf")
    for run in range(_RUNS):
        began = time.process_time()
        for number in range(run * _CALLS, (run + 1) * _CALLS):
            call(number)
        best = min(best, (time.process_time() - began) / _CALLS * 1e6)
    return best


def opened(file: PoolFile | None) -> PoolFile:
    """An object that has to be there."""
    if file is None:
        raise AssertionError("the pool does not have it")
    return file


def run(directory: Path) -> dict[str, float]:
    """Measure everything."""
    source = random.Random(0)
    blobs = [source.randbytes(4096) for _ in range(_RUNS * _CALLS)]
    names = [blake3_raw(blob) for blob in blobs]
    plain = directory / "plain"
    plain.write_bytes(blobs[0])

    def view(number: int) -> None:
        with opened(pool.get(names[number])) as file:
            bytes(file.view[:4096])

    def read(number: int) -> None:
        with opened(pool.get(names[number])) as file:
            file.read()

    with Pool.open(directory / "pool", budget=1 << 30) as pool, plain.open("rb") as other:
        figures = {
            "put": measure(lambda number: opened(pool.put(names[number], blobs[number])).close()),
            "get, close": measure(lambda number: opened(pool.get(names[number])).close()),
            "get, view, copy 4 KiB, close": measure(view),
            "get, read, close": measure(read),
            "get what is not there": measure(lambda _: pool.get(bytes(32))),
        }
        with opened(pool.get(names[0])) as file:
            mapped = file.view
            figures["copy 4 KiB of an open object"] = measure(lambda _: bytes(mapped[:4096]))
        figures["os.pread of 4 KiB of a plain file"] = measure(lambda _: os.pread(other.fileno(), 4096, 0))
    return figures


def main() -> None:
    """The script."""
    base = sys.argv[1] if len(sys.argv) > 1 else None
    with tempfile.TemporaryDirectory(dir=base) as directory:
        for name, figure in run(Path(directory)).items():
            print(f"{name}: {figure:.2f}")


if __name__ == "__main__":
    main()
