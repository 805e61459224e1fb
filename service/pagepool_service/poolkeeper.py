"""The process that looks after the service's pool: it hands it to clients on this machine, and scrubs it.

Where it may, it opens a door (`pagepool.pool.door`): clients get the pool as a read-only mount, of which nothing is
left however the service ends. A pool on a disk is read over and over at a bounded rate, and what has been damaged there
is removed and read from the store again. A pool in memory is not: it is as good as the memory of everything else.
Pools in memory that other data directories have left, which are gone, it removes when it starts.

It can be killed at any moment.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from typing import TYPE_CHECKING

from pagepool.errors import BusyError, PagepoolError
from pagepool.image.treefile import ObjectInfo
from pagepool.pool import Scrubber
from pagepool.pool.door import Door, door_path
from pagepool_service.cache import ExtentCache
from pagepool_service.pools import note_served, open_pool, remove_abandoned
from pagepool_service.store.store import Store

if TYPE_CHECKING:
    from pagepool.pool import Pool
    from pagepool_service.settings import Settings

log = logging.getLogger("pagepool.poolkeeper")

_RATE = 32 << 20  # bytes a second
_EVERY_S = 24 * 3600.0
_PAUSE_S = 60.0


def run(settings: Settings) -> None:
    """Work until the process is ended. Blocks."""
    pool = open_pool(settings)
    for data in remove_abandoned():
        log.info("removed the cache in memory of %s, which is gone", data)
    if pool is not None:
        note_served(settings, pool)
        if settings.shares_pool:
            _open_door(pool)
        else:
            door_path(pool.path).unlink(missing_ok=True)  # of an earlier run; nobody is behind it
        if pool.durable:
            _scrub(pool, settings)
    threading.Event().wait()


def _open_door(pool: Pool) -> None:
    try:
        door = Door(pool.path)
    except OSError as error:
        # Without privileges it never is, and that is no news.
        level = logging.DEBUG if error.errno == errno.EPERM and os.geteuid() else logging.INFO
        log.log(level, "the pool is not handed out read-only, its files protect themselves: %s", error)
        return
    threading.Thread(target=door.serve, name="door", daemon=True).start()


def _scrub(pool: Pool, settings: Settings) -> None:
    while True:
        try:
            report = Scrubber(pool, lambda digest: repair(pool, settings, digest), rate=_RATE).run()
        except (BusyError, OSError) as error:
            log.warning("the pool is not scrubbed: %s", error)
            time.sleep(_PAUSE_S)
            continue
        for damage in report.damaged:
            done = "read from the store again" if damage.repaired else "removed"
            log.error("object %s in the pool was damaged, and is %s: %s", damage.digest.hex(), done, damage.reason)
        time.sleep(_EVERY_S)


def repair(pool: Pool, settings: Settings, digest: bytes) -> bool:
    """Read an object from the store into the pool again. Opens the store for the time of it.

    Returns:
        whether it is there.
    """
    try:
        with Store.open(settings.data, readonly=True, shared=not settings.read_only) as store:
            with store.env.read() as txn:
                record = store.extents.known_object(txn, digest)
            if record is None:
                return False
            cache = ExtentCache(store, pool, pool.budget)
            info = ObjectInfo(digest, record.size, tuple(record.runs))
            return cache.fill(info, 0, info.extent_count)
    except PagepoolError as error:
        log.warning("object %s cannot be read from the store: %s", digest.hex(), error)
        return False
