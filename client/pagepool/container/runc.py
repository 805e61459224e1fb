"""Runs containers by runc: ``runc run`` in the foreground, with its state in a directory of ours; and ``runc exec``.

Without a terminal runc copies between our input and output and pipes that the container has. With one that is ours,
runc has it directly, and does everything: raw mode, window size. With a terminal that nobody types at
(``-t`` alone) runc gets one of ours, and we carry what is shown.

runc says why a container could not be started in a log of ours, and on the container's standard error as well
(`lookup` spares most of that). Where that is ours, too, our error says so.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import termios
from typing import TYPE_CHECKING, Final

from pagepool.container.finding import open_descendant
from pagepool.container.options import OptionInvalidError
from pagepool.container.process import Task, close_all, container_error, exit_code, standard_input
from pagepool.errors import ContainerError

if TYPE_CHECKING:
    from pathlib import Path

_TIMEOUT_S: Final = 30.0
_NOT_FOUND: Final = ("executable file not found", "no such file or directory")
_NOT_EXECUTABLE: Final = ("permission denied", "exec format error", "is a directory")


def find_runc(search: str | None = None) -> str | None:
    """The program, if it is installed.

    Args:
        search: directories as in $PATH; None: those of this process.
    """
    # As `shutil.which`, which would be loaded for every container.
    for directory in os.get_exec_path() if search is None else search.split(os.pathsep):
        program = f"{directory}/runc" if directory else "runc"
        if os.path.isfile(program) and os.access(program, os.X_OK):  # noqa: PTH113 - likewise
            return program
    return None


def _pass_through(terminal: int) -> None:
    """Have a terminal leave the ends of lines as they are. They come from another one, the program's, which adds a CR
    to each until runc tells it not to; that may be after the program has begun to write, and then there were two."""
    attributes = termios.tcgetattr(terminal)
    attributes[1] &= ~termios.ONLCR
    termios.tcsetattr(terminal, termios.TCSANOW, attributes)


class _Runc:
    """See `process.Running`. The child is runc, which stays as long as the program does.

    Args:
        program: runc.
        state: where it keeps its own.
        words: what it is to do.

    Raises:
        OptionInvalidError: see `check_text`.
        ContainerError: runc cannot be started.
    """

    def __init__(self, program: str, state: Path, task: Task, *words: str) -> None:
        check_text(task.config)
        self._command = [program, "--root", str(state)]
        self._task = task
        self._pid_file = task.bundle / "pid"
        self._log = task.bundle / "log"
        self.pid = 0
        self.started = False
        self.status: int | None = None
        self.master: int | None = None
        self._process = self._start(*words)
        self.child = self._process.pid

    def _start(self, action: str, *options: str) -> subprocess.Popen[bytes]:
        words = ["--log", str(self._log), "--log-format", "json", action]
        words += [*options, "--pid-file", str(self._pid_file), self._task.id]
        slave: int | None = None
        if self._task.terminal and not self._task.direct:
            self.master, slave = os.openpty()
            _pass_through(slave)
            self._size(slave)
        try:
            # Of another process group, or Ctrl-C would reach it twice; but who reads a terminal must be in front.
            return subprocess.Popen(
                [*self._command, *words],
                stdin=slave if slave is not None else None if self._task.direct else standard_input(self._task),
                stdout=slave,
                stderr=slave,
                process_group=None if self._task.direct else 0,
            )
        except OSError as error:
            close_all(self.master)
            raise ContainerError(f"{self._command[0]} cannot be started: {error.strerror}") from error
        finally:
            close_all(slave)

    def _size(self, slave: int) -> None:
        """runc takes over the size of the terminal that it is given."""
        if size := self._task.config["process"].get("consoleSize"):
            termios.tcsetwinsize(slave, (size["height"], size["width"]))

    def on_status(self) -> None:
        """Look whether the container has a process now."""
        with contextlib.suppress(OSError, ValueError):
            self.pid = int(self._pid_file.read_text())
            self.started = True

    def send(self, number: int) -> None:
        """runc hands every signal on."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.child, number)

    def finish(self) -> int:
        """What runc ended with, which is what the program did, unless the log says it was never started."""
        returncode = self._process.wait()
        self.on_status()
        reason = self._reason()
        if self.started or not reason:
            return exit_code(returncode)
        code = 125
        if '": ' in reason and "exec: " in reason:
            code = 127 if any(words in reason for words in _NOT_FOUND) else code
            code = 126 if any(words in reason for words in _NOT_EXECUTABLE) else code
        error = container_error(reason, code)
        error.told = self.master is None
        raise error

    def close(self) -> None:
        """End runc, if it has not."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
        close_all(self.master)

    def _reason(self) -> str:
        try:
            lines = self._log.read_text(errors="replace").splitlines()
        except OSError:
            return ""
        for line in reversed(lines):
            with contextlib.suppress(ValueError, AttributeError):
                entry = json.loads(line)
                if entry.get("level") in ("error", "fatal"):
                    return str(entry.get("msg", "")).removeprefix("runc run failed: ").removeprefix("exec failed: ")
        return ""


class RuncContainer(_Runc):
    """A container of runc."""

    def __init__(self, program: str, state: Path, task: Task) -> None:
        self._state = state / task.id
        super().__init__(program, state, task, "run", "--bundle", str(task.bundle))

    def kill(self) -> None:
        """By runc; and runc too, if it does not end by itself."""
        subprocess.run(
            [*self._command, "kill", "--all", self._task.id, "KILL"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_TIMEOUT_S,
            check=False,
        )

    def close(self) -> None:
        """Delete the container, if runc could not."""
        if self._process.poll() is None:
            delete(self._command[0], self._state)
        super().close()
        if self._state.exists():
            delete(self._command[0], self._state)


class RuncExec(_Runc):
    """A program in a container of runc: what it is, is in ``process.json``."""

    def __init__(self, program: str, state: Path, task: Task) -> None:
        path = task.bundle / "process.json"
        path.write_text(json.dumps(task.config["process"]))
        super().__init__(program, state, task, "exec", "--process", str(path))

    def kill(self) -> None:
        """The program; runc ends with it."""
        process = open_descendant(self.pid, self.child) if self.started else None
        if process is None:
            self._process.send_signal(signal.SIGKILL)
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(process, signal.SIGKILL)
        os.close(process)

    def close(self) -> None:
        """End the program, if it has not."""
        if self._process.poll() is None:
            self.kill()
        super().close()


def check_text(config: object) -> None:
    """Refuse a configuration with bytes in it that are no UTF-8. JSON has none, and runc would take others for them.

    Raises:
        OptionInvalidError: an argument, a variable, a path or another text has such bytes.
    """
    if isinstance(config, str):
        try:
            config.encode()
        except UnicodeEncodeError:
            raise OptionInvalidError(config, "runc takes only UTF-8; --runtime own takes any bytes") from None
    elif isinstance(config, dict):
        check_text([*config, *config.values()])
    elif isinstance(config, list):
        for value in config:
            check_text(value)


def delete(program: str, state: Path) -> None:
    """End a container and remove all of it that runc knows.

    Args:
        state: of this container, below runc's ``--root``.
    """
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(
            [program, "--root", str(state.parent), "delete", "--force", state.name],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_TIMEOUT_S,
            check=False,
        )
