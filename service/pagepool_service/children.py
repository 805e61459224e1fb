"""The processes that the supervisor keeps alive: what each does, when it is to be started, how it begins and ended.

One is forked, and dies with the supervisor, whatever that dies of. What it fails with it says in a line over a pipe,
since whoever started the service may read no log.
"""

from __future__ import annotations

import ctypes
import logging
import os
import select
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pagepool.errors import PagepoolError
from pagepool_service import logs
from pagepool_service.shortage import go_first

if TYPE_CHECKING:
    from collections.abc import Callable

    from pagepool_service.settings import Settings

log = logging.getLogger("pagepool.supervisor")

SIGNALS = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT)
"""What the supervisor has blocked, and waits for; its children have not."""
_SHORTEST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 10.0
_PR_SET_PDEATHSIG = 1


@dataclass(slots=True)
class Child:
    """A process to keep alive.

    Args:
        name: for the log.
        run: what it does, in the child.
        pid: 0 while it does not run.
        due: when it is to be started, on the monotonic clock.
        ended: how often it has.
        why: how it did the last time.
    """

    name: str
    run: Callable[[], None]
    pid: int = 0
    started: float = 0.0
    due: float = 0.0
    pause_s: float = field(default=_SHORTEST_PAUSE_S)
    ended: int = 0
    why: str = ""

    def postpone(self, *, steady: bool) -> None:
        """Have it started after a pause, twice as long as the last one.

        Args:
            steady: it has lived for long: the shortest pause again.
        """
        self.pause_s = _SHORTEST_PAUSE_S if steady else min(2 * self.pause_s, _LONGEST_PAUSE_S)
        self.due = time.monotonic() + self.pause_s


def start_process(run: Callable[[], None], settings: Settings, words_fd: int) -> int:
    """Run a function in a process of its own, which dies with this one. Returns its id.

    Args:
        run: what it does; when that returns it ends.
        words_fd: gets what it fails with, in a line.

    Raises:
        OSError: there are too many processes, or there is too little memory.
    """
    parent = os.getpid()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        # An interrupt from the terminal reaches the whole group: only the supervisor decides what it means.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # so that it ends, whatever this process was started with
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (*SIGNALS, signal.SIGHUP))
        logs.configure(settings)
        go_first()
        run()
        status = 0
    except Exception as error:
        # What our own errors say needs no traceback, and may be said every ten seconds while a disk is broken.
        log.critical("a process of the service failed: %s", error, exc_info=not isinstance(error, PagepoolError))
        with suppress(BlockingIOError):
            words = " ".join(f"{os.getpid()} {error}".split())
            os.write(words_fd, words.encode(errors="replace")[: select.PIPE_BUF - 1] + b"\n")
    finally:
        # Not sys.exit: what the supervisor would do at its end is not this process's to do.
        with suppress(OSError):  # nobody may read it any more
            sys.stderr.flush()
        os._exit(status)


def describe_end(status: int) -> str:
    """How a process has ended, by what waitpid(2) says, in a few words."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"status {code}"
    if -code == signal.SIGBUS:
        return "signal SIGBUS: a part of a file could not be read; the kernel's log says whether the disk has failed"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:  # most real-time signals have no name
        return f"signal {-code}"
