"""The processes of a program that is run in a container of our own runtime which runs already.

    keeper    a child of `pagepool.container.own`, on the host; makes its child in the container's namespace of
              processes, hands signals on, and ends as that ends
    program   enters the container's other namespaces, and becomes the program

Both can be looked into by nobody in the container, whose processes see the second one from its beginning. It has
given up everything of the host's when it executes something of the container's. The kernel kills it when the keeper
dies, unless the program has become another user by itself; and, as everything in the container, when init ends.

What happened is told as by `init`.
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
import struct
import sys
import termios
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from pagepool.container import cgroup, linux
from pagepool.container.init import drop_capabilities
from pagepool.container.inside import NAMESPACES
from pagepool.container.program import (
    FAILED,
    FILTER,
    KILL,
    describe,
    import_nothing,
    let_go,
    start_program,
    supervise,
    tell,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

_ENDED: Final = (errno.ESRCH, errno.ENOMEM)
"""What entering a namespace of processes, and forking in it, fail with when its process 1 has ended."""


def main() -> NoReturn:
    """The keeper: its whole life. Arguments: the socket, the configuration, the container's process 1, and its root."""
    told, first, root = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[3]), int(sys.argv[4])
    for descriptor in (told.fileno(), first, root):
        os.set_inheritable(descriptor, False)
    config = json.loads(Path(sys.argv[2]).read_text())
    calls = Path(sys.argv[2]).with_name(FILTER).read_bytes()
    linux.load()
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    linux.prctl(linux.PR_SET_DUMPABLE, 0)
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    code = FAILED
    try:
        linux.setns(first, linux.CLONE_NEWPID)
        program, failure = start_program(config["process"], lambda: _enter(config, calls, told, first, root))
        if failure:
            told.send(failure)
        else:
            tell(told, {"started": True, "pid": program})
            told.close()
            os.close(first)
            os.close(root)
            let_go()
            code = supervise(program, kills=KILL)
    except OSError as error:
        reason = "the container has ended" if error.errno in _ENDED else describe(error)
        tell(told, {"error": reason, "code": FAILED})
    os._exit(code)


def _enter(config: Mapping[str, Any], calls: bytes, told: socket.socket, first: int, root: int) -> int | None:
    """Be in the container, with what its programs may do; its terminal, if there is to be one."""
    import_nothing()
    cgroup.join_groups_of(first, config["linux"]["cgroupsPath"])
    flags = sum(NAMESPACES.get(one["type"], 0) for one in config["linux"]["namespaces"])
    linux.setns(first, flags)
    os.fchdir(root)
    os.chroot(".")
    os.chdir("/")
    os.close(root)
    os.close(first)
    linux.new_session_keyring()
    console = _make_terminal(config["process"], told) if config["process"]["terminal"] else None
    told.close()
    linux.filter_calls(calls)
    drop_capabilities(config)
    return console


def _make_terminal(process: Mapping[str, Any], told: socket.socket) -> int:
    master = os.open("/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_NOFOLLOW)
    found = os.fstat(master)
    if not stat.S_ISCHR(found.st_mode) or found.st_rdev != os.makedev(5, 2):
        raise OSError(errno.ENODEV, "there are no terminals in the container", "/dev/pts/ptmx")
    fcntl.ioctl(master, 0x40045431, struct.pack("i", 0))  # TIOCSPTLCK: it may be opened
    console = fcntl.ioctl(master, 0x5441, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)  # TIOCGPTPEER: by no path
    if size := process.get("consoleSize"):
        termios.tcsetwinsize(master, (size["height"], size["width"]))
    with contextlib.suppress(OSError):  # nobody listens any more
        socket.send_fds(told, [b'{"terminal": true}'], [master])
    os.close(master)
    return console
