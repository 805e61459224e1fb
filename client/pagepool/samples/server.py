"""A service for a while: `pagepool serve` in a process of its own, on a port of the loopback interface.

It dies with the process that started it, whatever becomes of that.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from select import select
from typing import IO

from pagepool.errors import UnreachableError

_START_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 20.0
_READY = re.compile(rb"serving on (http://\S+)\s")
_LOG_LINES = 5
_MAIN = (
    "import sys; from pagepool.linux.processes import die_with_parent; die_with_parent(int(sys.argv.pop(1)));"
    " from pagepool.cli import main; main()"
)


@dataclass(frozen=True, slots=True)
class RunningService:
    """A service that was started.

    Args:
        url: where it is.
        pid: its first process.
    """

    url: str
    pid: int


@contextmanager
def running_service(
    data: Path, log: Path, environment: Mapping[str, str], cache: Path | None = None, *, alone: bool = False
) -> Iterator[RunningService]:
    """Run a service for the length of the block. Its packages must be installed.

    Args:
        data: its data directory.
        log: file for what it logs.
        environment: of its process; its own settings (PAGEPOOL_*) should not be among it.
        cache: its pool; None: a directory beside `data`.
        alone: whether it is in a session of its own, which Ctrl-C on this terminal does not reach.

    Yields:
        The service, when it takes requests.

    Raises:
        UnreachableError: it did not start, or failed in the end; with the last it logged.
    """
    arguments = ["serve", "--data", str(data), "--listen", "127.0.0.1:0", "--log-level", "warning"]
    arguments += ["--cache-dir", str(cache or data.with_name("cache"))]
    command = [sys.executable, "-P", "-c", _MAIN, str(os.getpid()), *arguments]
    with (
        log.open("wb") as errors,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=dict(environment),
            start_new_session=alone,
        ) as process,
    ):
        assert process.stdout is not None
        try:
            yield RunningService(_wait_ready(process.stdout, log), process.pid)
            process.send_signal(signal.SIGTERM)
            status = process.wait(_STOP_TIMEOUT_S)
        finally:
            process.kill()
        if status != 0:
            raise UnreachableError("the service", f"it ended with status {status}{_tail(log)}")


def _wait_ready(output: IO[bytes], log: Path) -> str:
    """Read what the service prints until it says where it is."""
    deadline = time.monotonic() + _START_TIMEOUT_S
    printed = b""
    while (left := deadline - time.monotonic()) > 0:
        if not select([output], [], [], left)[0]:
            break
        piece = os.read(output.fileno(), 4096)
        printed += piece
        if found := _READY.search(printed):
            return found[1].decode()
        if not piece:
            raise UnreachableError("the service", f"it did not start{_tail(log)}")
    raise UnreachableError("the service", f"it did not start within {_START_TIMEOUT_S:.0f} s{_tail(log)}")


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
    return "".join(f"; {line}" for line in lines)
