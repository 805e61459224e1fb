"""A maintenance process, which runs the jobs of a store (`maintenance`): how it is set up, and what it is given.

Any number of them may work on one data directory, each with a slot of its own. One can be killed at any moment: its job
is taken up again.
"""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys
from typing import TYPE_CHECKING

from pagepool.image import Limits
from pagepool_service.allocator import keep_large_blocks
from pagepool_service.encoders import keep_compiled
from pagepool_service.inflate import InflateLimits
from pagepool_service.maintenance import Maintenance, observe_nothing
from pagepool_service.panic import end_at_once
from pagepool_service.prebuild import Prebuilder
from pagepool_service.store.store import Store
from pagepool_service.verifying import VerifierProcess

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pagepool_service.settings import Settings
    from pagepool_service.tracing.exporting import Tracing
    from pagepool_service.tracing.notes import PushNotes


def run(
    settings: Settings,
    wake_fd: int,
    slot: int = 0,
    figures: Path | None = None,
    pushes: PushNotes | None = None,
) -> None:
    """Work until the process is ended. Blocks.

    Args:
        settings: of the service.
        wake_fd: becomes readable when a job was added.
        slot: number of this process; no other that runs has it.
        figures: directory for metrics; None to keep none.
        pushes: traces of pushes.
    """
    tune()
    keep_compiled(settings.data / "encoders")
    with (
        VerifierProcess.start(settings.data) as verifier,
        Store.open(settings.data, quota_bytes=settings.quota_bytes) as store,
    ):
        store.env.on_panic = end_at_once
        limits, inflate_limits = limits_of(settings)
        Maintenance(
            store,
            slot=slot,
            verifier=verifier,
            rebuild_compressed=settings.rebuild_compressed,
            limits=limits,
            inflate_limits=inflate_limits,
            observe=_open_metrics(figures, slot),
            tracing=_open_tracing(settings, slot, pushes),
        ).run_forever(wake_fd, Prebuilder(store, settings.data) if slot == 0 else None)


def limits_of(settings: Settings) -> tuple[Limits, InflateLimits]:
    """What the settings say that a tar may claim, and what a compressed stream may grow to."""
    largest = settings.max_layer_bytes
    limits = Limits(largest, largest, setting="PAGEPOOL_MAX_LAYER_SIZE")
    return limits, InflateLimits(plain_size=largest, ratio=settings.max_layer_ratio)


def _open_metrics(figures: Path | None, slot: int) -> Callable[[str, float], None]:
    if figures is None:
        return observe_nothing
    recording = importlib.import_module("pagepool_service.metrics.recording")
    observe: Callable[[str, float], None] = recording.ingest_observer(
        recording.keep_in(figures, f"maintenance-{slot + 1}")
    )
    return observe


def _open_tracing(settings: Settings, slot: int, pushes: PushNotes | None) -> Tracing | None:
    """The tracer of this process, which sends what is left when the process is told to end."""
    if settings.trace_endpoint is None:
        return None
    made: Tracing = importlib.import_module("pagepool_service.tracing.exporting").Tracing(
        settings, f"maintenance {slot + 1}", pushes
    )

    def end(_number: int, _frame: object) -> None:
        made.close()
        os._exit(0)

    signal.signal(signal.SIGTERM, end)
    return made


def tune() -> None:
    """Set this process up for reading layers."""
    # Threads of ours hold the GIL for microseconds between long calls that release it. With the default of 5
    # ms a thread that comes back from such a call waits for the splitting thread to be switched out.
    sys.setswitchinterval(0.0005)
    # Members and operations come by the thousand and are in no cycles: looking for some takes 2 % of the time.
    gc.freeze()
    gc.set_threshold(20_000)
    keep_large_blocks()
