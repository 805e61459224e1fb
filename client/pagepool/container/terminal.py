"""Terminals: our own in raw mode, and bytes carried between it and the one that a container has."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import termios
import tty
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_CHUNK: Final = 32768


def copy_size(source: int, target: int) -> None:
    """Give one terminal the size of another; nothing if either is none."""
    with contextlib.suppress(OSError):
        termios.tcsetwinsize(target, termios.tcgetwinsize(source))


def find_terminal() -> int | None:
    """The first of our standard descriptors that is a terminal."""
    return next((number for number in (0, 1, 2) if _is_terminal(number)), None)


def _is_terminal(number: int) -> bool:
    try:
        return os.isatty(number)
    except OSError:
        return False


@contextlib.contextmanager
def raw_mode(descriptor: int) -> Iterator[None]:
    """Have every key handed on, Ctrl-C too, until the block ends."""
    before = termios.tcgetattr(descriptor)
    tty.setraw(descriptor, termios.TCSANOW)
    try:
        yield
    finally:
        with contextlib.suppress(termios.error):  # it was hung up
            # What was typed ahead stays for whoever reads next.
            termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


class Pump:
    """Carries what a container's terminal shows to our output, and our input to it, as far as either can take it.

    Args:
        master: the container's terminal, the side that is not a terminal.
        source: our input; None: the container gets none.
        target: our output.
    """

    def __init__(self, master: int, source: int | None, target: int) -> None:
        self.master = master
        self.source = source
        self.target = target
        self._pending = b""
        self._is_terminal = _is_terminal(target)
        fcntl.fcntl(master, fcntl.F_SETFL, fcntl.fcntl(master, fcntl.F_GETFL) | os.O_NONBLOCK)

    def interests(self) -> dict[int, int]:
        """What to poll for: descriptor -> events."""
        wanted = {self.master: select.POLLIN | (select.POLLOUT if self._pending else 0)}
        if self.source is not None and not self._pending:
            wanted[self.source] = select.POLLIN
        return wanted

    def handle(self, descriptor: int) -> bool:
        """Carry what there is. Blocks as long as our output does.

        Returns:
            False when the container's side is closed.
        """
        if descriptor == self.source:
            self._pending = self._take()
        if self._pending:
            with contextlib.suppress(BlockingIOError):
                self._pending = self._pending[os.write(self.master, self._pending) :]
        return descriptor != self.master or self._show()

    def drain(self) -> None:
        """Show what is left, once the program has ended."""
        while self._show(wait=False):
            pass

    def _take(self) -> bytes:
        assert self.source is not None
        try:
            data = os.read(self.source, _CHUNK)
        except OSError:
            data = b""
        if not data:
            self.source = None
        return data

    def _show(self, *, wait: bool = True) -> bool:
        try:
            data = os.read(self.master, _CHUNK)
        except BlockingIOError:
            return wait
        except OSError as error:
            if error.errno != errno.EIO:  # how Linux says that nobody has the other side open
                raise
            return False
        if not data:
            return False
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self.target, view) :]
        except OSError as error:
            # A terminal of ours was hung up: the program is told of that, and ends in its own time.
            if error.errno != errno.EIO or not self._is_terminal:
                raise
        return True
