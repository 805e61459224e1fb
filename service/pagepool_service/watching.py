"""What the supervisor does against a process that is alive and does not go on.

One that was stopped by a signal (SIGSTOP) answers nobody, and may hold the writer's lock of the store: then all writes
wait. A process of the service's own is told to go on after a while, by which nothing is lost. Whoever else keeps the
lock for so long, a command that was stopped or a process that waits for its disk, is named: in the log, by ``/readyz``
and in the figures. Nobody is killed for it.

Time is counted in looks, so that a machine or a service that was itself stopped blames nobody for that.
"""

from __future__ import annotations

import logging
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pagepool_service.roster import Roster
    from pagepool_service.store.writerlock import Holder, WriterLock

log = logging.getLogger("pagepool.supervisor")

_LONGEST_STEP_S = 5.0
_STEPS = 5  # in the time after which something is done


class Watch:
    """Looks at the processes of a service, and at its store's lock. The supervisor's alone.

    Args:
        lock: of the store; None to look at processes only.
        roster: says which processes there are, and is told of the lock.
        after_s: how long a process may be stopped, or keep the lock.
    """

    def __init__(self, lock: WriterLock | None, roster: Roster, after_s: float) -> None:
        self.step_s = max(0.1, min(_LONGEST_STEP_S, after_s / _STEPS))
        self._lock = lock
        self._roster = roster
        self._after_s = after_s
        self._looked_s = 0.0
        self._stopped: dict[int, float] = {}
        self._holder: Holder | None = None
        self._held_s = 0.0

    def look(self, now: float) -> None:
        """Look, if it is time to.

        Args:
            now: on the monotonic clock.
        """
        passed = now - self._looked_s
        if passed < self.step_s:
            return
        self._looked_s = now
        step = min(passed, 2 * self.step_s)
        self._look_at_lock(step)  # before a process that holds it is told to go on: who it was is to be in the log
        self._look_at_processes(step)

    def _look_at_processes(self, step: float) -> None:
        stopped = {}
        for name, pid in self._roster.processes().items():
            if not pid or _state(pid) != "T":
                continue
            stopped[pid] = self._stopped.get(pid, 0.0) + step
            if stopped[pid] >= self._after_s:
                log.error("%s (process %d) was stopped by a signal; it is told to go on", name, pid)
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
                del stopped[pid]
        self._stopped = stopped

    def _look_at_lock(self, step: float) -> None:
        holder = None if self._lock is None else self._lock.holder()
        before = self._held_s
        self._held_s = before + step if holder is not None and holder == self._holder else 0.0
        self._holder = holder
        if self._held_s >= self._after_s and holder is not None:
            pid = _process_of(holder.thread)
            self._roster.note_writer(pid, max(1, int(self._held_s)))
            if before < self._after_s:
                log.error("the store takes no writes: %s", describe_writer(self._roster))
        elif before >= self._after_s:
            self._roster.note_writer(0, 0)
            log.info("the store takes writes again, after %.0f s", before)


def describe_writer(roster: Roster) -> str:
    """Who has kept the store's writers waiting for long; "" if nobody has."""
    pid, held_s = roster.writer()
    if not held_s:
        return ""
    name = next((name for name, one in roster.processes().items() if one == pid), "")
    who = f"{name} (process {pid})" if name else f"process {pid}"
    how = {"T": ", which is stopped,", "t": ", which is traced,", "D": ", which waits for a disk,"}
    return f"{who}{how.get(_state(pid), '')} has kept the writer's lock for {held_s} s"


def _state(pid: int) -> str:
    """As in /proc; "" of one that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(") ")[2][:1]
    except OSError:
        return ""


def _process_of(thread: int) -> int:
    """The process of a thread; of one that cannot be seen from here, the thread's own id."""
    with suppress(OSError):
        for line in Path(f"/proc/{thread}/status").read_text(errors="replace").splitlines():
            if line.startswith("Tgid:"):
                return int(line.split()[1])
    return thread
