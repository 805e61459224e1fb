"""The entry point of the program: what has to be right before anything is imported that takes time."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program and exit. The entry point of the distribution.

    What it needs is imported here, so that Ctrl-C meanwhile ends it as it does later, without a traceback.
    """
    try:
        open_streams()
        heed_children()
        from pagepool.cli.quick import main as run_and_exit

        run_and_exit(arguments)
    except KeyboardInterrupt:  # which commands make an exit code of
        sys.stderr.write("pagepool: error: interrupted\n")
        sys.exit(_INTERRUPTED)


def heed_children() -> None:
    """Have the kernel keep the exit codes of processes that are started here.

    Whoever had SIGCHLD ignored hands that on, and then there are none: programs that failed seem to have succeeded.
    """
    import signal

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def open_streams() -> None:
    """Put the null device in the place of standard streams that the caller has closed (``>&-``).

    Python has None in the place of such a stream. And the number of its descriptor must not become that of a socket
    or of a store's file, into which somebody then prints.
    """
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115 - until the program ends
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Names of any language are printed, in locales that have no letters for them, too.
        sys.stdout.reconfigure(errors="backslashreplace")
