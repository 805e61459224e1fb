"""How fast layers are read, without HTTP: from the moment their blobs are committed until they are ready.

The store's own code in as many maintenance processes as the service runs, over a store that holds nothing else.
Settling comes after an image is ready; it is done between two images, outside of what is measured.
"""

from __future__ import annotations

import multiprocessing
import shutil
import time
from dataclasses import dataclass
from threading import BrokenBarrierError
from typing import TYPE_CHECKING

from pagepool.errors import CorruptError
from pagepool_service.maintaining import tune
from pagepool_service.maintenance import Maintenance
from pagepool_service.store.recompress import Recompressor
from pagepool_service.store.schema import JobKind, LayerState
from pagepool_service.store.store import Store
from pagepool_service.store.sums import sum_file
from pagepool_service.verifying import VerifierProcess

if TYPE_CHECKING:
    from collections.abc import Sequence
    from multiprocessing.connection import Connection
    from multiprocessing.synchronize import Barrier
    from pathlib import Path

    from pagepool_service.bench.images import SourceImage

PROCESSES = 2
_START_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class IngestTime:
    """How long an image took.

    Args:
        name: of the image.
        plain_size: bytes of its layers' tars.
        seconds: from the commit of all its blobs until all of them were ready.
    """

    name: str
    plain_size: int
    seconds: float


def measure_ingest(images: Sequence[SourceImage], directory: Path, *, recompress: bool = False) -> list[IngestTime]:
    """Read images into an empty store, one after the other.

    Args:
        images: in this order; each finds what those before it have stored.
        directory: does not exist yet; removed again.
        recompress: compress all that is stored once more after each image, as a service does in time.
    """
    directory.mkdir()
    times: list[IngestTime] = []
    try:
        for image in images:
            times.append(_measure(image, directory / "data"))
            if recompress:
                _recompress(directory / "data")
        return times
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _measure(image: SourceImage, data: Path) -> IngestTime:
    _admit(image, data)
    # Not fork: this process has threads, and what it has imported is not what a service has.
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(PROCESSES + 1)
    pipes = [context.Pipe(duplex=False) for _ in range(PROCESSES)]
    processes = [
        context.Process(target=_work, args=(data, slot, start, end), daemon=True) for slot, (_, end) in enumerate(pipes)
    ]
    for process, (_, end) in zip(processes, pipes, strict=True):
        process.start()
        end.close()  # or nobody would notice that the process has ended
    try:
        start.wait(_START_TIMEOUT_S)
        begun = time.monotonic()  # the same clock in all processes
        ended = max(result.recv() for result, _ in pipes)
    except (BrokenBarrierError, EOFError):
        raise CorruptError("image", image.name, "the process that read it has ended") from None
    finally:
        for process in processes:
            process.join()
    return IngestTime(image.name, _plain_size(image, data), ended - begun)


def _recompress(data: Path) -> None:
    with Store.open(data) as store:
        recompressor = Recompressor(store.env)
        while recompressor.step():
            pass


def _admit(image: SourceImage, data: Path) -> None:
    """Commit the blobs of an image, as the end of an upload does."""
    with Store.open(data) as store:
        for layer in image.layers:
            upload = store.uploads / layer.digest.hex
            shutil.copyfile(layer.path, upload)
            store.blobs.admit(upload, sum_file(upload, layer.digest.algorithm).sums(), lambda _: None)


def _work(data: Path, slot: int, start: Barrier, end: Connection) -> None:
    """One maintenance process: set up as `maintenance.run` does, it ends when there is nothing left to do."""
    tune()
    with VerifierProcess.start(data) as verifier, Store.open(data) as store:
        maintenance = Maintenance(store, slot=slot, verifier=verifier)
        start.wait()
        while (job := store.jobs.peek(slot)) is not None and job.kind is JobKind.INGEST:
            maintenance.run_one()
        end.send(time.monotonic())
        maintenance.run_all()


def _plain_size(image: SourceImage, data: Path) -> int:
    total = 0
    with Store.open(data) as store, store.env.read() as txn:
        for layer in image.layers:
            record = store.blobs.record(txn, layer.digest)
            known = store.blobs.layer(txn, record)
            if record.state is not LayerState.READY or known is None:
                raise CorruptError("layer", str(layer.digest), f"it was not read: {record.reason}")
            total += known.plain_size
    return total
