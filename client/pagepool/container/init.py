"""The processes of our own runtime: a keeper on the host, and the first process of the container.

    keeper    a child of `pagepool.container.own`; makes the namespace of processes and the first process, hands
              signals on, and ends as that ends
    init      process 1 of the container: makes its inside (`inside`), starts the program, hands signals on, reaps

Each is killed by the kernel when the one before it dies (PR_SET_PDEATHSIG), and with init everything in the
container: nothing is left, whoever is killed. From the change of root on init imports nothing and opens nothing, as the
root is the image's; it keeps no more capabilities than the program gets, and cannot be traced or read by it.

What happened is told over a socket, one JSON message each: ``{"pid": …}``, ``{"terminal": true}`` with the descriptor,
``{"started": true}``, or ``{"error": …, "code": 125|126|127}``.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import signal
import socket
import stat
import sys
import termios
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from pagepool.container import cgroup, inside, linux
from pagepool.container.defaults import CAPABILITY_NUMBERS
from pagepool.container.process import NOT_EXECUTABLE, NOT_FOUND

if TYPE_CHECKING:
    from collections.abc import Mapping

FAILED: Final = 125

_TERMINAL: Final = "/dev/pts/0"  # the first of a devpts that is new
_SEARCH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def main() -> NoReturn:
    """The keeper: its whole life. Arguments: the configuration, the socket, the control groups to be in."""
    told = socket.socket(fileno=int(sys.argv[2]))
    told.set_inheritable(False)
    config = json.loads(Path(sys.argv[1]).read_text())
    groups = [Path(word) for word in sys.argv[3:]]
    linux.load()
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    code = FAILED
    try:
        linux.unshare(linux.CLONE_NEWPID)
        init = os.fork()
        if init == 0:
            _init(config, groups, told)
        _tell(told, {"pid": init})
        told.close()
        _let_go()
        code = _supervise(init)
    except OSError as error:
        _tell(told, {"error": str(error), "code": FAILED})
    os._exit(code)


def _init(config: Mapping[str, Any], groups: list[Path], told: socket.socket) -> NoReturn:
    """Process 1: never returns, and raises nothing."""
    code = FAILED
    try:
        linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
        cgroup.join_groups(groups)
        inside.enter_namespaces(config)
        master = inside.make_root(config)
        _import_nothing()
        if master is not None:
            socket.send_fds(told, [b'{"terminal": true}'], [master])
            os.close(master)
        linux.keep_capabilities(_capabilities(config))
        linux.prctl(linux.PR_SET_DUMPABLE, 0)
        program = _start(config["process"], told)
        if program:
            told.close()
            _let_go()
            code = _supervise(program)
    except BaseException as error:  # noqa: BLE001 - told to who waits for it; there is nobody else to raise it to
        with contextlib.suppress(OSError):
            _tell(told, {"error": str(error) or type(error).__name__, "code": FAILED})
    os._exit(code)


def _capabilities(config: Mapping[str, Any]) -> set[int]:
    # Whoever could make nodes of devices in /dev could use any device: see `inside.make_root`.
    names = set(config["process"]["capabilities"]["bounding"]) - {"CAP_MKNOD"}
    return {CAPABILITY_NUMBERS[name] for name in names}


def _import_nothing() -> None:
    """Have no code loaded from the image, whatever is still missing."""
    sys.path[:] = []
    sys.path_hooks[:] = []
    sys.path_importer_cache.clear()
    sys.meta_path[:] = [finder for finder in sys.meta_path if "PathFinder" not in repr(finder)]


def _start(process: Mapping[str, Any], told: socket.socket) -> int:
    """Start the program, and return its number; 0 if it could not be started, which has been told then."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    program = os.fork()
    if program == 0:
        try:
            _become(process)
        except BaseException as error:  # noqa: BLE001 - the same
            code = error.args[0] if isinstance(error, _CannotRunError) else FAILED
            os.write(writing, json.dumps({"error": str(error), "code": code}).encode())
        os._exit(FAILED)
    os.close(writing)
    failure = os.read(reading, 65536)
    os.close(reading)
    told.send(failure or b'{"started": true}')
    return 0 if failure else program


class _CannotRunError(Exception):
    """A program that cannot be run: exit code, and why."""

    def __str__(self) -> str:
        return str(self.args[1])


def _become(process: Mapping[str, Any]) -> None:
    """Become the program: everything between fork and exec."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_DFL)
    os.setsid()
    user = process["user"]
    _take_output(user["uid"], terminal=process["terminal"])
    os.umask(user.get("umask", 0o022))
    entered = _enter(process["cwd"])
    os.setgroups(user.get("additionalGids", []))
    os.setresgid(user["gid"], user["gid"], user["gid"])
    os.setresuid(user["uid"], user["uid"], user["uid"])
    if not entered:
        os.chdir(process["cwd"])  # a directory that the user may enter, and root, over NFS, may not
    if process["noNewPrivileges"]:
        linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    environment = dict(text.split("=", 1) for text in process["env"])
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    _execute(process["args"], environment)


def _enter(directory: str) -> bool:
    try:
        os.chdir(directory)
    except PermissionError:
        return False
    return True


def _take_output(uid: int, *, terminal: bool) -> None:
    if terminal:
        console = os.open(_TERMINAL, os.O_RDWR)
        fcntl.ioctl(console, termios.TIOCSCTTY, 0)
        os.fchown(console, uid, -1)
        for number in (0, 1, 2):
            os.dup2(console, number)
        if console > 2:
            os.close(console)
        return
    for number in (0, 1, 2):
        # So that a user can open /dev/stdout again, where that is a pipe of ours.
        with contextlib.suppress(OSError):
            if stat.S_ISFIFO(os.fstat(number).st_mode):
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
    raise _CannotRunError(NOT_FOUND, f"{name}: not found in $PATH ({search})")


def _let_go() -> None:
    """Hold nobody's input and output: only the program's being open counts."""
    nothing = os.open("/dev/null", os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    if nothing > 2:
        os.close(nothing)


def _supervise(child: int) -> int:
    """Hand signals on to a child and reap whoever ends, until the child does.

    Returns:
        its exit code; 128 and the number of the signal that killed it.
    """
    everything = signal.valid_signals()
    while True:
        number = signal.sigwaitinfo(everything).si_signo
        if number != signal.SIGCHLD:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, number)
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


def _tell(told: socket.socket, message: Mapping[str, object]) -> None:
    with contextlib.suppress(OSError):
        told.send(json.dumps(message).encode())
