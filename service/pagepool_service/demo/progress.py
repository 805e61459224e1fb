"""What the demo says while it runs: a finished line for each step, and on a terminal one live line below.

Finished lines are part of the report, on standard output; the live line is on standard error, and only there
if that is a terminal. Thread-safe.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from pagepool.cli import output

_CLEAR = "\r\x1b[K"
_REDRAW_S = 0.1


@dataclass(slots=True)
class Step:
    """One thing that was done.

    Args:
        title: what, in a few words.
        seconds: how long it took.
        size: bytes that went through; 0 if that says nothing.
        what: which bytes those are.
        rate_s: seconds in which they went through, if not `seconds`.
        done: whether it could be done; what could not is no step of the report.
    """

    title: str
    seconds: float = 0.0
    size: int = 0
    what: str = ""
    rate_s: float | None = None
    done: bool = True

    @property
    def rate(self) -> float | None:
        """Bytes in a second."""
        seconds = self.seconds if self.rate_s is None else self.rate_s
        return self.size / seconds if self.size and seconds > 0 else None


@dataclass(slots=True)
class Narrator:
    """Tells how the demo goes, and keeps the steps.

    Args:
        speak: whether finished lines are printed.
        live: whether the live line is shown.
    """

    speak: bool
    live: bool
    steps: list[Step] = field(default_factory=list)
    _current: Step | None = None
    _total: int = 0
    _done: int = 0
    _drawn: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def step(self, title: str, total: int = 0) -> Iterator[Step]:
        """Time a step, for the length of the block; `total` is what `advance` will add up to, 0 if not known."""
        step = Step(title)
        with self._lock:
            self._current, self._total, self._done = step, total, 0
            self._draw(0.0)
        begin = time.perf_counter()
        try:
            yield step
        finally:
            step.seconds = time.perf_counter() - begin
            self._clear()
        if step.done:
            self.steps.append(step)
            self.say(describe(step))

    def advance(self, count: int) -> None:
        """So many more bytes of the step have gone through."""
        with self._lock:
            self._done += count
            now = time.monotonic()
            if now - self._drawn >= _REDRAW_S:
                self._draw(now)

    def say(self, text: str = "") -> None:
        """Print a finished line."""
        if self.speak:
            output.print_line(text)
            output.flush()

    def _draw(self, now: float) -> None:
        if not self.live or self._current is None:
            return
        self._drawn = now
        share = f" {min(100, 100 * self._done // self._total)} %" if self._total else " ..."
        sys.stderr.write(f"{_CLEAR}  {self._current.title}{share}")
        sys.stderr.flush()

    def _clear(self) -> None:
        with self._lock:
            self._current = None
            if self.live:
                sys.stderr.write(_CLEAR)
                sys.stderr.flush()


def describe(step: Step) -> str:
    """A step as a line."""
    line = f"  {step.title:<44}{step.seconds:6.2f} s"
    if step.rate is not None:
        line += f"  {output.human_size(step.size):>9} {step.what}, {output.human_size(step.rate)}/s"
    return line
