"""Time from nothing to a program's first output: no image in storage, caches dropped, link as it is or slowed down.

The registry serves from memory. pagepool is measured cold, with a node that learns nothing; and again with nothing in
its pool after a start was recorded. Best of the rounds; the bytes are those of the best round.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from pagepool_service.bench.link import Shape
from pagepool_service.bench.mountrows import MB, row
from pagepool_service.bench.servers import PAGEPOOL
from pagepool_service.bench.subjects import drop_caches

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pagepool_service.bench.lab import Bench, Lab
    from pagepool_service.bench.mountrows import Row

PHASE: Final = "start"
SLOW: Final = Shape(rate_mbit=100, rtt_s=0.02)
_UNLEARNED: Final = ("--no-profiles",)


class Program(NamedTuple):
    """A program whose start is measured: images that have it, the first that is there is taken, and its command."""

    name: str
    images: tuple[str, ...]
    command: tuple[str, ...]


PROGRAMS: Final = (
    Program(
        "python, import numpy",
        ("numpy-old", "numpy-new"),
        ("python3", "-c", "import numpy; print(numpy.__version__)"),
    ),
    Program("node -e", ("node-new", "node-old"), ("node", "-e", "console.log(1)")),
    Program(
        "postgres --version",
        ("postgres-new", "postgres-old"),
        ("/usr/lib/postgresql/15/bin/postgres", "--version"),
    ),
)


class _Start(NamedTuple):
    seconds: float
    received: float


def measure_start(lab: Lab, programs: Sequence[Program] = PROGRAMS) -> Iterator[Row]:
    """Measure all programs of which there is an image."""
    for shape, words, aim in ((None, "", 4.0), (SLOW, ", 100 Mbit/s, 20 ms", 10.0)):
        for program in programs:
            image = next((name for name in program.images if name in lab.layouts), None)
            if image is not None:
                yield from _measure(lab, program, image, shape, words, aim)


def _measure(lab: Lab, program: Program, image: str, shape: Shape | None, words: str, aim: float) -> Iterator[Row]:
    cold: dict[str, _Start] = {}
    for kind in lab.kinds:
        options = _UNLEARNED if kind == PAGEPOOL else ()
        with lab.bench(kind, [lab.layouts[image]], shape=shape, options=options) as bench:
            cold[kind] = _best(lab, bench, program, image)
        lab.say(f"{kind}: {program.name}{words}: {cold[kind].seconds:.2f} s, {cold[kind].received / MB:.1f} MB")
    yield from _rows(f"{program.name}{words}", cold, aim)
    if PAGEPOOL in lab.kinds:
        with lab.bench(PAGEPOOL, [lab.layouts[image]], shape=shape) as bench:
            bench.subject.run(image, program.command)  # is recorded
            learned = cold | {PAGEPOOL: _best(lab, bench, program, image)}
        yield from _rows(f"{program.name}{words}, learned", learned, aim)


def _best(lab: Lab, bench: Bench, program: Program, image: str) -> _Start:
    starts = []
    for _ in range(lab.rounds):
        bench.subject.start()
        drop_caches()
        bench.origin.warm()
        before = bench.link.received()
        seconds = bench.subject.run(image, program.command)
        starts.append(_Start(seconds, bench.link.received() - before))
    return min(starts)


def _rows(name: str, starts: dict[str, _Start], aim: float) -> Iterator[Row]:
    yield row(PHASE, f"{name}, s", {kind: start.seconds for kind, start in starts.items()}, "faster", aim)
    yield row(PHASE, f"{name}, MB received", {kind: start.received for kind, start in starts.items()}, "ratio", unit=MB)
