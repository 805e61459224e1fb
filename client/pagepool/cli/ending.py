"""Commands that clean up when they are told to end: by SIGTERM, as of `timeout`, or SIGHUP, as of a terminal's end."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

_NUMBERS = (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def cleaning_up() -> Iterator[None]:
    """Have these signals break the block off as Ctrl-C does; then the process ends by the signal, as without this.

    What was made so far and is not whole is removed on the way, and a terminal gets its cursor back. A signal that is
    ignored (`nohup`) stays so, and a second one changes nothing. For the main thread.
    """
    asked: list[int] = []

    def interrupt(number: int, _frame: object) -> None:
        if not asked:
            asked.append(number)
            raise KeyboardInterrupt

    taken = [number for number in _NUMBERS if signal.getsignal(number) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)
        if asked:
            signal.raise_signal(asked[0])
