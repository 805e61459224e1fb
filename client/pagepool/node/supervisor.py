"""The supervisor of a node: holds the descriptors, sees that there is a worker, and does nothing else.

It does so little that it has no reason to die; if it is killed, or hangs and the worker kills it, the worker starts
another one (`guard`), which finds the worker at its post. Its signals:

    SIGTERM, SIGINT   the node ends: the worker is told to (SIGTERM), and after `END_S` made to
    SIGHUP            it executes itself anew, from the code that is there by then, and replaces the worker

What comes while it is being loaded waits.

A worker that ends, by itself or by whatever killed it, is replaced at once, unless the node was told to end. One that
ends before it was ever ready is replaced after a while that doubles each time, up to 30 s. A worker that gives no sign
of life is killed and replaced. One that was killed and does not die, since it waits for its own answer, is helped
(`lazy.dying`). Nothing is lost in all that: requests wait in the kernel and in the backlog of sockets.
Only if both die in the same moment is the node gone, and its descriptors with it.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Final

from pagepool.errors import BusyError
from pagepool.linux.signals import Signals, blocked
from pagepool.node.handover import (
    READY,
    SUPERVISOR,
    WORKER,
    Handover,
    Post,
    Pulse,
    delay_s,
    is_stopped,
    mark_stopped,
    note_start,
    receive_handover,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

END_S: Final = 20.0
_LOOKS: Final = 8
"""So many times in a row a worker may show no sign of life. Counted, so that a machine that slept is not mistaken."""
_HELP_S: Final = 10.0  # less than what counts as hanging
_REPLACE: Final = "replace"
_DETACH: Final = "detach"
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Blocked until it takes them: one that has its post, and is still being loaded, would die of them."""
_COMMAND: Final = (sys.executable, "-P", "-m", "pagepool.node.supervisor")

_log = logging.getLogger(__name__)


def start_node(
    command: Sequence[str], descriptors: Mapping[str, int], run: Path, *, hung_s: float | None = None
) -> None:
    """Start a supervisor, which starts the worker. Does not wait until that is ready.

    Args:
        command: the worker's.
        descriptors: what both inherit, by name and under the same numbers; the caller may close its own.
        run: the directory RUN.
        hung_s: seconds without a sign of life after which a worker is replaced; None: `handover.HUNG_S`.

    Raises:
        BusyError: there is a supervisor or a worker.
        OSError: it cannot be started.
    """
    lock, worker = Post(run, SUPERVISOR).take(), Post(run, WORKER).take()
    if worker is not None:
        os.close(worker)
    if lock is None or worker is None:
        if lock is not None:
            os.close(lock)
        raise BusyError(f"the node in {run} is running, or has not ended yet")
    for name in ("stopped", "beat", f"{SUPERVISOR}.starts", f"{WORKER}.starts"):
        (run / name).unlink(missing_ok=True)
    handover = Handover(str(run), list(command), dict(descriptors))
    if hung_s is not None:
        handover = Handover(str(run), list(command), dict(descriptors), hung_s=hung_s)
    start_supervisor(handover, lock)


def start_supervisor(handover: Handover, lock: int) -> None:
    """Start a supervisor that is nobody's child, and wait until it is.

    Args:
        lock: of its post; closed here.

    Raises:
        OSError: it cannot be started.
    """
    with blocked(_SIGNALS):
        process = handover.start([*_COMMAND, _DETACH], lock, detaches=True)
    process.wait()
    note_start(Path(handover.run), SUPERVISOR)


@dataclass(frozen=True, slots=True)
class _Vacancy:
    """There is no worker: the locked descriptor of its post is ours to give."""

    lock: int


class Supervisor:
    """A supervisor at its post.

    Args:
        handover: what it was given.
    """

    def __init__(self, handover: Handover) -> None:
        self._handover = handover
        self._run = Path(handover.run)
        self._post = Post(self._run, WORKER)
        self._pulse = Pulse(self._run)
        self._signals = Signals(_SIGNALS)
        self._vacancies: SimpleQueue[_Vacancy] = SimpleQueue()
        self._process: subprocess.Popen[bytes] | None = None
        self._inherited: int | None = None
        self._vacant: int | None = None
        self._failures = 0
        self._due_s = 0.0
        self._kill_s: float | None = None
        self._seen = b""
        self._still = 0

    def run(self, *, replace: bool) -> None:
        """Supervise, until the node ends.

        Args:
            replace: whether the worker that is there is to be replaced.
        """
        with self._signals:
            self._signals.let_in()
            if replace:
                self._inherited = self._post.holder()
                self._end_worker()
            self._watch()
            while self._vacant is None or not is_stopped(self._run):
                self._pulse.beat()
                self._heed(self._signals.wait(self._next_s()))
        _log.info("the node has ended")

    def _heed(self, signals: Sequence[signal.Signals]) -> None:
        """Do what the end of a worker, signals, or if there is nothing else, time asks for."""
        ended = False
        with suppress(Empty):
            self._note_end(self._vacancies.get_nowait().lock)
            ended = True
        for number in signals:
            if number == signal.SIGHUP:
                self._upgrade()
            else:
                mark_stopped(self._run)
                self._end_worker()
        if not ended and not signals:
            self._look()

    def _next_s(self) -> float:
        look_s = self._handover.hung_s / _LOOKS
        return min(look_s, max(self._due_s - time.monotonic(), 0.0)) if self._vacant is not None else look_s

    def _watch(self) -> None:
        """Have it told when there is no worker. A thread waits for each, and ends when it has said so."""
        Thread(target=self._wait_post, name="watch", daemon=True).start()

    def _wait_post(self) -> None:
        self._vacancies.put(_Vacancy(self._post.wait()))
        self._signals.wake()

    def _note_end(self, lock: int) -> None:
        """Decide when another worker is started."""
        self._vacant, self._kill_s, self._still = lock, None, 0
        was_ready, ended = self._is_ready(), "has ended"
        if self._process is None:
            _reap(self._inherited)
        else:
            ended = f"has ended with {self._process.wait()}"
            self._failures = 0 if was_ready else self._failures + 1
        if is_stopped(self._run):
            return
        wait_s = delay_s(self._failures)
        self._due_s = time.monotonic() + wait_s
        if self._failures:
            _log.error(
                "the worker %s before it was ready, %d times in a row; next try in %.1f s",
                *(ended, self._failures, wait_s),
            )
        elif self._process is not None or was_ready:
            _log.warning("the worker %s; another one is started", ended)
        self._look()

    def _is_ready(self) -> bool:
        """Whether the last worker has ever been ready."""
        beat = self._beat().split()
        if len(beat) != 3 or beat[2] != READY.strip():
            return False
        return self._process is None or beat[0] == b"%d" % self._process.pid

    def _beat(self) -> bytes:
        try:
            return (self._run / "beat").read_bytes()
        except FileNotFoundError:
            return b""

    def _look(self) -> None:
        """What time brings: a worker that is due, one that does not end though it was told to, one that hangs."""
        now_s = time.monotonic()
        if self._vacant is None:
            self._let_die()
        if self._vacant is not None:
            if now_s >= self._due_s and not is_stopped(self._run):
                self._start_worker()
        elif self._kill_s is not None:
            if now_s >= self._kill_s:
                _log.error("the worker does not end; it is killed")
                self._post.send(signal.SIGKILL)
                self._kill_s = now_s + END_S
        elif is_stopped(self._run):
            self._end_worker()
        else:
            self._look_for_life()

    def _let_die(self) -> None:
        """A worker that waits for an answer of its own does not even die of SIGKILL."""
        worker, device = self._post.holder(), self._handover.descriptors.get("fuse")
        if worker is None or device is None or not _is_dying(worker):
            return
        # In a process of its own: what can fail or hang there does not do so here.
        words = [sys.executable, "-P", "-m", "pagepool.node.lazy.dying", str(device), str(worker)]
        with suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(words, pass_fds=(device,), stdin=subprocess.DEVNULL, timeout=_HELP_S, check=False)

    def _look_for_life(self) -> None:
        beat = self._beat()
        self._still = self._still + 1 if beat == self._seen else 0
        self._seen = beat
        holder = self._post.holder()
        starting = beat.split()[:1] != [b"%d" % (holder or 0)]
        allowed_s = self._handover.start_s if starting else self._handover.hung_s
        if self._still >= _LOOKS * allowed_s / self._handover.hung_s:
            _log.error("the worker (%s) has shown no sign of life for %.0f s; it is killed", holder, allowed_s)
            self._still = 0
            self._post.send(signal.SIGKILL)

    def _start_worker(self) -> None:
        assert self._vacant is not None
        lock, self._vacant = self._vacant, None
        try:
            self._process = self._handover.start(self._handover.command, lock)
            note_start(self._run, WORKER)
            self._watch()
        except OSError as error:
            self._failures += 1
            _log.error("the worker cannot be started: %s; next try in %.1f s", error, delay_s(self._failures))
            self._due_s = time.monotonic() + delay_s(self._failures)
            self._vacant = self._post.wait()

    def _end_worker(self) -> None:
        self._post.send(signal.SIGTERM)
        self._kill_s = time.monotonic() + END_S

    def _upgrade(self) -> None:
        """Become another program, with the same number, descriptors and post."""
        if self._vacant is not None:
            os.close(self._vacant)  # the next one takes it
            self._vacant = None
            self._watch()
        for descriptor in (*self._handover.descriptors.values(), self._handover.lock):
            os.set_inheritable(descriptor, True)
        self._pulse.pause()
        _log.warning("the supervisor starts again, to replace the worker")
        try:
            with blocked(_SIGNALS):
                os.execv(_COMMAND[0], [*_COMMAND, _REPLACE])
        except OSError as error:
            _log.error("the supervisor cannot start again, and goes on: %s", error)


def _is_dying(process: int) -> bool:
    """Whether a process was killed, or ends, and a thread of it is still there."""
    with suppress(OSError, ValueError, KeyError):
        lines = Path(f"/proc/{process}/status").read_text(errors="replace").splitlines()
        fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        return fields["State"].startswith("Z") or bool(int(fields["SigPnd"], 16) >> signal.SIGKILL - 1 & 1)
    return False


def _reap(process: int | None) -> None:
    """Take note of the end of children of the program that this process was before.

    Args:
        process: the last one, which has let go of its post and is about to end, if it is a child at all.
    """
    with suppress(ChildProcessError):
        if process is not None:
            os.waitpid(process, 0)
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def main() -> None:
    """The program: the whole life of the process."""
    if _DETACH in sys.argv[1:] and os.fork():
        os._exit(0)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    Supervisor(receive_handover()).run(replace=_REPLACE in sys.argv[1:])


if __name__ == "__main__":
    main()
