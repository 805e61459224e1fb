"""The figures that come out of a measurement: medians, ratios, and whether they are what was aimed at."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, cast

from pagepool_service.bench.servers import PAGEPOOL, PEER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pagepool_service.bench.registry import Results, Run

MB = 1e6
MIB = float(1 << 20)


@dataclass(frozen=True, slots=True)
class Line:
    """One figure of both registries.

    Args:
        name: for people, with its unit.
        pagepool: median over the runs.
        peer: the same of docker-registry; None if it was not measured, or has no such figure.
    """

    name: str
    pagepool: float
    peer: float | None = None

    @property
    def ratio(self) -> float | None:
        """pagepool's to docker-registry's."""
        return self.pagepool / self.peer if self.peer else None


@dataclass(frozen=True, slots=True)
class Target:
    """What was aimed at.

    Args:
        name: of the figure.
        value: measured; None if it was not.
        bound: at least, or at most, this.
        at_least: which of the two.
    """

    name: str
    value: float | None
    bound: float
    at_least: bool

    @property
    def met(self) -> bool | None:
        """Whether it was reached; None if it was not measured."""
        if self.value is None:
            return None
        return self.value >= self.bound if self.at_least else self.value <= self.bound


@dataclass(frozen=True, slots=True)
class Report:
    """The figures, the targets, and everything they were made from.

    Args:
        beside: of ingest; in place of docker-registry, which does none, stands a plain prototype.
    """

    lines: Sequence[Line]
    beside: Sequence[Line]
    targets: Sequence[Target]
    results: Results

    def as_json(self) -> dict[str, Any]:
        """For `--json`: bytes and seconds where `lines` has larger units."""
        return {
            "lines": [{**asdict(line), "ratio": line.ratio} for line in self.lines],
            "beside_prototype": [{**asdict(line), "ratio": line.ratio} for line in self.beside],
            "targets": [{**asdict(target), "met": target.met} for target in self.targets],
            **asdict(self.results),
        }


def make_report(results: Results) -> Report:
    """Turn measurements into figures."""
    lines = {line.name: line for line in _lines(results)}
    beside = list(_beside(results))
    return Report(list(lines.values()), beside, list(_targets(lines, beside, results)), results)


def non_opaque(totals: Mapping[str, Any]) -> int:
    """What pagepool's own form of the images takes on disk, without compressed blobs in any form."""
    stored = cast("Mapping[str, int]", totals["stored"])
    return (
        int(totals["stored_bytes"])
        - stored["opaque"]
        - sum(stored.get(kind, 0) for kind in ("spool", "uploads", "rebuilt"))
    )


NON_OPAQUE = "stored, but opaque copies, MB"
PULL = "pull, MB/s"
PSS = "peak memory (PSS), MiB"


def _lines(results: Results) -> Iterator[Line]:
    runs = results.runs
    yield _line("push until acknowledged, s", runs, lambda run: sum(push.acknowledged_s for push in run.pushes))
    yield _line("push until ready, s", runs, lambda run: sum(push.ready_s for push in run.pushes))
    yield Line("settled after, s", median(run.settle_s for run in runs if run.kind == PAGEPOOL))
    yield Line("compressed once more after, s", median(run.recompress_s for run in runs if run.kind == PAGEPOOL))
    yield _line("stored until then, MB", runs, lambda run: run.stored / MB)
    yield _line("first pull, compared, MB/s", runs, lambda run: run.pulled / run.first_pull_s / MB)
    yield _line(PULL, runs, lambda run: run.pulled / median(run.pull_s) / MB)
    yield _line("on disk at the end, MB", runs, lambda run: run.disk / MB)
    peer_disk = _median(runs, PEER, lambda run: run.disk / MB)
    yield Line(NON_OPAQUE, median(non_opaque(run.totals) / MB for run in runs if run.kind == PAGEPOOL), peer_disk)
    yield from _memory_lines("", runs)
    for number, name in enumerate(("first image", "near-identical image")):
        speeds = [times[number].plain_size / times[number].seconds / MB for times in results.ingest]
        if speeds:
            yield Line(f"ingest, {name}, MB/s", median(speeds))
    if later := [times[1].plain_size / times[1].seconds / MB for times in results.ingest_later]:
        yield Line("ingest, near-identical image, later, MB/s", median(later))
    if results.big:
        yield from _big_lines(results.big)


def _beside(results: Results) -> Iterator[Line]:
    for number, name in enumerate(("first image", "near-identical image")):
        ours, prototype = (
            [times[number].plain_size / times[number].seconds / MB for times in some]
            for some in (results.ingest, results.prototype)
        )
        if ours and prototype:
            yield Line(f"ingest, {name}, MB/s", median(ours), median(prototype))


def _big_lines(runs: Sequence[Run]) -> Iterator[Line]:
    yield _line("big layer: push until acknowledged, s", runs, lambda run: run.pushes[0].acknowledged_s)
    yield _line("big layer: push until ready, s", runs, lambda run: run.pushes[0].ready_s)
    yield _line("big layer: pull, MB/s", runs, lambda run: run.pulled / median(run.pull_s) / MB)
    yield _line("big layer: on disk, MB", runs, lambda run: run.disk / MB)
    yield from _memory_lines("big layer: ", runs)


def _memory_lines(prefix: str, runs: Sequence[Run]) -> Iterator[Line]:
    yield _line(f"{prefix}{PSS}", runs, lambda run: run.memory.pss / MIB)
    yield _line(f"{prefix}of that, not files, MiB", runs, lambda run: run.memory.private / MIB)
    yield _line(f"{prefix}sum of VmHWM, MiB", runs, lambda run: run.memory.high_water / MIB)


def _targets(lines: Mapping[str, Line], beside: Sequence[Line], results: Results) -> Iterator[Target]:
    def value(name: str) -> float | None:
        return lines[name].pagepool if name in lines else None

    all_runs = [run for run in (*results.runs, *results.big) if run.kind == PAGEPOOL]
    yield Target("ingest of a first image, MB/s", value("ingest, first image, MB/s"), 220, True)
    yield Target("ingest of a near-identical image, MB/s", value("ingest, near-identical image, MB/s"), 400, True)
    # What a plain prototype did on the machine that the aims above were set on: 235 and 448 MB/s.
    for line, bound in zip(beside, (220 / 235, 400 / 448), strict=False):
        yield Target(f"{line.name.removesuffix(', MB/s')}, of the plain prototype's speed", line.ratio, bound, True)
    yield Target("pull, of docker-registry's speed", lines[PULL].ratio, 0.5, True)
    yield Target("stored but opaque copies, of docker-registry's", lines[NON_OPAQUE].ratio, 0.62, False)
    yield Target("highest peak memory (PSS) of any run, MiB", max(run.memory.pss for run in all_runs) / MIB, 400, False)


def _line(name: str, runs: Sequence[Run], figure: Callable[[Run], float]) -> Line:
    ours = _median(runs, PAGEPOOL, figure)
    assert ours is not None
    return Line(name, ours, _median(runs, PEER, figure))


def _median(runs: Sequence[Run], kind: str, figure: Callable[[Run], float]) -> float | None:
    figures = [figure(run) for run in runs if run.kind == kind]
    return median(figures) if figures else None
