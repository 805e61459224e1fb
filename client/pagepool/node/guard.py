"""The worker's side of a node's two processes: the descriptors, signs of life, and a supervisor at any time.

See `handover` for how the two hold on to each other, and `supervisor` for what becomes of a worker.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread
from typing import Final

from pagepool.node.handover import (
    READY,
    STARTING,
    SUPERVISOR,
    Post,
    delay_s,
    is_stopped,
    mark_stopped,
    read_pulse,
    receive_handover,
)
from pagepool.node.supervisor import start_supervisor

_BEATS: Final = 16
"""In the time after which a worker that gives no sign of life is replaced."""
_LONG_ENOUGH_S: Final = 5.0
"""A supervisor that has lived so long has not died of itself."""
_FREE_TRIES: Final = 5

_log = logging.getLogger(__name__)


class Guard:
    """Keeps a worker at its post, and a supervisor beside it. One for each process, made first of all.

    Args:
        run: the directory RUN; what was handed over knows better, and only a test would differ.
        check: called before each sign of life that is given by itself: if it raises, returns False or does not return,
            the worker is replaced in the end. None: it is enough that threads run.

    Raises:
        UnsupportedError: this process was not started by a supervisor.
    """

    def __init__(self, run: Path | None = None, *, check: Callable[[], bool] | None = None) -> None:
        self._handover = receive_handover()
        self._run = run or Path(self._handover.run)
        self._check = check
        self._beat_file = os.open(self._run / "beat", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._count = 0
        self._is_ready = False
        self._ended = Event()
        self._pulse, self._still = (0, 0), 0
        os.register_at_fork(after_in_child=self._let_go)
        self.beat()
        Thread(target=self._watch, name="guard", daemon=True).start()
        Thread(target=self._beat_on, name="beat", daemon=True).start()

    def descriptors(self) -> dict[str, int]:
        """What was handed over. They must stay open: whoever is started next gets them from here."""
        return dict(self._handover.descriptors)

    def ready(self) -> None:
        """It serves. Until then it may take its time, as long as its threads run; from here on `check` counts."""
        self._is_ready = True
        self.beat()

    def beat(self) -> None:
        """Give a sign of life."""
        self._count += 1
        state = READY if self._is_ready else STARTING
        os.pwrite(self._beat_file, b"%10d %20d %s\n" % (os.getpid(), self._count, state), 0)

    def stop(self) -> None:
        """The node is to end, and not only this worker: neither is started again. The caller then ends the process."""
        mark_stopped(self._run)

    def _let_go(self) -> None:
        """A child that is forked, and does not become another program, must not hold the post."""
        os.close(self._handover.lock)

    def _beat_on(self) -> None:
        while not self._ended.wait(self._handover.hung_s / _BEATS):
            try:
                if self._check is None or not self._is_ready or self._check():
                    self.beat()
            except Exception:  # noqa: BLE001 - whatever it is, it is no sign of life
                _log.exception("the worker is not well")
            self._look_for_life()

    def _look_for_life(self) -> None:
        """See that the supervisor does not hang. Looks are counted, not time: a machine that slept is not mistaken."""
        pulse = read_pulse(self._run)
        self._still = self._still + 1 if pulse == self._pulse else 0
        self._pulse = pulse
        post = Post(self._run, SUPERVISOR)
        if self._still < _BEATS or not pulse[0] or post.holder() != pulse[0]:
            return
        _log.error("the supervisor has shown no sign of life for %.0f s; it is killed", self._handover.hung_s)
        self._still = 0
        post.send(signal.SIGKILL)

    def _watch(self) -> None:
        """See that there is a supervisor."""
        post, failures, since_s = Post(self._run, SUPERVISOR), 0, -_LONG_ENOUGH_S
        while True:
            lock = post.wait()
            failures = 0 if time.monotonic() - since_s > _LONG_ENOUGH_S else failures + 1
            if is_stopped(self._run):
                os.close(lock)
                return
            if failures > _FREE_TRIES:
                wait_s = delay_s(failures - _FREE_TRIES)
                _log.error("the supervisor has ended soon, %d times in a row; next try in %.1f s", failures, wait_s)
                time.sleep(wait_s)
            _log.warning("there is no supervisor; another one is started")
            since_s = time.monotonic()
            try:
                start_supervisor(self._handover, lock)
            except OSError as error:
                _log.error("the supervisor cannot be started: %s", error)
