"""The scrub of a node's pool: hashes all objects again and again at a low rate, and fetches anew what is damaged.

A damaged object loses both of its names at once; then it is fetched from where the image came from. An overlay that
remembers the damaged file goes on reading it: it is asked to forget it, which works unless somebody has it open. What
somebody has open stays as it is until he closes it: a name never changes its content, and neither does a file.

One thread. Progress is kept in the pool (`scrub`), so a new process goes on where the last one was.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Final

from pagepool.errors import BusyError, PagepoolError
from pagepool.pool import Scrubber

if TYPE_CHECKING:
    from collections.abc import Callable

    from pagepool.pool import Pool, ScrubReport

RATE: Final = 4 << 20
"""Bytes per second."""
BEGIN_S: Final = 60.0
"""Before the first run: a machine that just booted has other things to do."""
PAUSE_S: Final = 6 * 3600.0
"""Between two rounds."""
_STEP: Final = 4096  # objects of one run
_CLOSE_S: Final = 3.0

log = logging.getLogger("pagepool.node")


class NodeScrub:
    """The thread.

    Args:
        pool: of the node.
        bring: fetches an object into the pool; False if no known tree has it. `Sources.bring`.
        forget: called with the digest of an object that was damaged, before it is fetched: lets go of what this process
            has open of it.
        release: has overlays forget what nobody has open.
        on_report: told of each run.
        rate: bytes per second.
        begin_s: seconds before the first run.
        pause_s: seconds between two rounds.
    """

    def __init__(
        self,
        pool: Pool,
        bring: Callable[[bytes], bool],
        forget: Callable[[bytes], None] = lambda _digest: None,
        release: Callable[[], object] = lambda: None,
        *,
        on_report: Callable[[ScrubReport], object] = lambda _report: None,
        rate: int = RATE,
        begin_s: float = BEGIN_S,
        pause_s: float = PAUSE_S,
    ) -> None:
        self._pool = pool
        self._bring = bring
        self._forget = forget
        self.release = release
        self.on_report = on_report
        self._begin_s, self._pause_s = begin_s, pause_s
        self._stopped = threading.Event()
        self._scrubber = Scrubber(pool, self.repair, rate=rate, wait=self._stopped.wait)
        self._thread = threading.Thread(target=self._work, name="node-scrub", daemon=True)
        self.damaged = self.repaired = self.rounds = 0

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """Stop after the present piece of an object, and wait for that, a few seconds at most: it may be fetching one
        anew from a service that does not answer. The pool is closed after this."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(_CLOSE_S)

    def run(self) -> ScrubReport:
        """Look at some objects, from where the last run has ended. Blocks.

        Raises:
            BusyError: another process is at it.
        """
        report = self._scrubber.run(_STEP)
        self.damaged += len(report.damaged)
        self.repaired += sum(damage.repaired for damage in report.damaged)
        self.rounds += report.finished
        self.on_report(report)
        if report.damaged:
            self.release()
        return report

    def check_since(self, stamp: int) -> ScrubReport:
        """Look at what was published with a stamp or a later one, as the disk has it: see `Scrubber`. Blocks."""
        report = Scrubber(self._pool, self.repair).check_since(stamp)
        self.damaged += len(report.damaged)
        self.repaired += sum(damage.repaired for damage in report.damaged)
        self.on_report(report)
        if report.damaged:
            self.release()
        return report

    def _work(self) -> None:
        pause = self._begin_s
        while not self._stopped.wait(pause):
            try:
                pause = self._pause_s if self.run().finished else 0.0
            except BusyError:
                pause = self._pause_s
            except Exception:
                log.exception("the scrub broke off")
                pause = self._pause_s

    def repair(self, digest: bytes) -> bool:
        """Fetch an object again that has lost its names. Whether it is there."""
        self._forget(digest)
        try:
            there = self._bring(digest)
        except (PagepoolError, OSError) as error:
            log.error("object %s cannot be fetched again: %s", digest.hex(), error)
            return False
        if there:
            log.warning("object %s was fetched again", digest.hex())
        return there
