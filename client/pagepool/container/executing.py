"""Runs a program in a container that runs already: `exec_in_container`.

What it needs on the host is in a directory within the container's own (`records`), and is gone when `exec_in_container`
returns or raises; whatever is left by a process that was killed goes with the container, or after it. The container's
end is its end. When the process that called `exec_in_container` is killed, the program goes on with runc, and is killed
without.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pagepool.container import runc
from pagepool.container.attending import Attendance, has_input_terminal, size_terminal, watch_signals
from pagepool.container.finding import ContainerUnknownError, open_inside
from pagepool.container.lookup import check_program
from pagepool.container.options import OptionInvalidError
from pagepool.container.plan import HOME
from pagepool.container.process import Task
from pagepool.container.records import DEFAULT_DIRECTORY, EXEC, Record, remove_directory
from pagepool.container.rootfiles import read_file
from pagepool.container.users import find_user
from pagepool.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pagepool.container.process import Running


@dataclass(frozen=True, slots=True)
class ExecOptions:
    """What to run in a container. What is not said is as it is for the container's own program.

    Args:
        command: the program and its arguments.
        env: ``NAME=value``, or ``NAME`` to have a variable removed. The last of a name counts.
        user: user, or user:group, by name or number.
        workdir: absolute, and there; where the program starts.
        tty: whether it gets a terminal.
        interactive: whether it gets our standard input; /dev/null otherwise.
    """

    command: tuple[str, ...]
    env: tuple[str, ...] = ()
    user: str | None = None
    workdir: str | None = None
    tty: bool = False
    interactive: bool = False


def exec_in_container(
    record: Record,
    options: ExecOptions,
    *,
    directory: Path = DEFAULT_DIRECTORY,
    started: Callable[[int], None] | None = None,
) -> int:
    """Run a program in a container, and wait for its end.

    It has the namespaces, control groups, capabilities and limits of the container's own program. Input and output are
    this process's own; signals are handed on as by `run_container`.

    Args:
        record: of a container that runs.
        directory: where it is noted.
        started: called once, when the program runs, with the number that it has on the host.

    Returns:
        the program's exit code; 128 and its number if a signal killed it.

    Raises:
        ContainerUnknownError: the container has ended.
        BusyError: it does not run yet.
        ContainerError: the program could not be started; its subclasses say more.
        InvalidError: an option, or a user, cannot be used.
        UnsupportedError: runc, which runs it, is not there any more, or we are not root.
    """
    if os.geteuid() != 0:
        raise UnsupportedError("running programs in containers needs root")
    if options.workdir and not options.workdir.startswith("/"):
        raise OptionInvalidError(options.workdir, "the working directory has to be absolute")
    direct = has_input_terminal(tty=options.tty, interactive=options.interactive)
    with contextlib.ExitStack() as undo:
        first, root = open_inside(record, directory, undo)
        config = _read(record, directory)
        # Only where they are needed: the container may have anything in their place.
        tables = (read_file(root, path) if options.user else b"" for path in ("/etc/passwd", "/etc/group"))
        config["process"] = plan_exec(config, options, *tables)
        if options.tty:
            size_terminal(config["process"])
        task = Task(
            record.id, undo.enter_context(_work(record, directory)), config, options.tty, options.interactive, direct
        )
        (task.bundle / "config.json").write_text(json.dumps(config))
        watch = undo.enter_context(watch_signals())
        running = _start(record, task, directory, first, root)
        undo.callback(running.close)
        return Attendance(running, task, watch, started).to_the_end()


def plan_exec(config: Mapping[str, Any], options: ExecOptions, passwd: bytes, group: bytes) -> dict[str, Any]:
    """The ``process`` of runtime-spec for a program in a container. Pure.

    Args:
        config: of the container.
        passwd: its /etc/passwd.
        group: its /etc/group.

    Raises:
        OptionInvalidError: there is no command.
        UserInvalidError: the container does not have the user.
    """
    if not options.command or not options.command[0]:
        raise OptionInvalidError("", "say what is to be run in the container")
    own = config["process"]
    values = dict(text.split("=", 1) for text in own["env"])
    user = own["user"]
    if options.tty:
        values.setdefault("TERM", "xterm")
    if options.user:
        found = find_user(options.user, passwd, group)
        user = {**user, "uid": found.uid, "gid": found.gid, "additionalGids": list(found.groups)}
        if config["annotations"].get(HOME):
            values["HOME"] = found.home
    for text in options.env:
        name, equals, value = text.partition("=")
        if equals:
            values[name] = value
        else:
            values.pop(name, None)
    bounding = own["capabilities"]["bounding"]
    kinds = ("bounding", "effective", "permitted") if user["uid"] == 0 else ("bounding",)
    return {name: value for name, value in own.items() if name != "consoleSize"} | {
        "terminal": options.tty,
        "user": user,
        "args": list(options.command),
        "env": [f"{name}={value}" for name, value in values.items()],
        "cwd": options.workdir or own["cwd"],
        "capabilities": {kind: list(bounding) for kind in kinds},
    }


def _read(record: Record, directory: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((directory / record.id / "bundle" / "config.json").read_text())
    except FileNotFoundError as error:
        raise ContainerUnknownError(record.name or record.id) from error
    return config


@contextlib.contextmanager
def _work(record: Record, directory: Path) -> Iterator[Path]:
    """A directory for what a program needs, within its container's."""
    work = directory / record.id / f"{EXEC}{os.urandom(8).hex()}"
    lock = -1
    try:
        work.mkdir(mode=0o700)
        lock = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError as error:  # the container has ended
        raise ContainerUnknownError(record.name or record.id) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield work
    finally:
        remove_directory(work)
        with contextlib.suppress(OSError):
            work.parent.rmdir()  # the container has ended, and its owner could not remove what we still used
        os.close(lock)


def _start(record: Record, task: Task, directory: Path, first: int, root: int) -> Running:
    if record.runtime == "own":
        from pagepool.container.own import OwnExec

        return OwnExec(task, first, root)
    program = runc.find_runc()
    if program is None:
        raise UnsupportedError("runc, which runs the container, is not installed any more")
    runc.check_text(task.config)
    check_program(root, task.config["process"])
    return runc.RuncExec(program, directory / "runc", task)
