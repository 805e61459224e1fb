"""``pagepool logs``: what a container in the background has written."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import click

from pagepool.cli import roots
from pagepool.cli.containers import complete_known, find_known
from pagepool.cli.options import output_options
from pagepool.container import ContainerUnknownError
from pagepool.container.finding import look_again
from pagepool.container.logs import read_log
from pagepool.container.records import has_ended
from pagepool.errors import UnsupportedError


@click.command(name="logs", short_help="Show what a container in the background has written.")
@click.argument("container", metavar="CONTAINER", shell_complete=complete_known)
@click.option("-f", "--follow", is_flag=True, help="Go on with what it writes, until it ends.")
@click.option("-n", "--tail", type=click.IntRange(0), metavar="N", help="The last N lines only.")
@output_options
def command(container: str, follow: bool, tail: int | None) -> None:
    """Show what CONTAINER, which `pagepool run --detach` has started, has written to its standard output and error,
    named by its name, its id, or the beginning of that.

    The last 512 KiB at least are kept, as long as `pagepool ps --all` lists the container; of one whose output goes to
    a file (--log FILE), all of it. A name means the container that runs, if one does, else the one of that name that
    ended last. Output of a container in the foreground is not kept.

    \b
    Examples:
      pagepool logs web
      pagepool logs --follow --tail 20 web
    """
    directory = roots.containers_directory()
    (record,) = find_known([container])
    name = record.name or record.id
    if not record.log:
        raise UnsupportedError(f"the output of container {name} is not kept")
    if Path(record.log).exists() and not Path(record.log).is_file():
        raise UnsupportedError(f"the output of container {name} is not kept: {record.log} is no regular file")
    with contextlib.ExitStack() as undo:
        owner: int | None = None
        if follow and record.owner:
            with contextlib.suppress(ProcessLookupError):
                owner = os.pidfd_open(record.owner)
                undo.callback(os.close, owner)
            if look_again(record, directory) is None:
                owner = None
        try:
            for data in read_log(Path(record.log), skip=record.log_begin, end=record.log_end, tail=tail, owner=owner):
                sys.stdout.buffer.write(data)
                sys.stdout.buffer.flush()
        except FileNotFoundError as error:
            if has_ended(record):
                raise
            raise ContainerUnknownError(name) from error
