"""Finds out that the disk did not take what was written to the pool, and has that removed before anybody reads it.

What a node publishes is right in memory, and goes to the disk some time later, by itself. If that fails the kernel
keeps the pages for as long as it likes, and reads afterwards what the disk has: zeros, or something of before. It tells
who asks (`syncfs`), once for each open file. So one is kept open, and asked again and again while something is
published; if it says that something was lost, all that was published since it last said otherwise is compared with its
name, as the disk has it. What is wrong loses its names, and is fetched again.

For one thread, but for `close`.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from pagepool import linux

if TYPE_CHECKING:
    from collections.abc import Callable

    from pagepool.pool import Pool, ScrubReport

log = logging.getLogger("pagepool.node")


class Writeback:
    """The open file.

    Args:
        pool: of the node.
        check: compares with their names all objects that were published with a stamp or a later one.
    """

    def __init__(self, pool: Pool, check: Callable[[int], ScrubReport]) -> None:
        self._pool = pool
        self._check = check
        self._descriptor = os.open(pool.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) if pool.durable else -1
        # What an earlier process has published may still be on its way.
        self._written = pool.first_unsynced() if pool.durable else 0
        self._seen = (-1, -1)
        self._unchecked = False  # the kernel says but once that something was lost

    def look(self) -> bool:
        """Ask, if something was published since. Blocks for as long as the disk takes.

        Returns:
            whether all is well.

        Raises:
            OSError: what was lost could not be checked; it is next time.
        """
        if self._descriptor < 0:
            return True
        now = self._pool.published()
        if now == self._seen:
            return True
        try:
            linux.syncfs(self._descriptor)
        except OSError as error:
            log.error(
                "the disk did not take what was written to %s: %s; it is looked for", self._pool.path, error.strerror
            )
            self._unchecked = True
        if self._unchecked:
            report = self._check(self._written)
            log.error("%d objects were compared with their names, %d were wrong", report.objects, len(report.damaged))
            self._unchecked, self._written = False, now[0]
            return False
        self._seen, self._written = now, now[0]
        return True

    def close(self) -> None:
        """Let go of the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
