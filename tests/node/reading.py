"""Reads a stack's files without a pause, and checks every byte: a process, for tests that kill those who serve.

    python -m tests.node.reading DIRECTORY SEED    until DIRECTORY/enough is there

What may be read is in DIRECTORY/released, how many batches; the newest are read most, since they are not fetched yet.
Prints how many reads it has done, or the first error.
"""

from __future__ import annotations

import mmap
import os
import random
import subprocess
import sys
from pathlib import Path

SMALL = 6
"""Files of a batch that are small; one more is large, and one more a program."""


def read_one(directory: Path, batch: int, numbers: random.Random) -> None:
    """Read something of a batch in some way."""
    at, expected = directory / "at", directory / "expected"
    choice = numbers.randrange(SMALL + 4)
    if choice < SMALL:
        name = f"s{batch}-{choice}"
        assert (at / name).read_bytes() == (expected / name).read_bytes(), name
    elif choice == SMALL:
        done = subprocess.run([at / f"x{batch}"], capture_output=True, check=True)
        assert done.stdout == b"batch %d\n" % batch, done
    else:
        read_large(at / f"l{batch}", (expected / f"l{batch}").read_bytes(), numbers)


def read_large(path: Path, data: bytes, numbers: random.Random) -> None:
    """Some pages of a large file, by faults or by reading; the kernel is asked to forget them afterwards."""
    with path.open("rb", buffering=0) as file:
        if numbers.randrange(2):
            with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as pages:
                pages.madvise(numbers.choice((mmap.MADV_NORMAL, mmap.MADV_RANDOM)))
                for _ in range(20):
                    start = numbers.randrange(len(data))
                    assert pages[start : start + 5000] == data[start : start + 5000], path
        else:
            for _ in range(20):
                start = numbers.randrange(len(data))
                assert os.pread(file.fileno(), 100_000, start) == data[start : start + 100_000], path
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main(directory: Path, seed: int) -> None:
    """Read until there is no more need."""
    numbers, count = random.Random(seed), 0
    while not (directory / "enough").exists():
        released = int((directory / "released").read_text())
        newest = max(0, released - 2) if numbers.random() < 0.7 else 0
        read_one(directory, numbers.randrange(newest, released), numbers)
        count += 1
    print(count)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
