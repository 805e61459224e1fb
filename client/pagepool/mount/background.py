"""Serves a mount from a process of its own, which stays when the one that asked for it has ended.

`serve_in_background` starts a new interpreter, hands it how to open the file system (pickled, on its standard input),
and waits until it says on a pipe that the mount can be used, or why not. That process is nobody's child any more by
then: it has left the session of who started it, works in ``/``, and writes what it has to say to a log beside its
record. It ends when the mount is unmounted, by whomever; on SIGTERM and SIGINT it unmounts by itself. Then it closes
the file system, so that whatever that promises about a clean end is kept.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import IO, TYPE_CHECKING, Any, Final

from pagepool.errors import PagepoolError, UnreachableError
from pagepool.linux.signals import Signals
from pagepool.linux.threads import is_want_of_threads
from pagepool.mount import records
from pagepool.mount.device import MountOptions
from pagepool.mount.fuse.server import MAX_THREADS
from pagepool.mount.mountinfo import resolve
from pagepool.mount.mounts import mount_fuse, prepare_target
from pagepool.vfs.interface import FileSystem

if TYPE_CHECKING:
    from pagepool.mount.mounts import Mount
    from pagepool.mount.records import MountRecord

Opener = Callable[[], contextlib.AbstractContextManager[FileSystem]]
"""Opens what is to be served. It is called in another process: a function of a module, or a `functools.partial` of one
with arguments that can be pickled."""

_LOG_SHOWN: Final = 2000
_PROGRAM: Final = f"import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); import {__name__} as b; b.main()"


@dataclass(frozen=True, slots=True)
class _Task:
    """What the process is to do; see `mount_fuse`."""

    opener: Opener
    path: Path
    options: MountOptions
    upper: Path | None
    max_threads: int
    directory: Path


def serve_in_background(
    opener: Opener,
    path: str | os.PathLike[str],
    *,
    options: MountOptions | None = None,
    upper: Path | None = None,
    max_threads: int = MAX_THREADS,
    directory: Path | None = None,
) -> MountRecord:
    """Mount a file system that a new process opens and serves. Returns when it can be used.

    Args:
        opener: opens the file system, in the new process.
        path, options, upper, max_threads, directory: as for `mount_fuse`.

    Returns:
        the record of the mount, with the number of the process.

    Raises:
        PagepoolError, OSError: what opening or mounting raised there.
        UnreachableError: the process broke off without a word; the error has the end of its log.
    """
    options = options or MountOptions()
    directory = directory or records.default_directory()
    target = prepare_target(resolve(path))
    task = _Task(opener, target, options, None if upper is None else upper.absolute(), max_threads, directory)
    log = records.log_file(directory, target)
    # Where modules are comes first: what is to be unpickled next may be in one of them.
    words = pickle.dumps(sys.path) + pickle.dumps(task)
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as answers:
        try:
            _start(words, log, writing)
        finally:
            os.close(writing)
        answer = answers.read()
    try:
        if not answer:
            raise UnreachableError(str(target), f"its server ended: {_end_of(log)}")
        return _unwrap(pickle.loads(answer))
    except BaseException:
        records.remove_log(directory, target)
        raise


def _start(words: bytes, log: Path, writing: int) -> None:
    """Start the process, and wait until it is on its own."""
    with log.open("wb") as output:
        subprocess.run(
            [sys.executable, "-c", _PROGRAM, str(writing)],
            input=words,
            stdout=output,
            stderr=output,
            pass_fds=(writing,),
            start_new_session=True,
            check=False,
        )


def _end_of(log: Path) -> str:
    text = log.read_text(errors="replace")[-_LOG_SHOWN:].strip()
    return text.splitlines()[-1] if text else "it said nothing"


# -- answers between the two processes -------------------------------------------------------------------------------


def _wrap(error: BaseException) -> Any:
    """An error as something that can be pickled; pagepool's own take more than a message to make."""
    if isinstance(error, PagepoolError):
        return type(error), error.args, error.__dict__
    if isinstance(error, OSError) or is_want_of_threads(error):
        return error
    return RuntimeError("".join(traceback.format_exception(error)))


def _unwrap(answer: Any) -> MountRecord:
    if isinstance(answer, records.MountRecord):
        return answer
    if isinstance(answer, tuple):
        kind, arguments, state = answer
        error = kind.__new__(kind, *arguments)
        error.__dict__.update(state)
        raise error
    raise answer


# -- the process that serves -----------------------------------------------------------------------------------------


def main() -> None:
    """Serve: the whole life of the process. Reads what to do from standard input, and answers on a pipe."""
    words = sys.stdin.buffer.read()
    if os.fork():
        os._exit(0)  # who started this process goes on, and need not wait for it
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    os.chdir("/")
    with os.fdopen(int(sys.argv[1]), "wb") as answers:
        try:
            _serve(pickle.loads(words), answers)
        except BaseException as error:
            if answers.closed:
                logging.getLogger(__name__).exception("the mount ended with an error")
            else:
                pickle.dump(_wrap(error), answers)
            raise SystemExit(1) from error


def _serve(task: _Task, answers: IO[bytes]) -> None:
    """Open, mount, say so, and stay until it is unmounted or somebody wants the process to end."""
    with (
        Signals((signal.SIGTERM, signal.SIGINT)) as signals,
        task.opener() as filesystem,
        _mount(task, filesystem) as mount,
    ):
        # Before anybody is told that the mount can be used: there may be no more threads.
        Thread(target=_tell, args=(mount, signals), daemon=True).start()
        pickle.dump(records.read_record(task.directory, task.path), answers)
        answers.close()
        signals.wait()


def _mount(task: _Task, filesystem: FileSystem) -> Mount:
    return mount_fuse(
        filesystem,
        task.path,
        options=task.options,
        upper=task.upper,
        max_threads=task.max_threads,
        directory=task.directory,
    )


def _tell(mount: Mount, signals: Signals) -> None:
    """Wake the main thread when the mount is gone."""
    mount.join()
    signals.wake()
