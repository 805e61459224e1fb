"""The measurement: push, pull, memory, disk and ingest, of pagepool and docker-registry in turn.

Fairness, as far as it can be had on one machine: the same client (`wire`) drives both, one image after the
other, over one connection. The images are read once before anything is measured, and every image is pulled once
and verified before its pulls are timed, so that caches are warm for both. Runs of the two alternate, and the one
that begins alternates too; so do ingest and the plain prototype beside it (`prototype`). Both registries keep their
data below the same directory. One thing is not equal, and stays: pagepool calls fsync before it acknowledges,
docker-registry never does.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pagepool_service.bench.big import SIZE, make_big_image
from pagepool_service.bench.images import find_pair
from pagepool_service.bench.ingest import measure_ingest
from pagepool_service.bench.prototype import measure_prototype
from pagepool_service.bench.servers import PAGEPOOL, PEER, Launcher
from pagepool_service.bench.transfer import Transfer
from pagepool_service.bench.usage import MemorySampler, disk_bytes
from pagepool_service.bench.wire import BUFFER_SIZE, Wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pagepool_service.bench.images import SourceImage
    from pagepool_service.bench.ingest import IngestTime
    from pagepool_service.bench.usage import Memory

_PULLS = 3  # of everything, in each run


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure.

    Args:
        images: pushed in this order.
        runs: of each registry.
        peer: whether docker-registry is measured too.
        big: whether a large layer is pushed and pulled, too.
        launcher: how registries are started.
        directory: everything is written below it.
        say: told of progress.
    """

    images: Sequence[SourceImage]
    runs: int
    peer: bool
    big: bool
    launcher: Launcher
    directory: Path
    say: Callable[[str], None]


@dataclass(frozen=True, slots=True)
class PushTime:
    """One image: bytes sent, seconds until they were acknowledged, and until the image was ready to be served."""

    name: str
    sent: int
    acknowledged_s: float
    ready_s: float


@dataclass(frozen=True, slots=True)
class Run:
    """One registry, once, from an empty directory on.

    Args:
        kind: which registry.
        pushes: in order.
        settle_s: from the last image being ready until no work was left.
        recompress_s: from then on until all was compressed once more.
        stored: bytes on disk before anything was pulled.
        first_pull_s: of the first pull of everything, in which each byte is compared.
        pulled: bytes of one pull of everything.
        pull_s: of several such pulls.
        memory: peaks over all of it.
        disk: bytes on disk at the end.
        totals: what pagepool itself says it holds; empty for the other.
    """

    kind: str
    pushes: Sequence[PushTime]
    settle_s: float
    recompress_s: float
    stored: int
    first_pull_s: float
    pulled: int
    pull_s: Sequence[float]
    memory: Memory
    disk: int
    totals: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Results:
    """All that was measured.

    Args:
        runs: of both registries, in the order they were made.
        ingest: one list for each run: the first image, and the near-identical second.
        ingest_later: the same, with all of the first image compressed once more before the second.
        prototype: as `ingest`, by a plain prototype, each beside the run of the same place.
        big: as `runs`, of the large layer alone.
    """

    images: Sequence[str]
    runs: Sequence[Run]
    ingest: Sequence[Sequence[IngestTime]]
    ingest_later: Sequence[Sequence[IngestTime]] = field(default=())
    big: Sequence[Run] = field(default=())
    prototype: Sequence[Sequence[IngestTime]] = field(default=())


def measure(plan: Plan) -> Results:
    """Measure everything. Blocks for minutes; leaves nothing behind, however it ends."""
    with tempfile.TemporaryDirectory(prefix="pagepool-bench-", dir=plan.directory) as name:
        work = Path(name)
        _warm(plan)
        runs: list[Run] = []
        for kind in _order(plan, plan.runs):
            runs.append(_run(plan, kind, plan.images, work))
            plan.say(f"run {len(runs)} of {plan.runs * (1 + plan.peer)} done")
        ingest, prototype = _ingest_beside(plan, work)
        ingest_later = _ingest(plan, work, plan.runs, recompress=True)
        big = list(_big(plan, work)) if plan.big else []
    return Results([image.name for image in plan.images], runs, ingest, ingest_later, big, prototype)


def _order(plan: Plan, runs: int) -> Iterator[str]:
    for number in range(runs):
        if not plan.peer:
            yield PAGEPOOL
        else:
            yield from (PAGEPOOL, PEER) if number % 2 == 0 else (PEER, PAGEPOOL)


def _warm(plan: Plan) -> None:
    """Bring the images into the page cache."""
    for image in plan.images:
        for blob in image.blobs:
            with blob.path.open("rb", buffering=0) as file:
                while file.read(BUFFER_SIZE):
                    pass


def _run(plan: Plan, kind: str, images: Sequence[SourceImage], work: Path) -> Run:
    with _registry(plan, kind, work) as (transfer, memory, data):
        pushes = [_push(plan, kind, transfer, image) for image in images]
        settle_s = _timed(transfer.await_settled)
        recompress_s = _timed(transfer.await_recompressed)
        stored = disk_bytes(data)
        begun = time.monotonic()
        for image in images:
            transfer.verify(image)
        first_pull_s = time.monotonic() - begun
        plan.say(f"{kind}: all digests verified, work on it ended after {settle_s:.2f} s, and {recompress_s:.2f} s")
        pulled, pull_s = 0, []
        for _ in range(_PULLS):
            begun = time.monotonic()
            pulled = sum(map(transfer.pull, images))
            pull_s.append(time.monotonic() - begun)
        plan.say(f"{kind}: pulled {pulled / 1e6:.0f} MB in {min(pull_s):.2f} s")
        totals = transfer.totals() if kind == PAGEPOOL else {}
        times = settle_s, recompress_s, stored, first_pull_s
        return Run(kind, pushes, *times, pulled, pull_s, memory.peak(), disk_bytes(data), totals)


@contextmanager
def _registry(plan: Plan, kind: str, work: Path) -> Iterator[tuple[Transfer, MemorySampler, Path]]:
    """A registry that is running, with a client and somebody who watches its memory."""
    with (
        plan.launcher.run(kind, work / "registry") as server,
        Wire(server.host, server.port) as wire,
        MemorySampler(server.pid) as memory,
    ):
        yield Transfer(server, wire), memory, server.data


def _push(plan: Plan, kind: str, transfer: Transfer, image: SourceImage) -> PushTime:
    begun = time.monotonic()
    sent = transfer.push(image)
    acknowledged = time.monotonic()
    transfer.await_ready(image)
    ready = time.monotonic()
    plan.say(f"{kind} took {image.name}, {sent / 1e6:.0f} MB, ready after {ready - begun:.2f} s")
    return PushTime(image.name, sent, acknowledged - begun, ready - begun)


def _ingest_beside(plan: Plan, work: Path) -> tuple[list[list[IngestTime]], list[list[IngestTime]]]:
    """Ours, and the prototype's, in turn; the one that begins alternates."""
    ours: list[list[IngestTime]] = []
    prototype: list[list[IngestTime]] = []
    for number in range(plan.runs):
        for own in (True, False) if number % 2 == 0 else (False, True):
            if own:
                ours += _ingest(plan, work, 1, recompress=False)
            else:
                prototype += _prototype(plan, work)
    return ours, prototype


def _ingest(plan: Plan, work: Path, runs: int, *, recompress: bool) -> list[list[IngestTime]]:
    pair = find_pair(plan.images)
    times: list[list[IngestTime]] = []
    for _ in range(runs if pair else 0):
        times.append(measure_ingest(pair or (), work / "ingest", recompress=recompress))
        plan.say(f"ingest{', compressed once more between' if recompress else ''}: {_speeds(times[-1])}")
    return times


def _prototype(plan: Plan, work: Path) -> list[list[IngestTime]]:
    pair = find_pair(plan.images)
    if pair is None:
        return []
    times = measure_prototype(pair, work / "prototype")
    plan.say(f"plain prototype: {_speeds(times)}")
    return [times]


def _speeds(times: Sequence[IngestTime]) -> str:
    return ", then ".join(f"{one.name} {one.plain_size / one.seconds / 1e6:.0f} MB/s" for one in times)


def _big(plan: Plan, work: Path) -> Iterator[Run]:
    plan.say(f"writing a layer of {SIZE >> 30} GiB")
    pair = find_pair(plan.images)
    image = make_big_image(pair[0] if pair else plan.images[0], work)
    for kind in _order(plan, 1):
        yield _run(plan, kind, [image], work)


def _timed(work: Callable[[], object]) -> float:
    begun = time.monotonic()
    work()
    return time.monotonic() - begun
