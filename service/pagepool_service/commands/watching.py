"""A progress bar for checks of a store."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pagepool_service.store.checks import Message


@contextmanager
def watching(shown: bool) -> Iterator[Callable[[Message], None] | None]:
    """What shows the steps of a check on standard error; None if nothing is to be shown."""
    if not shown:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:>18}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("opening", total=None)

        def watch(message: Message) -> None:
            if message.kind == "stage":
                progress.update(task, description=message.name, completed=0, total=message.number or None)
            elif message.kind == "progress":
                progress.update(task, completed=message.number)

        yield watch
