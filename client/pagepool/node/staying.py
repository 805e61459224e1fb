"""A process that stands for a node, for whoever looks after processes: systemd, a container's engine.

A node needs nobody to keep it alive: its two processes start each other. But a service manager has to see one process
that is there as long as the node is, that ends it when it is told to, that says what there is to say, and that fails
when the node has died altogether, so that it is started again. That is all that is done here. If this process is killed
the node goes on, unless it is killed with it.

As the first process of a container it also takes note of the end of those that lost their parents.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Final

from pagepool.errors import BusyError, UnreachableError
from pagepool.node.ending import stop_node
from pagepool.node.handover import SUPERVISOR, WORKER, Post, is_stopped
from pagepool.node.start import ensure_node, upgrade_node

if TYPE_CHECKING:
    from collections.abc import Callable

    from pagepool.node.ending import Ended
    from pagepool.node.places import NodePlaces
    from pagepool.node.worker import WorkerOptions

_LOOK_S: Final = 0.5
_LOOKS: Final = 3
"""So often in a row neither process is there, until the node is believed to be dead."""
_MOST_AT_ONCE: Final = 1 << 20


def stay(
    places: NodePlaces,
    options: WorkerOptions,
    *,
    on_ready: Callable[[], object],
    on_log: Callable[[bytes], object],
) -> Ended | None:
    """Start a node, and stay until it has ended. SIGTERM and SIGINT end it, SIGHUP replaces its processes.

    Args:
        on_ready: called when it answers.
        on_log: given what the node writes into its log, in pieces.

    Returns:
        how it has ended; None if somebody else had it end.

    Raises:
        BusyError: it is running already.
        UnreachableError: all of its processes have died; or as `ensure_node`, which has more.
    """
    events: SimpleQueue[signal.Signals] = SimpleQueue()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _: events.put(signal.Signals(number)))
    log = _Tail(places, on_log)
    if not ensure_node(places, options):
        raise BusyError(f"the node in {places.run} is running already: pagepool node stop ends it")
    on_ready()
    absent = 0
    while True:
        log.copy()
        _reap()
        event: signal.Signals | None = None
        with suppress(Empty):
            event = events.get(timeout=_LOOK_S)
        if event == signal.SIGHUP:
            _upgrade(places, on_log)
        elif event is not None:
            ended = stop_node(places)
            log.copy()
            return ended
        absent = 0 if _is_there(places) else absent + 1
        if absent and is_stopped(places.run):
            log.copy()
            return None
        if absent >= _LOOKS:
            log.copy()
            raise UnreachableError(str(places.run), "all processes of the node have died")


def _upgrade(places: NodePlaces, on_log: Callable[[bytes], object]) -> None:
    try:
        upgrade_node(places)
    except (BusyError, UnreachableError) as error:
        on_log(f"the node's processes were not replaced: {error}\n".encode())


def _is_there(places: NodePlaces) -> bool:
    return any(Post(places.run, name).holder() is not None for name in (SUPERVISOR, WORKER))


def _reap() -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


class _Tail:
    """What is written into a node's log from now on."""

    def __init__(self, places: NodePlaces, on_log: Callable[[bytes], object]) -> None:
        self._path, self._on_log = places.log, on_log
        self._place = 0
        with suppress(OSError):
            self._place = self._path.stat().st_size

    def copy(self) -> None:
        """Hand on what is new."""
        with suppress(OSError), self._path.open("rb") as file:
            if os.fstat(file.fileno()).st_size < self._place:
                self._place = 0  # somebody has emptied it
            file.seek(self._place)
            while data := file.read(_MOST_AT_ONCE):
                self._place += len(data)
                self._on_log(data)
