"""The process that compresses stored frames again while nobody needs the processors or the disk.

It begins when no job waits, nothing is made ahead (`prebuild`) and nobody has written for a second, and drops what it
has at hand as soon as somebody writes. The work on a frame is done by a thread that the kernel lets run only where
nothing else wants to; reading and the short transactions are done at normal priority, because whoever waits for the
writer's lock must not wait for somebody who is not let run. For the same reason it is a process of its own: within
another one such a thread would hold Python's lock.

It can be killed at any moment.
"""

from __future__ import annotations

import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from pagepool.errors import BusyError, CorruptError, ReadOnlyError, StoreFullError
from pagepool.extents import recompress_frame
from pagepool_service.allocator import give_back, keep_large_blocks
from pagepool_service.panic import end_at_once
from pagepool_service.prebuild import is_making
from pagepool_service.store.recompress import Recompressor, count_waiting
from pagepool_service.store.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable

    from pagepool_service.settings import Settings

log = logging.getLogger("pagepool.recompress")

_QUIET_S = 1.0
_PAUSE_S = 60.0  # after a full disk or damage


def run(settings: Settings) -> None:
    """Work until the process is ended. Blocks."""
    keep_large_blocks()
    with (
        Store.open(settings.data, quota_bytes=settings.quota_bytes) as store,
        ThreadPoolExecutor(1, initializer=_yield_to_all) as pool,
    ):
        store.env.on_panic = end_at_once
        recompressor = Recompressor(
            store.env, lambda number, payload: pool.submit(recompress_frame, number, payload).result()
        )
        while True:
            try:
                work(store, recompressor, partial(is_making, settings.data))
            except (StoreFullError, ReadOnlyError, BusyError, CorruptError) as error:
                log.warning("frames are not compressed again for %.0f s: %s", _PAUSE_S, error)
                time.sleep(_PAUSE_S)
            store.env.trim()
            give_back()
            _await_change(store)


def work(store: Store, recompressor: Recompressor, is_busy: Callable[[], bool]) -> None:
    """Go on until nothing is left to do, or somebody else writes, or has work to do.

    Args:
        is_busy: whether somebody has work to do that no job tells of.
    """
    while not is_busy():
        with store.env.read() as txn:
            if store.jobs.count(txn):
                return
            version = txn.version
        if not recompressor.step(partial(_is_later, store, version, is_busy)):
            return


def _is_later(store: Store, version: int, is_busy: Callable[[], bool]) -> bool:
    """Whether anybody has written since a snapshot, or has work to do."""
    return store.env.version() != version or is_busy()


def _await_change(store: Store) -> None:
    """Wait until there may be something to do, and nobody has written for a while."""
    with store.env.read() as txn:
        idle = not count_waiting(txn)
    version = store.env.version()
    while True:
        time.sleep(_QUIET_S)
        now = store.env.version()
        if now == version and not idle:
            return
        idle = idle and now == version
        version = now


def _yield_to_all() -> None:
    """Have this thread run only where no other thread of the system wants to."""
    with suppress(OSError, AttributeError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
