"""Runs a container to its end: `run_container`; and cleans up after those whose process was killed: `cleanup_stale`.

Everything that a container needs on the host is in one directory of its own (`records`), and is gone when
`run_container` returns or raises. What is left by a process that was killed (SIGKILL) is found by its lock, which
nobody has any more: a container of runc goes on running until somebody calls `cleanup_stale`; one of our own dies.
The container's root is not ours: whoever made it takes it away.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from pagepool.container import runc
from pagepool.container.facts import gather_facts
from pagepool.container.options import OptionInvalidError, check_options
from pagepool.container.plan import STOP_SIGNAL, plan_runtime
from pagepool.container.process import Task
from pagepool.container.records import DEFAULT_DIRECTORY, RUNNING, Held, Record, hold, stale
from pagepool.container.runc import RuncContainer
from pagepool.errors import UnsupportedError
from pagepool.linux.signals import Signals

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from pagepool.container.options import Container
    from pagepool.container.process import Running
    from pagepool.container.terminal import Pump

RuntimeName = Literal["auto", "runc", "own"]

_FORWARDED: Final = (
    *(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT),
    *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT),
)
_ASKED_ENOUGH: Final = 3
"""So many SIGINT or SIGTERM, and the container is killed: a program that is process 1 ignores them by default."""
_LOOK_S: Final = 0.005


def run_container(
    container: Container,
    *,
    directory: Path = DEFAULT_DIRECTORY,
    runtime: RuntimeName = "auto",
    started: Callable[[Record], None] | None = None,
    grace_s: float | None = None,
) -> int:
    """Run a container, and wait for its end.

    Its input and output are this process's own. Signals that ask this process to end (and USR1, USR2, CONT, WINCH)
    go to the program instead, if this is the main thread; the third SIGINT or SIGTERM kills it.

    Args:
        directory: where containers are noted; runc's state is there, too.
        runtime: runc if it is installed, else our own; or one of them.
        started: called once, when the program runs.
        grace_s: SIGINT, SIGTERM and SIGHUP become the image's stop signal, and so many seconds later the
            container is killed. For containers in the background. None: they are handed on as they are.

    Returns:
        the program's exit code; 128 and its number if a signal killed it.

    Raises:
        ContainerError: the program could not be started; its subclasses say more.
        BusyError: a container of this id or name is running.
        InvalidError: an option, a user, or the image cannot be used.
        UnsupportedError: runc is wanted and not installed, a limit cannot be kept, or we are not root.
    """
    options = container.options
    check_options(options)
    program = _choose(runtime)
    direct = options.tty and options.interactive and os.isatty(0)
    if options.tty and options.interactive and not direct:
        raise OptionInvalidError("-it", "standard input is no terminal")
    with contextlib.ExitStack() as undo:
        held = hold(directory, container.id, options.name)
        undo.callback(held.close)
        config = plan_runtime(container, gather_facts(container, held.bundle))
        if options.tty:
            _size_terminal(config["process"])
        (held.bundle / "config.json").write_text(json.dumps(config))
        record = _record(container, config, "runc" if program else "own")
        held.write(record)
        watch = undo.enter_context(Signals((*_FORWARDED, signal.SIGWINCH)))
        task = Task(container.id, held.bundle, config, options.tty, options.interactive, direct)
        running: Running = RuncContainer(program, directory / "runc", task) if program else _own(task)
        undo.callback(running.close)
        return _Run(running, task, held, record, watch, started, grace_s).to_the_end()


def cleanup_stale(directory: Path = DEFAULT_DIRECTORY) -> list[Record]:
    """End containers whose process was killed, and remove what is left of them.

    Returns:
        what they were; their roots are still there.
    """
    found = []
    program = runc.find_runc()
    for record, held in stale(directory):
        state = directory / "runc" / record.id
        if program and state.exists():
            runc.delete(program, state)
        from pagepool.container import cgroup  # seldom wanted, as all that is imported in functions here

        cgroup.remove_groups(cgroup.groups_of(f"pagepool-{record.id}"))
        held.close()
        found.append(record)
    return found


def _size_terminal(process: dict[str, Any]) -> None:
    """Give the container's terminal the size of ours before its program runs, which may ask at once."""
    from pagepool.container import terminal

    ours = terminal.find_terminal()
    if ours is not None:
        columns, rows = os.get_terminal_size(ours)
        process["consoleSize"] = {"height": rows, "width": columns}


def _choose(runtime: RuntimeName) -> str | None:
    """The path of runc; None: our own."""
    if os.geteuid() != 0:
        raise UnsupportedError("running containers needs root")
    program = None if runtime == "own" else runc.find_runc()
    if runtime == "runc" and program is None:
        raise UnsupportedError("runc is not installed: apt-get install runc")
    return program


def _own(task: Task) -> Running:
    from pagepool.container.own import OwnContainer

    return OwnContainer(task)


def _record(container: Container, config: Mapping[str, Any], runtime: str) -> Record:
    return Record(
        id=container.id,
        name=container.options.name,
        image=container.image,
        command=tuple(config["process"]["args"]),
        root=str(container.root),
        created_s=time.time(),
        owner=os.getpid(),
        runtime=runtime,
        stop_signal=config["annotations"][STOP_SIGNAL],
    )


class _Run:
    """One container from its start to its end."""

    def __init__(
        self,
        running: Running,
        task: Task,
        held: Held,
        record: Record,
        signals: Signals,
        started: Callable[[Record], None] | None,
        grace_s: float | None,
    ) -> None:
        self._running = running
        self._task = task
        self._held = held
        self._record = record
        self._signals = signals
        self._started = started
        self._grace_s = grace_s
        self._asked = 0
        self._deadline: float | None = None
        self._pump: Pump | None = None
        self._carried = False
        self._undo = contextlib.ExitStack()

    def to_the_end(self) -> int:
        """Wait, carry bytes, hand signals on."""
        ended = os.pidfd_open(self._running.child)
        with self._undo:
            self._undo.callback(os.close, ended)
            while not self._turn(ended):
                pass
            if self._pump:
                self._pump.drain()
        # A program may have ended before it was seen to begin.
        code = self._running.finish()
        self._note()
        return code

    def _turn(self, ended: int) -> bool:
        """Wait for something to happen, and handle it; True at the end."""
        running = self._running
        wanted = {ended: select.POLLIN, self._signals.reading: select.POLLIN}
        if running.status is not None:
            wanted[running.status] = select.POLLIN
        if self._pump:
            wanted |= self._pump.interests()
        ready = _poll(wanted, self._wait_s())
        running.on_status()
        self._note()
        self._take_terminal()
        for number in self._signals.read() if self._signals.reading in ready else ():
            self._handle(number)
        if self._pump:
            for descriptor in ready & self._pump.interests().keys():
                if not self._pump.handle(descriptor):
                    self._pump = None
                    break
        if self._deadline is not None and time.monotonic() >= self._deadline:
            self._deadline = None
            running.kill()
        return ended in ready

    def _wait_s(self) -> float | None:
        if self._running.status is None and not self._running.started:
            return _LOOK_S
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def _note(self) -> None:
        """Say that it runs, once it does."""
        if self._running.started and self._record.status != RUNNING:
            self._record = replace(self._record, status=RUNNING, pid=self._running.pid)
            self._held.write(self._record)
            if self._started is not None:
                self._started(self._record)

    def _take_terminal(self) -> None:
        """Begin to carry bytes, once there is a terminal to carry them from."""
        master = self._running.master
        if master is None or self._pump or not self._task.terminal or self._carried:
            return
        self._carried = True
        from pagepool.container import terminal

        source = 0 if self._task.direct else None
        if self._task.direct:
            self._undo.enter_context(terminal.raw_mode(0))
        self._pump = terminal.Pump(master, source, 1)
        self._resize()

    def _resize(self) -> None:
        from pagepool.container import terminal

        ours = terminal.find_terminal()
        if ours is not None and self._running.master is not None:
            terminal.copy_size(ours, self._running.master)

    def _handle(self, number: int) -> None:
        if number == signal.SIGWINCH:
            if self._running.master is not None:
                self._resize()
                self._running.send(number)
            return
        if number not in _FORWARDED:
            return
        ends = number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if ends and self._grace_s is not None:
            number = parse_signal(self._record.stop_signal)
            self._deadline = self._deadline or time.monotonic() + self._grace_s
        self._asked += number in (signal.SIGINT, signal.SIGTERM)
        if self._asked >= _ASKED_ENOUGH:
            self._running.kill()
        else:
            self._running.send(number)


def parse_signal(text: str) -> int:
    """The number of a signal by its name, with or without SIG, or by its number; that of SIGTERM if it is none."""
    name = text.upper().removeprefix("SIG")
    found = getattr(signal, f"SIG{name}", None)
    if isinstance(found, signal.Signals):
        return int(found)
    return int(name) if name.isdigit() and 0 < int(name) <= 64 else int(signal.SIGTERM)


def _poll(wanted: Mapping[int, int], wait_s: float | None) -> set[int]:
    poller = select.poll()
    for descriptor, events in wanted.items():
        poller.register(descriptor, events)
    return {descriptor for descriptor, _ in poller.poll(None if wait_s is None else wait_s * 1000)}
