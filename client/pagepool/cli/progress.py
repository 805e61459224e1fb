"""Progress of long work: bars on a terminal, silence elsewhere. Only standard error is used."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from pagepool.cli.state import current

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from pagepool.digest import Digest
    from pagepool.oci import Descriptor


_A_WHILE_S: Final = 0.5
_FETCHING: Final = "fetching"


@dataclass(slots=True)
class Counter:
    """Counts what was copied. Called by several threads.

    Args:
        total: how many blobs there are.
        copied: how many were transferred.
        size: bytes of those.
    """

    total: int = 0
    copied: int = 0
    size: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def begin(self, blobs: Sequence[Descriptor]) -> None:
        """Hear of all blobs."""
        self.total = len(blobs)

    def progress(self, blob: Descriptor, count: int) -> None:
        """Nothing to count before a blob is over there."""

    def finish(self, blob: Descriptor, copied: bool) -> None:
        """Count a blob."""
        with self._lock:
            self.copied += copied
            self.size += blob.size if copied else 0


class _Bars(Counter):
    """A counter that also draws a bar for each blob on its way, and one for all."""

    def __init__(self, verb: str) -> None:
        super().__init__()
        # Imported only here: it takes longer than all else that the program needs at its start.
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

        columns = (TextColumn("{task.description:<14}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        self.bars = Progress(*columns, console=Console(stderr=True), transient=True)
        self._all = self.bars.add_task(verb, total=None)
        self._tasks: dict[Digest, object] = {}

    def begin(self, blobs: Sequence[Descriptor]) -> None:
        """Hear of all blobs."""
        super().begin(blobs)
        self.bars.update(self._all, total=sum(blob.size for blob in blobs))

    def progress(self, blob: Descriptor, count: int) -> None:
        """Move the bars."""
        with self._lock:
            if blob.digest not in self._tasks:
                self._tasks[blob.digest] = self.bars.add_task(blob.digest.short, total=blob.size)
            self.bars.advance(self._tasks[blob.digest], count)  # type: ignore[arg-type]
            self.bars.advance(self._all, count)

    def finish(self, blob: Descriptor, copied: bool) -> None:
        """Take the blob's bar away."""
        super().finish(blob, copied)
        with self._lock:
            task = self._tasks.pop(blob.digest, None)
            if task is not None:
                self.bars.remove_task(task)  # type: ignore[arg-type]
            elif not copied:
                self.bars.advance(self._all, blob.size)


@contextmanager
def transfer(verb: str) -> Iterator[Counter]:
    """Watch a copy, for the length of the block.

    Args:
        verb: what is being done, for people: "pushing".
    """
    if not _visible():
        yield Counter()
        return
    bars = _Bars(verb)
    with bars.bars:
        yield bars


@contextmanager
def counting(verb: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """Show how many bytes of something are done; the function given is told of more.

    Args:
        verb: what is being done: "copying".
        total: bytes in all, if that is known.
    """
    if not _visible():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description:<14}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(verb, total=total)
        yield lambda count: bars.advance(task, count)


class Fetching:
    """What an image's mount waits for. Shown from `begin` on; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bars: Progress | None = None
        self._task: TaskID | None = None
        self._is_over = False

    def begin(self) -> None:
        """Show it, unless that is done already, or it is over."""
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with self._lock:
            if self._bars is None and not self._is_over:
                self._bars = Progress(*columns, console=Console(stderr=True), transient=True)
                self._task = self._bars.add_task(_FETCHING, total=None)
                self._bars.start()

    def making(self, seconds: int) -> None:
        """For so long the service has been putting the image's tree together."""
        self.begin()
        self._update(description=f"the service is putting this image's tree together: {seconds} s")

    def count(self, size: int) -> None:
        """So many bytes of the image have come."""
        self._update(description=_FETCHING, advance=size)

    def end(self) -> None:
        """Show nothing any more."""
        with self._lock:
            self._is_over = True
            if self._bars is not None:
                self._bars.stop()

    def _update(self, **changes: Any) -> None:
        with self._lock:
            if self._bars is not None and self._task is not None:
                self._bars.update(self._task, **changes)


@contextmanager
def fetching(*, at_once: bool) -> Iterator[Fetching]:
    """Show what comes of an image, and what is waited for before that.

    Args:
        at_once: from the beginning; else once it takes a while: what is over by then was worth no bar, and no loading
            of it.
    """
    shown = Fetching()
    timer = threading.Timer(0.0 if at_once else _A_WHILE_S, shown.begin)
    timer.daemon = True
    if _visible():
        timer.start()
    else:
        shown.end()
    try:
        yield shown
    finally:
        timer.cancel()
        shown.end()


@contextmanager
def making() -> Iterator[Callable[[int], None]]:
    """Show for how long the service has been putting an image's tree together, if it does; the function is told."""
    shown = Fetching()
    if not _visible():
        shown.end()
    try:
        yield shown.making
    finally:
        shown.end()


@contextmanager
def spinner(text: str) -> Iterator[Callable[[str], None]]:
    """Show that something is waited for; the function given changes the text."""
    if not _visible():
        yield lambda _: None
        return
    from rich.console import Console

    from pagepool.cli import output

    with Console(stderr=True).status(output.printable(text)) as status:
        yield lambda changed: status.update(output.printable(changed))


def _visible() -> bool:
    return sys.stderr.isatty() and not current().quiet


@contextmanager
def watching() -> Iterator[Callable[[str, float], None]]:
    """Show how far something is, with words that change; the function given is told both, the part from 0 to 1."""
    if not _visible():
        yield lambda _words, _part: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from pagepool.cli import output

    columns = (BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("", total=1.0)
        yield lambda words, part: bars.update(task, description=output.printable(words), completed=part)
