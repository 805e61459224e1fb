"""What the processes of a node hand to each other: descriptors, the worker's command, and their posts.

A *post* (supervisor, worker) is a file in RUN that its process has locked by flock(2) for as long as it lives: the
kernel releases it with the last thread, whatever it died of. The lock is not taken by the one who starts, but *handed
to it*, as an open descriptor, by the one who has waited for it. So nobody can hold a post twice, whoever notices a
death first, and no moment is left in which a post seems free while somebody is on the way to it.

    supervisor.lock, worker.lock    the posts; they contain the number of the process
    beat                            the number of the worker, a count that goes on while it is well, and how far it is
    supervisor.beat                 likewise of the supervisor
    stopped                         there if the node was told to end: nobody is started any more
    supervisor.starts, worker.starts    a byte for each time that one was started, for whoever counts

What is handed over is in one variable of the environment. It is no setting: nobody sets it but this module.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pagepool.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

VARIABLE: Final = "PAGEPOOL_NODE_HANDOVER"
SUPERVISOR: Final = "supervisor"
WORKER: Final = "worker"
READY: Final = b"ready   "
STARTING: Final = b"starting"
"""Of one length: they are written over each other."""
_PULSE: Final = "supervisor.beat"
HUNG_S: Final = 15.0
START_S: Final = 60.0

MOST_LOG: Final = 16 << 20
_KEPT_LOG: Final = 1 << 20
_LONGEST_DELAY_S: Final = 30.0
_FIRST_DELAY_S: Final = 0.1
_PASSING: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_AGAIN_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Handover:
    """What a process of a node is given.

    Args:
        run: the directory RUN.
        command: the worker's.
        descriptors: what all hold, by name.
        lock: the descriptor of the post.
        hung_s: seconds without a sign of life after which a worker is replaced.
        start_s: likewise, until its first sign of life.
    """

    run: str
    command: Sequence[str]
    descriptors: Mapping[str, int]
    lock: int = -1
    hung_s: float = HUNG_S
    start_s: float = START_S

    def start(self, command: Sequence[str], lock: int, *, detaches: bool = False) -> subprocess.Popen[bytes]:
        """Start a process, and hand it everything, a post included. What it says goes to RUN/log.

        Args:
            lock: of the post. It is closed here in any case.
            detaches: whether the process gives the post to a child of its own at once, and ends.
        """
        given = replace(self, lock=lock)
        try:
            if detaches:  # before it is there: its child signs, and must be the last to
                _sign(lock, 0)
            with Path(self.run, "log").open("ab") as log:
                process = subprocess.Popen(
                    command,
                    env={**os.environ, VARIABLE: json.dumps(asdict(given))},
                    pass_fds=(*self.descriptors.values(), lock),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd="/",
                    start_new_session=True,
                )
            if not detaches:
                _sign(lock, process.pid)
        finally:
            os.close(lock)
        return process


def receive_handover() -> Handover:
    """What this process was given. Nothing of it is inherited by programs that it starts.

    Raises:
        UnsupportedError: nothing was: it was started by hand.
    """
    text = os.environ.get(VARIABLE)
    if text is None:
        raise UnsupportedError("this program is started by the supervisor of a node, and not by hand")
    handover = Handover(**json.loads(text))
    for descriptor in (*handover.descriptors.values(), handover.lock):
        os.set_inheritable(descriptor, False)
    _sign(handover.lock, os.getpid())
    return handover


def _sign(lock: int, process: int) -> None:
    """Say who has a post. In one write of one length, so that nobody reads half of it."""
    os.pwrite(lock, b"%20d\n" % process, 0)


class Post:
    """A post, seen by others than the one who has it.

    Args:
        run: the directory RUN.
        name: `SUPERVISOR` or `WORKER`.
    """

    def __init__(self, run: Path, name: str) -> None:
        self._path = run / f"{name}.lock"

    def wait(self) -> int:
        """Wait until nobody has it, and until this process may have another descriptor. Returns the locked one."""
        while True:
            try:
                return self._lock(fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in _PASSING:
                    raise
            time.sleep(_AGAIN_S)

    def take(self) -> int | None:
        """The locked descriptor, unless somebody has it."""
        try:
            return self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None

    def _lock(self, how: int) -> int:
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, how)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def holder(self) -> int | None:
        """The number of the process that has it; None: nobody has it, or has only just got it."""
        free = self.take()
        if free is not None:
            os.close(free)
            return None
        with suppress(OSError, ValueError):
            return int(self._path.read_text()) or None
        return None

    def send(self, number: signal.Signals) -> None:
        """Send a signal to whoever has it, and to nobody else."""
        process = self.holder()
        if process is None:
            return
        with suppress(ProcessLookupError):
            descriptor = os.pidfd_open(process)
            try:
                if self.holder() == process:  # it still is that process, so the descriptor is of it
                    signal.pidfd_send_signal(descriptor, number)
            finally:
                os.close(descriptor)


def shorten_log(log: Path) -> None:
    """Begin a log anew that has become large: RUN is in memory, and a service that is gone can be asked in vain for
    days. What was said last is kept beside it, if there is room."""
    with suppress(OSError):
        if log.stat().st_size <= MOST_LOG:
            return
        with suppress(OSError), log.open("rb") as file:
            file.seek(-_KEPT_LOG, os.SEEK_END)
            log.with_name(f"{log.name}.1").write_bytes(file.read(_KEPT_LOG))
        os.truncate(log, 0)  # whoever writes to it appends


def note_start(run: Path, name: str) -> None:
    """Count that a process is being started. That it cannot be counted does not matter."""
    with suppress(OSError), (run / f"{name}.starts").open("ab") as file:
        file.write(b".")


class Pulse:
    """A supervisor's signs of life: its number, and a count that goes on while it is well, in RUN/supervisor.beat.

    Args:
        run: the directory RUN.
    """

    def __init__(self, run: Path) -> None:
        self._file = os.open(run / _PULSE, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._count = 0

    def beat(self) -> None:
        """Give one."""
        self._count += 1
        self._write(os.getpid())

    def pause(self) -> None:
        """It will not give any for a while."""
        self._write(0)

    def _write(self, process: int) -> None:
        os.pwrite(self._file, b"%10d %20d\n" % (process, self._count), 0)


def read_pulse(run: Path) -> tuple[int, int]:
    """The number of the supervisor that is to give signs of life, 0 for none, and how many it has given."""
    with suppress(OSError, ValueError):
        process, count = (run / _PULSE).read_bytes().split()
        return int(process), int(count)
    return 0, 0


def count_starts(run: Path, name: str) -> int:
    """How often a process was started since the node was."""
    with suppress(OSError):
        return (run / f"{name}.starts").stat().st_size
    return 0


def is_ready(run: Path) -> bool:
    """Whether the worker that is at its post serves. Does not block, as asking it would."""
    try:
        beat = (run / "beat").read_bytes().split()
    except FileNotFoundError:
        return False
    return len(beat) == 3 and beat[2] == READY.strip() and int(beat[0]) == Post(run, WORKER).holder()


def end_processes(run: Path) -> None:
    """Have both processes end, whatever they do, and nobody started again. Does not wait for it."""
    mark_stopped(run)
    for name in (SUPERVISOR, WORKER):
        Post(run, name).send(signal.SIGTERM)


def mark_stopped(run: Path) -> None:
    """Nobody is to be started any more."""
    (run / "stopped").touch()


def is_stopped(run: Path) -> bool:
    """Whether nobody is to be started any more."""
    return (run / "stopped").exists()


def delay_s(failures: int) -> float:
    """How long to wait before another try, after so many that failed in a row."""
    return min(_LONGEST_DELAY_S, _FIRST_DELAY_S * 2.0 ** min(failures - 1, 16)) if failures else 0.0
