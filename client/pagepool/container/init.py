"""The processes of our own runtime: a keeper on the host, and the first process of the container.

    keeper    a child of `pagepool.container.own`; makes the namespace of processes and the first process, hands
              signals on, and ends as that ends
    init      process 1 of the container: makes its inside (`inside`), starts the program, hands signals on, reaps

Each is killed by the kernel when the one before it dies (PR_SET_PDEATHSIG), and with init everything in the
container: nothing is left, whoever is killed. From the change of root on init imports nothing and opens nothing, as the
root is the image's; it keeps no more capabilities than the program gets and it needs itself, and cannot be traced or
read by it.

What happened is told over a socket, one JSON message each: ``{"pid": …}``, ``{"terminal": true}`` with the descriptor,
``{"started": true}``, or ``{"error": …, "code": 125|126|127}``.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from pagepool.container import cgroup, inside, linux
from pagepool.container.defaults import CAPABILITY_NUMBERS
from pagepool.container.program import (
    FAILED,
    FILTER,
    describe,
    import_nothing,
    let_go,
    start_program,
    supervise,
    tell,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

_OWN: Final = frozenset(
    CAPABILITY_NUMBERS[name] for name in ("CAP_CHOWN", "CAP_KILL", "CAP_SETGID", "CAP_SETUID", "CAP_SYS_RESOURCE")
)


def main() -> NoReturn:
    """The keeper: its whole life. Arguments: the socket, the configuration, the control groups to be in."""
    told = socket.socket(fileno=int(sys.argv[1]))
    told.set_inheritable(False)
    config = json.loads(Path(sys.argv[2]).read_text())
    calls = Path(sys.argv[2]).with_name(FILTER).read_bytes()
    groups = [Path(word) for word in sys.argv[3:]]
    linux.load()
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    code = FAILED
    try:
        linux.unshare(linux.CLONE_NEWPID)
        init = os.fork()
        if init == 0:
            _init(config, calls, groups, told)
        tell(told, {"pid": init})
        told.close()
        let_go()
        code = supervise(init)
    except OSError as error:
        tell(told, {"error": describe(error), "code": FAILED})
    os._exit(code)


def _init(config: Mapping[str, Any], calls: bytes, groups: list[Path], told: socket.socket) -> NoReturn:
    """Process 1: never returns, and raises nothing."""
    code = FAILED
    try:
        linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
        cgroup.join_groups(groups)
        inside.enter_namespaces(config)
        master = inside.make_root(config)
        import_nothing()
        if master is not None:
            socket.send_fds(told, [b'{"terminal": true}'], [master])
            os.close(master)
        linux.new_session_keyring()
        linux.filter_calls(calls)
        drop_capabilities(config)
        linux.prctl(linux.PR_SET_DUMPABLE, 0)
        program, failure = start_program(config["process"])
        told.send(failure or b'{"started": true}')
        if not failure:
            told.close()
            let_go()
            code = supervise(program)
    except BaseException as error:  # noqa: BLE001 - told to who waits for it; there is nobody else to raise it to
        with contextlib.suppress(OSError):
            tell(told, {"error": describe(error), "code": FAILED})
    os._exit(code)


def drop_capabilities(config: Mapping[str, Any]) -> None:
    """Keep what the container's programs may have, and what it takes to start them and to hand signals on."""
    # Whoever could make nodes of devices in /dev could use any device: see `inside.make_root`.
    names = set(config["process"]["capabilities"]["bounding"]) - {"CAP_MKNOD"}
    linux.keep_capabilities({CAPABILITY_NUMBERS[name] for name in names}, _OWN)
