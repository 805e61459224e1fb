"""Reading what is in memory already, through pagepool's mount and through plain overlayfs of the same image's layers.

In turns, best of the rounds. Everything is measured in processor time, of this process or of the programs that it runs
(`ls`, `find | xargs cat`): what is in memory needs nothing else, and others that use the machine disturb it least.
"""

from __future__ import annotations

import os
import random
import resource
import stat
import subprocess
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final, NamedTuple

from pagepool_service.bench.mountrows import row
from pagepool_service.bench.servers import PAGEPOOL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from pagepool_service.bench.lab import Lab
    from pagepool_service.bench.mountrows import Row

PHASE: Final = "warm"
_AIM: Final = 1.05
_PAGE: Final = 4096
_FILES: Final = 3000
_PAGES: Final = 20_000
_ROUNDS: Final = 7
_PREFERRED: Final = ("numpy-old", "numpy-new")


class Sample(NamedTuple):
    """What is read: paths of regular files, and of the largest."""

    files: list[bytes]
    largest: bytes
    size: int


class Task(NamedTuple):
    """Something done below a root: a name, a clock, and how often it does its thing."""

    name: str
    clock: Callable[[], float]
    act: Callable[[Path, Sample], int]


def measure_warm(lab: Lab) -> Iterator[Row]:
    """Measure both at the same time, each mounted once."""
    image = next((name for name in (*_PREFERRED, *sorted(lab.layouts)) if name in lab.layouts), None)
    if image is None:
        return
    with ExitStack() as stack:
        roots: dict[str, Path] = {}
        for kind in lab.kinds:
            # What is opened in the first ten seconds of a mount is recorded, which costs a fifth of an open.
            options = ("--no-profiles",) if kind == PAGEPOOL else ()
            bench = stack.enter_context(lab.bench(kind, [lab.layouts[image]], options=options))
            bench.subject.fill(image)
            (roots[kind],) = stack.enter_context(lab.mounted(bench, image))
        yield from compare(roots)


def compare(roots: Mapping[str, Path]) -> Iterator[Row]:
    """Do everything below each root, in turns.

    Args:
        roots: kind -> the same tree.
    """
    samples = {kind: take_sample(root) for kind, root in roots.items()}
    for task in TASKS:
        best = dict.fromkeys(roots, float("inf"))
        count = 1
        for number in range(_ROUNDS + 1):
            for kind, root in roots.items() if number % 2 else reversed(list(roots.items())):
                begun = task.clock()
                count = task.act(root, samples[kind])
                took = task.clock() - begun
                if number:  # the first is to have everything in memory
                    best[kind] = min(best[kind], took)
        yield row(PHASE, task.name, {kind: took / count * 1e6 for kind, took in best.items()}, "ratio", _AIM)


def take_sample(root: Path) -> Sample:
    """The first files of a tree by name, and the largest of all."""
    found: list[tuple[bytes, int]] = []
    for directory, names, files in os.walk(os.fsencode(root)):
        names.sort()
        for name in sorted(files):
            path = os.path.join(directory, name)  # noqa: PTH118 - bytes
            status = os.lstat(path)
            if stat.S_ISREG(status.st_mode):
                found.append((path, status.st_size))
    largest, size = max(found, key=lambda one: one[1])
    every = max(1, len(found) // _FILES)
    return Sample([path for path, _ in found[::every]], largest, size)


def _open_read_close(_: Path, sample: Sample) -> int:
    buffers = [bytearray(_PAGE)]
    for path in sample.files:
        descriptor = os.open(path, os.O_RDONLY)
        os.readv(descriptor, buffers)
        os.close(descriptor)
    return len(sample.files)


def _stat(_: Path, sample: Sample) -> int:
    for path in sample.files:
        os.lstat(path)
    return len(sample.files)


def _read_pages(offsets: Callable[[int], list[int]]) -> Callable[[Path, Sample], int]:
    def act(_: Path, sample: Sample) -> int:
        buffers = [bytearray(_PAGE)]
        places = offsets(max(1, sample.size // _PAGE))
        descriptor = os.open(sample.largest, os.O_RDONLY)
        for place in places:
            os.preadv(descriptor, buffers, place * _PAGE)
        os.close(descriptor)
        return len(places)

    return act


def _in_order(pages: int) -> list[int]:
    return [number % pages for number in range(_PAGES)]


def _anywhere(pages: int) -> list[int]:
    rng = random.Random(pages)
    return [rng.randrange(pages) for _ in range(_PAGES)]


def _list(root: Path, _: Sample) -> int:
    subprocess.run(["ls", "-lR", root], stdout=subprocess.DEVNULL, check=True)
    return 1


def _cat_all(root: Path, _: Sample) -> int:
    script = 'find "$0" -xdev -type f -print0 | xargs -0 cat >/dev/null'
    subprocess.run(["sh", "-c", script, root], check=True)
    return 1


def _children_s() -> float:
    """Processor time of the programs that were run."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


TASKS: Final = (
    Task("open, read 4 KiB, close, us", time.process_time, _open_read_close),
    Task("stat, us", time.process_time, _stat),
    Task("sequential 4 KiB reads, us", time.process_time, _read_pages(_in_order)),
    Task("random 4 KiB reads, us", time.process_time, _read_pages(_anywhere)),
    Task("ls -lR, us", _children_s, _list),
    Task("find | xargs cat, us", _children_s, _cat_all),
)
