"""Runs a container to its end: `run_container`; and cleans up after those whose process was killed: `cleanup_stale`.

Everything that a container needs on the host is in one directory of its own (`records`), and is gone when
`run_container` returns or raises; what is kept of one that has ended is elsewhere (`ended`). What is left by a process
that was killed (SIGKILL) is found by its lock, which nobody has any more: a container of runc goes on running until
somebody calls `cleanup_stale`; one of our own dies.
The container's root is not ours: whoever made it takes it away.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pagepool.container import runc
from pagepool.container.attending import (
    Attendance,
    Ending,
    has_input_terminal,
    parse_signal,
    size_terminal,
    watch_signals,
)
from pagepool.container.facts import gather_facts
from pagepool.container.lookup import check_program
from pagepool.container.options import HOST, NONE, check_options
from pagepool.container.plan import STOP_SIGNAL, plan_runtime
from pagepool.container.process import Task
from pagepool.container.records import (
    DEFAULT_DIRECTORY,
    EXITED,
    KILLED,
    NETWORK,
    RUNNING,
    Held,
    Record,
    hold,
    stale,
)
from pagepool.container.rootfiles import make_volumes, open_root
from pagepool.container.runc import RuncContainer
from pagepool.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any

    from pagepool.container.logs import KeptLog
    from pagepool.container.options import Container, RunOptions
    from pagepool.container.process import Running

RuntimeName = Literal["auto", "runc", "own"]


def run_container(
    container: Container,
    *,
    directory: Path = DEFAULT_DIRECTORY,
    runtime: RuntimeName = "auto",
    started: Callable[[Record], None] | None = None,
    grace_s: float | None = None,
    log: Path | None = None,
    ended: Path | None = None,
    alone: bool = False,
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
        log: a file that this process's output is appended to: it is noted. Or a directory: this process's output goes
            to a file in it from now on, of which the last part is kept as long as there is the container (`logs`).
        ended: a directory where it is noted once it has ended, if its program ever ran; then its log stays, too
            (`ended`). None: nothing is kept of it.
        alone: whether this process does nothing else, and ends then: who stops the container, or waits for it, waits
            for that, too, as its root may be taken away by then.

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
    if ended is not None:
        importlib.import_module("pagepool.container.ended")  # by its end there may be another version of it
    program = _choose(runtime)
    if program is None and "CAP_SYS_PTRACE" in options.cap_add:
        # Whoever has it could look into our own init, and open what it executes.
        raise UnsupportedError("CAP_SYS_PTRACE needs runc")
    if program is None and (partly := [one.path for one in options.devices if not {"r", "w"} <= set(one.access)]):
        # There is no device controller.
        raise UnsupportedError(f"a device that may be read only, or written only, needs runc: {partly[0]}")
    direct = has_input_terminal(tty=options.tty, interactive=options.interactive)
    with contextlib.ExitStack() as undo:
        held = hold(directory, container.id, options.name)
        undo.callback(held.close)
        watch = undo.enter_context(watch_signals())  # also while a network is made, and taken away
        attached = None
        if options.network not in (HOST, NONE):
            from pagepool.container import network

            undo.enter_context(network.reserve(options.ports))
            undo.callback(network.detach, held.directory)
            attached = network.attach(held.directory, container.id, options.network, options.ports, options.plugins)
        make_volumes(container.root, container.config.run.volumes)
        config = plan_runtime(container, gather_facts(container, held.bundle, attached))
        if options.tty:
            size_terminal(config["process"])
        (held.bundle / "config.json").write_text(json.dumps(config))
        record = _record(container, config, "runc" if program else "own")
        if attached is not None:
            record = replace(record, addresses=attached.addresses)
        record = replace(record, background=grace_s is not None, alone=alone)
        record = replace(record, ended_directory="" if ended is None else str(ended))
        kept = undo.enter_context(_keep(log, record, directory, options)) if log is not None and log.is_dir() else None
        if log is not None:
            path = kept.path if kept else log
            record = replace(record, log=str(path), log_begin=path.stat().st_size, log_kept=bool(kept))
        held.write(record)
        task = Task(container.id, held.bundle, config, options.tty, options.interactive, direct)
        if program is not None:
            _check_program(container, config)
        running: Running = RuncContainer(program, directory / "runc", task) if program else _own(task)
        undo.callback(running.close)
        ending = None if grace_s is None else Ending(parse_signal(record.stop_signal), grace_s)
        end = _End(held, record, kept, started)
        code = None
        try:
            code = Attendance(running, task, watch, end.begun, ending, kept).to_the_end()
        finally:
            end.note(code)
        return code


def cleanup_stale(directory: Path = DEFAULT_DIRECTORY) -> list[Record]:
    """End containers whose process was killed, and remove what is left of them, but for what is kept of containers that
    have ended.

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
        if (held.directory / NETWORK).exists():
            from pagepool.container import network

            network.detach(held.directory)
        if not _note_end(record, held.told()) and record.log_kept:
            Path(record.log).unlink(missing_ok=True)
        held.close()
        found.append(record)
    return found


class _End:
    """Notes that a container's program has begun, and that it has ended.

    Args:
        started: called once it has begun.
    """

    def __init__(
        self, held: Held, record: Record, log: KeptLog | None, started: Callable[[Record], None] | None
    ) -> None:
        self._held = held
        self._record = record
        self._log = log
        self._started = started

    def begun(self, pid: int) -> None:
        """It has, with this number on the host."""
        self._record = replace(self._record, status=RUNNING, pid=pid)
        self._held.write(self._record)
        if self._started is not None:
            self._started(self._record)

    def note(self, code: int | None) -> None:
        """It has ended. Whatever cannot be noted is not known then, and holds up nothing.

        Args:
            code: None: with an error of ours.
        """
        if code is not None:
            self._held.tell(code)
        if _note_end(self._record, code) and self._log is not None:
            self._log.stays = True


def _note_end(record: Record, code: int | None) -> bool:
    """Note a container that has ended, if something of it is to be kept, and it ever ran. Whether it is noted."""
    if not record.ended_directory or not record.pid:
        return False
    from pagepool.container.ended import write_ended

    size = None
    with contextlib.suppress(OSError):
        size = Path(record.log).stat().st_size if record.log and not record.log_kept else None
    status = KILLED if code is None else EXITED
    past = replace(record, owner=0, pid=0, root="", addresses=(), ports=(), status=status, exit_code=code)
    try:
        write_ended(replace(past, ended_s=time.time(), log_end=size))
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _keep(directory: Path, record: Record, containers: Path, options: RunOptions) -> Iterator[KeptLog]:
    from pagepool.container.logs import KeptLog

    ended = Path(record.ended_directory) if record.ended_directory else None
    # A terminal's other side is ours already.
    log = KeptLog(directory, record.id, containers, ended, piped=record.runtime == "own" and not options.tty)
    try:
        log.take_output()
        yield log
    finally:
        log.close()


def _choose(runtime: RuntimeName) -> str | None:
    """The path of runc; None: our own."""
    if os.geteuid() != 0:
        raise UnsupportedError("running containers needs root")
    program = None if runtime == "own" else runc.find_runc()
    if runtime == "runc" and program is None:
        raise UnsupportedError("runc is not installed: apt-get install runc")
    return program


def _check_program(container: Container, config: Mapping[str, Any]) -> None:
    """See `check_program`; what the user mounts may have the program, or be on the way to it."""
    runc.check_text(config)
    if not container.options.volumes and not container.options.tmpfs:
        with open_root(container.root) as root:
            check_program(root, config["process"])


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
        stop_timeout_s=container.options.stop_timeout_s,
        network=container.options.network,
        ports=tuple(map(str, container.options.ports)),
        labels={**container.config.run.labels, **dict(container.options.labels)},
    )
