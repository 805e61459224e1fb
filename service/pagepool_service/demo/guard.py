"""Work that leaves nothing behind, however it ends.

`enter` forks. The child goes on with the work, in a process group of its own; the parent only waits, with all
signals blocked, and so is never interrupted in the middle of anything. Once the child has ended, or a signal
asks for the end, the parent kills the whole group, waits until every process of it is gone, and removes the
directory. No exception can be raised at an unlucky moment, because nothing but `sigwaitinfo` sees a signal.

If the parent itself is killed the kernel kills the child, and with it all that asked to die with its parent
(`die_with_parent`). Only the directory stays then: nobody is left to remove it.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import click

from pagepool.cli.exits import CORRUPT, OK
from pagepool.errors import ImageInvalidError
from pagepool.linux.processes import die_with_parent

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_PR_SET_CHILD_SUBREAPER = 36
_SHOW_CURSOR = "\r\x1b[K\x1b[?25h"


def enter(keep: Path | None) -> Path:
    """Begin guarded work.

    Args:
        keep: what the directory is renamed to when the work has ended by itself, with a result; None: it is
            removed in any case. Must be missing or an empty directory.

    Returns:
        An empty directory for the work. Returns in the child only. To be called by the main thread of a
        process that has no other threads.

    Raises:
        ImageInvalidError: something is at `keep`.
        click.exceptions.Exit: in the parent, when the child has ended, with its exit code.
        KeyboardInterrupt: in the parent, after SIGINT.
    """
    if keep is not None:
        _check_free(keep)
    # What was ignored stays ignored (nohup): a blocked signal would come through sigwaitinfo all the same.
    ending = {number for number in _ENDING if signal.getsignal(number) != signal.SIG_IGN}
    # Everything from here to the end of the parent's part happens with signals blocked.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {*ending, signal.SIGCHLD})
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        directory = _make_directory(keep)
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        child = _fork(mask)
    except BaseException:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        raise
    if child == 0:
        return directory
    asked, code = _wait(child, ending)
    _end_group(child)
    _tidy(directory, keep if not asked and code in (OK, CORRUPT) else None, show_cursor=bool(asked))
    while signal.sigtimedwait(ending, 0):
        pass  # impatient repetitions of what has been done
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    if asked == signal.SIGINT:
        raise KeyboardInterrupt
    if asked:
        signal.signal(asked, signal.SIG_DFL)
        signal.raise_signal(asked)
    raise click.exceptions.Exit(code)


def _fork(mask: set[int | signal.Signals]) -> int:
    parent = os.getpid()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        with suppress(OSError):  # the child does it too: whoever is first, the group is there when it is needed
            os.setpgid(child, child)
        return child
    die_with_parent(parent)
    os.setpgid(0, 0)
    # A process group in the background may not write to a terminal that has `stty tostop`, unless it ignores this.
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return 0


def _wait(child: int, ending: set[signal.Signals]) -> tuple[int, int]:
    """Wait for the child's end, or for a signal that asks for it. Returns that signal, or 0, and the exit code.

    The child is left a zombie, so that its number, and with it that of its group, stays taken.
    """
    while True:
        info = signal.sigwaitinfo({*ending, signal.SIGCHLD})
        if info.si_signo != signal.SIGCHLD:
            return info.si_signo, 0
        ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is not None:
            if ended.si_code == os.CLD_EXITED:
                return 0, ended.si_status
            click.echo(f"pagepool: error: it was killed by {signal.Signals(ended.si_status).name}", err=True)
            return 0, 128 + ended.si_status


def _end_group(group: int) -> None:
    """Kill every process of a group, and wait until they are gone: we inherit those whose parents died."""
    os.killpg(group, signal.SIGKILL)
    with suppress(ChildProcessError):
        while True:
            os.waitpid(-group, 0)


def _tidy(directory: Path, keep: Path | None, *, show_cursor: bool) -> None:
    """Remove the directory, or move it to where it is kept."""
    if show_cursor and sys.stderr.isatty():
        sys.stderr.write(_SHOW_CURSOR)
        sys.stderr.flush()
    if keep is not None:
        directory.rename(keep)
        return
    shutil.rmtree(directory, ignore_errors=True)
    if directory.exists():
        click.echo(f"pagepool: warning: cannot remove {directory}", err=True)


def _check_free(keep: Path) -> None:
    if not keep.absolute().parent.is_dir():
        raise ImageInvalidError(str(keep), f"there is no directory {keep.absolute().parent}")
    if keep.is_symlink() or (keep.exists() and not (keep.is_dir() and not any(keep.iterdir()))):
        raise ImageInvalidError(str(keep), "exists: --keep names a new or empty directory")


def _make_directory(keep: Path | None) -> Path:
    """Beside the place where it is to stay, so that a rename takes it there."""
    if keep is None:
        return Path(tempfile.mkdtemp(prefix="pagepool-demo-"))
    return Path(tempfile.mkdtemp(prefix=f".{keep.name}-", dir=keep.absolute().parent))
