"""Pods in containerd, by pagepool's snapshotter beside containerd's own overlayfs: the measurement.

In each round containerd begins anew with nothing pulled, caches are dropped, and the registry has its data in memory.
Both snapshotters pull from the same pagepool service, at rest; overlayfs from docker-registry, too. They take turns,
and the order alternates. The best round counts; bytes are those of that round.
"""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pagepool.errors import UnsupportedError
from pagepool.mount import kernel
from pagepool_service.bench.figures import Figure
from pagepool_service.bench.installed import compile_client
from pagepool_service.bench.link import open_link
from pagepool_service.bench.mountstart import PROGRAMS
from pagepool_service.bench.origins import serve_images
from pagepool_service.bench.podengine import reference, running_engine, write_pause
from pagepool_service.bench.servers import PAGEPOOL, PEER
from pagepool_service.bench.subjects import BenchError, drop_caches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pagepool_service.bench.link import Link
    from pagepool_service.bench.mountstart import Program
    from pagepool_service.bench.origins import Origin

MB: Final = 1e6
_FURTHER: Final = 3


@dataclass(frozen=True, slots=True)
class PodPlan:
    """What to measure.

    Args:
        layouts: OCI layouts of one image each, by name.
        rounds: of each way.
        peer: whether overlayfs is measured with docker-registry, too.
        directory: everything is written below it.
        environment: of all processes.
        say: told of progress.
    """

    layouts: Mapping[str, Path]
    rounds: int
    peer: bool
    directory: Path
    environment: Mapping[str, str]
    say: Callable[[str], object]


class Way(NamedTuple):
    """A way to run pods.

    Args:
        name: for people.
        registry: PAGEPOOL or PEER.
        node: see `running_engine`.
    """

    name: str
    registry: str
    node: tuple[str, ...] | None = None


COLD: Final = Way("pagepool", PAGEPOOL, ("--no-profiles",))
LEARNED: Final = Way("pagepool, learned", PAGEPOOL, ())
OVERLAYFS: Final = Way("overlayfs", PAGEPOOL)
OVERLAYFS_PEER: Final = Way(f"overlayfs, {PEER}", PEER)


class PodTimes(NamedTuple):
    """One round.

    Args:
        first_s: from the beginning of the pull to the end of a container that ran the program.
        pull_s: of the pull alone.
        further_s: of a further container in the same pod, from its creation to its end; the fastest of three.
        received: bytes that had come over the link when the first container ended.
    """

    first_s: float
    pull_s: float
    further_s: float
    received: int


class PodResults(NamedTuple):
    """All that was measured.

    Args:
        figures: for people.
        rounds: by program and way.
    """

    figures: Sequence[Figure]
    rounds: Mapping[str, Mapping[str, Sequence[PodTimes]]]

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        rounds = {
            program: {way: [one._asdict() for one in some] for way, some in ways.items()}
            for program, ways in self.rounds.items()
        }
        return {"figures": [one.as_json() for one in self.figures], "rounds": rounds}


def measure_pods(plan: PodPlan, programs: Sequence[Program] = PROGRAMS) -> PodResults:
    """Measure all programs of which there is an image. Takes minutes; drops the machine's caches again and again.

    Raises:
        UnsupportedError: the kernel cannot mount images.
        PagepoolError: a step failed. Nothing is left behind.
    """
    support = kernel.probe(plan.directory)
    if not support.kernel:
        raise UnsupportedError(f"the kernel cannot mount images: {support.reason}")
    compile_client()
    images = {program: image for program in programs if (image := program.image_in(plan.layouts)) is not None}
    figures: list[Figure] = []
    rounds: dict[str, dict[str, list[PodTimes]]] = {}
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ppb-", dir=plan.directory)))
        layouts = [write_pause(directory), *(plan.layouts[image] for image in dict.fromkeys(images.values()))]
        bench = _Bench(plan, directory, {})
        for kind in (PAGEPOOL, PEER) if plan.peer else (PAGEPOOL,):
            link = stack.enter_context(open_link(None))
            serving = serve_images(kind, link, layouts, directory / kind, plan.environment, rested=True)
            bench.origins[kind] = link, stack.enter_context(serving)
        for program, image in images.items():
            rounds[program.name] = bench.measure(program, image)
            figures += compare_ways(program.name, {way: best_of(some) for way, some in rounds[program.name].items()})
    return PodResults(figures, rounds)


@dataclass(frozen=True, slots=True)
class _Bench:
    """Where to measure: registries that are running, each at the other end of a link of its own."""

    plan: PodPlan
    directory: Path
    origins: dict[str, tuple[Link, Origin]]

    def measure(self, program: Program, image: str) -> dict[str, list[PodTimes]]:
        """All rounds of a program, by way."""
        self._learn(program, image)
        ways = [COLD, LEARNED, OVERLAYFS, *([OVERLAYFS_PEER] if self.plan.peer else [])]
        found: dict[str, list[PodTimes]] = {way.name: [] for way in ways}
        for number in range(self.plan.rounds):
            for way in ways if number % 2 == 0 else reversed(ways):
                found[way.name].append(self._round(program, image, way))
                said = found[way.name][-1]
                text = f"pulled in {said.pull_s:.2f} s, all in {said.first_s:.2f} s, {said.received / MB:.1f} MB"
                self.plan.say(f"{way.name}: {program.name}: {text}; a further container {said.further_s:.2f} s")
        return found

    def _learn(self, program: Program, image: str) -> None:
        """Have a start recorded; and see that the image is mounted, and not unpacked."""
        link, _ = self.origins[PAGEPOOL]
        with running_engine(link, self.directory / "s", self.plan.environment, LEARNED.node) as engine:
            engine.cri.pull(reference(image))
            if not engine.mounts(image):
                raise BenchError(f"{image} is unpacked, and not mounted")
            container = engine.run(engine.cri.run_pod("learn"), image, program.command)
            engine.cri.remove(container)
            engine.await_learned(image)

    def _round(self, program: Program, image: str, way: Way) -> PodTimes:
        link, origin = self.origins[way.registry]
        with running_engine(link, self.directory / "s", self.plan.environment, way.node) as engine:
            drop_caches()
            origin.warm()
            before, begun = link.received(), time.monotonic()
            engine.cri.pull(reference(image))
            pulled = time.monotonic()
            pod = engine.cri.run_pod("measured")
            engine.run(pod, image, program.command)
            ended = time.monotonic()
            received = link.received() - before
            os.sync()  # what was unpacked is not being written while the next container starts
            further = []
            for _ in range(_FURTHER):
                again = time.monotonic()
                engine.run(pod, image, program.command)
                further.append(time.monotonic() - again)
            return PodTimes(ended - begun, pulled - begun, min(further), received)


def best_of(rounds: Sequence[PodTimes]) -> PodTimes:
    """The best time of each kind; the bytes of the round that was fastest."""
    fastest = min(rounds)
    return fastest._replace(pull_s=min(one.pull_s for one in rounds), further_s=min(one.further_s for one in rounds))


def compare_ways(program: str, best: Mapping[str, PodTimes]) -> Iterator[Figure]:
    """Ours beside each other way that was measured, by name."""
    for ours, words in ((COLD, ""), (LEARNED, ", learned")):
        for way in (OVERLAYFS, OVERLAYFS_PEER):
            if way.name in best:
                for (what, value), (_, other) in zip(_named(best[ours.name]), _named(best[way.name]), strict=True):
                    yield Figure(f"{program}{words}: {what}", value, other, way.name)


def _named(times: PodTimes) -> Iterator[tuple[str, float]]:
    yield "from nothing, s", times.first_s
    yield "pull alone, s", times.pull_s
    yield "MB received", times.received / MB
    yield "a further container, s", times.further_s
