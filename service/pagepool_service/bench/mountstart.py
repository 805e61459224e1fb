"""Time from nothing to a program's first output: no image in storage, caches dropped, link as it is or slowed down.

The registry serves from memory. pagepool is measured cold, with a node that learns nothing; and again with nothing in
its pool after a start was recorded. So is stargz-snapshotter, where it is wanted: with an image that was converted to
eStargz and no more, and with one that was optimised for the command, both before anything is timed. Best of the rounds;
the bytes are those of the best round.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from pagepool_service.bench.estargz import convert_image
from pagepool_service.bench.link import Shape
from pagepool_service.bench.mountrows import MB, row
from pagepool_service.bench.servers import PAGEPOOL, PEER
from pagepool_service.bench.stargz import STARGZ, Stargz
from pagepool_service.bench.subjects import drop_caches

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from pagepool_service.bench.lab import Lab
    from pagepool_service.bench.link import Link
    from pagepool_service.bench.mountrows import Row
    from pagepool_service.bench.origins import Origin
    from pagepool_service.bench.subjects import Starter

PHASE: Final = "start"
SLOW: Final = Shape(rate_mbit=100, rtt_s=0.02)
_UNLEARNED: Final = ("--no-profiles",)


class Program(NamedTuple):
    """A program whose start is measured: images that have it, the first that is there is taken, and its command."""

    name: str
    images: tuple[str, ...]
    command: tuple[str, ...]

    def image_in(self, layouts: Collection[str]) -> str | None:
        """The image that is taken; None if there is none."""
        return next((name for name in self.images if name in layouts), None)


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
    with tempfile.TemporaryDirectory(prefix="ppb-e-", dir=lab.directory) as converted:
        for shape, words, aim in ((None, "", 4.0), (SLOW, ", 100 Mbit/s, 20 ms", 10.0)):
            for program in programs:
                image = program.image_in(lab.layouts)
                if image is not None:
                    measurement = _Measurement(lab, program, image, shape, Path(converted))
                    yield from _measure(measurement, f"{program.name}{words}", aim)


class _Measurement(NamedTuple):
    """Starts of a program over a link, by one way after the other."""

    lab: Lab
    program: Program
    image: str
    shape: Shape | None
    converted: Path
    """Where layouts in eStargz are kept from one link to the next."""

    def ours(self, *, learned: bool) -> _Start:
        """pagepool's, with a node that learns nothing, or after a start was recorded."""
        options = () if learned else _UNLEARNED
        with self.lab.bench(PAGEPOOL, [self.lab.layouts[self.image]], shape=self.shape, options=options) as bench:
            if learned:
                bench.subject.run(self.image, self.program.command)  # is recorded
            return self._best(bench.link, bench.origin, bench.subject)

    def peer(self) -> _Start:
        """podman's."""
        with self.lab.bench(PEER, [self.lab.layouts[self.image]], shape=self.shape) as bench:
            return self._best(bench.link, bench.origin, bench.subject)

    def lazy(self, *, optimised: bool) -> _Start:
        """stargz-snapshotter's, with an image optimised for the command or not."""
        layout = self.converted / ("optimised" if optimised else "plain") / self.program.name / self.image
        if not layout.exists():
            self.lab.say(f"{STARGZ}: converting {self.image}{' for the command' if optimised else ''}")
            layout.parent.mkdir(parents=True)
            command = self.program.command if optimised else ()
            source, lab = self.lab.layouts[self.image], self.lab
            convert_image(source, layout, lab.directory, lab.environment, command)
        with self.lab.set_up(PEER, Stargz, [layout], shape=self.shape) as (link, origin, subject):
            return self._best(link, origin, subject)

    def _best(self, link: Link, origin: Origin, subject: Starter) -> _Start:
        starts = []
        for _ in range(self.lab.rounds):
            subject.start()
            drop_caches()
            origin.warm()
            before = link.received()
            seconds = subject.run(self.image, self.program.command)
            starts.append(_Start(seconds, link.received() - before))
        return min(starts)


def _measure(measurement: _Measurement, name: str, aim: float) -> Iterator[Row]:
    lab = measurement.lab
    cold: dict[str, _Start] = {}
    learned: dict[str, _Start] = {}
    if PAGEPOOL in lab.kinds:
        cold[PAGEPOOL] = measurement.ours(learned=False)
        learned[PAGEPOOL] = measurement.ours(learned=True)
    if PEER in lab.kinds:
        cold[PEER] = learned[PEER] = measurement.peer()
    if lab.lazy:
        cold[STARGZ] = measurement.lazy(optimised=False)
        learned[STARGZ] = measurement.lazy(optimised=True)
    yield from _rows(lab, name, cold, aim)
    if learned.keys() - {PEER}:
        yield from _rows(lab, f"{name}, learned", learned, aim)


def _rows(lab: Lab, name: str, starts: dict[str, _Start], aim: float) -> Iterator[Row]:
    for kind, start in starts.items():
        lab.say(f"{kind}: {name}: {start.seconds:.2f} s, {start.received / MB:.1f} MB")
    yield row(PHASE, f"{name}, s", {kind: start.seconds for kind, start in starts.items()}, "faster", aim)
    yield row(PHASE, f"{name}, MB received", {kind: start.received for kind, start in starts.items()}, "ratio", unit=MB)
