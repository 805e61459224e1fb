"""Becoming the program of a container: what init (`init`) and who joins it (`join`) do with their last child.

For our own runtime only. From where a container's root is this process's own, nothing is imported, and what is opened
is the container's.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import resource
import signal
import stat
import sys
import termios
from typing import TYPE_CHECKING, Any, Final, NoReturn

from pagepool.container import linux
from pagepool.container.process import NOT_EXECUTABLE, NOT_FOUND, not_found

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping

FAILED: Final = 125
KILL: Final = signal.SIGRTMAX
"""What has the keeper of `join` kill its child."""

FILTER: Final = "filter"
"""The file beside ``config.json`` that has the filter of system calls; empty: there is none."""

_REASON: Final = 4096
_TERMINAL: Final = "/dev/pts/0"  # the first of a devpts that is new
_SEARCH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_UNLIMITED: Final = (1 << 64) - 1
# Their numbers, which agree on x86-64, arm64 and riscv64; Python has no names for some.
_NAMES: Final = "CPU FSIZE DATA STACK CORE RSS NPROC NOFILE MEMLOCK AS LOCKS SIGPENDING MSGQUEUE NICE RTPRIO RTTIME"
_LIMITS: Final = {f"RLIMIT_{name}": number for number, name in enumerate(_NAMES.split())}


def import_nothing() -> None:
    """Have no code loaded from the image, whatever is still missing."""
    sys.path[:] = []
    sys.path_hooks[:] = []
    sys.path_importer_cache.clear()
    sys.meta_path[:] = [finder for finder in sys.meta_path if "PathFinder" not in repr(finder)]


def start_program(process: Mapping[str, Any], prepare: Callable[[], int | None] = lambda: None) -> tuple[int, bytes]:
    """Start a program.

    Args:
        process: of runtime-spec.
        prepare: called in the program's process first. Returns the program's terminal, opened; None: it is the first
            of a devpts that is new.

    Returns:
        its number, and nothing; or what to tell of why it could not be started: ``{"error": …, "code": …}``.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC)
    program = os.fork()
    if program == 0:
        try:
            _become(process, prepare())
        except BaseException as error:  # noqa: BLE001 - told to who waits for it; there is nobody to raise it to
            code = error.args[0] if isinstance(error, _CannotRunError) else FAILED
            os.write(writing, json.dumps({"error": describe(error), "code": code}).encode())
        os._exit(FAILED)
    os.close(writing)
    failure = os.read(reading, 65536)
    os.close(reading)
    return program, failure


def describe(error: BaseException) -> str:
    """Why something failed, cut off where it would not fit into a pipe, or a message: a name may have 128 KiB."""
    return (str(error) or type(error).__name__)[:_REASON]


class _CannotRunError(Exception):
    """A program that cannot be run: exit code, and why."""

    def __str__(self) -> str:
        return str(self.args[1])


def _become(process: Mapping[str, Any], console: int | None) -> None:
    """Become the program: everything between fork and exec."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_DFL)
    os.setsid()
    user = process["user"]
    if process["terminal"]:
        _take_terminal(os.open(_TERMINAL, os.O_RDWR) if console is None else console, user["uid"])
    else:
        _take_output(user["uid"])
    os.umask(user.get("umask", 0o022))
    entered = _enter(process["cwd"])
    for one in process.get("rlimits", ()):
        _set_limit(one["type"], one["soft"], one["hard"])
    os.setgroups(user.get("additionalGids", []))
    os.setresgid(user["gid"], user["gid"], user["gid"])
    os.setresuid(user["uid"], user["uid"], user["uid"])
    if not entered:
        os.chdir(process["cwd"])  # a directory that the user may enter, and root, over NFS, may not
    check_directory(process["cwd"])
    # Becoming another user has the kernel forget it.
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    if process["noNewPrivileges"]:
        linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    environment = dict(text.split("=", 1) for text in process["env"])
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    _execute(process["args"], environment)


def _set_limit(kind: str, *limits: int) -> None:
    soft, hard = (resource.RLIM_INFINITY if one == _UNLIMITED else one for one in limits)
    try:
        resource.setrlimit(_LIMITS[kind], (soft, hard))
    except ValueError as error:  # what Python makes of EPERM
        raise OSError(errno.EPERM, f"{error}", kind) from error


def _enter(directory: str) -> bool:
    try:
        os.chdir(directory)
    except PermissionError:
        return False
    return True


def check_directory(wanted: str) -> None:
    """Refuse a working directory outside of the container, as one by ``/proc/self/fd`` could be."""
    if not linux.is_in_root():
        raise OSError(errno.EACCES, "the working directory is not in the container", wanted)


def _take_terminal(console: int, uid: int) -> None:
    fcntl.ioctl(console, termios.TIOCSCTTY, 0)
    os.fchown(console, uid, -1)
    for number in (0, 1, 2):
        os.dup2(console, number)
    if console > 2:
        os.close(console)


def _take_output(uid: int) -> None:
    """So that a user can open /dev/stdout again, where that is a pipe: not one with a name, which is a file."""
    pipe = os.pipe2(os.O_CLOEXEC)
    pipes = os.fstat(pipe[0]).st_dev
    for number in pipe:
        os.close(number)
    for number in (0, 1, 2):
        with contextlib.suppress(OSError):
            found = os.fstat(number)
            if stat.S_ISFIFO(found.st_mode) and found.st_dev == pipes:
                os.fchown(number, uid, -1)


def _execute(arguments: list[str], environment: dict[str, str]) -> NoReturn:
    name = arguments[0]
    try:
        os.execve(_look_up(name, environment.get("PATH", _SEARCH)), arguments, environment)
    except FileNotFoundError as error:
        raise _CannotRunError(NOT_FOUND, f"{name}: no such file, or its interpreter is not there") from error
    except OSError as error:
        raise _CannotRunError(NOT_EXECUTABLE, f"{name}: {error.strerror}") from error


def _look_up(name: str, search: str) -> str:
    if "/" in name:
        return name
    refused = False
    for directory in search.split(":"):
        path = f"{directory or '.'}/{name}"
        try:
            mode = os.stat(path).st_mode  # noqa: PTH116 - pathlib is slower, and looks for nothing else
        except OSError:
            continue
        if not stat.S_ISDIR(mode) and os.access(path, os.X_OK):
            return path
        refused |= not stat.S_ISDIR(mode)
    if refused:
        raise _CannotRunError(NOT_EXECUTABLE, f"{name}: {os.strerror(errno.EACCES)}")
    raise _CannotRunError(NOT_FOUND, not_found(name, search))


def let_go() -> None:
    """Hold nobody's input and output: only the program's being open counts."""
    # Not /dev/null, which may be the container's by now: a volume at /dev need not have it.
    nothing, other = os.pipe2(os.O_CLOEXEC)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    for number in {nothing, other} - {0, 1, 2}:
        os.close(number)


def supervise(child: int, kills: int = 0) -> int:
    """Hand signals on to a child and reap whoever ends, until the child does.

    Args:
        kills: a signal that is handed on as SIGKILL.

    Returns:
        its exit code; 128 and the number of the signal that killed it.
    """
    everything = signal.valid_signals()
    while True:
        number = signal.sigwaitinfo(everything).si_signo
        if number != signal.SIGCHLD:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL if number == kills else number)
            continue
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == child:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code
            if pid == 0:
                break


def tell(told: socket.socket, message: Mapping[str, object]) -> None:
    """Say what happened to whoever started us, if they are there still."""
    with contextlib.suppress(OSError):
        told.send(json.dumps(message).encode())
