"""``pagepool memory``: what the images of running containers take in memory, and what sharing saves."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from pagepool.cli import output
from pagepool.cli.options import output_options
from pagepool.errors import UnsupportedError
from pagepool.node.memory import measure_memory

if TYPE_CHECKING:
    from pagepool.node.memory import ContainerMemory, MemoryReport, MemorySource

_HEADERS = ("CONTAINER", "IMAGE", "MAPPED", "RESIDENT", "SHARED", "TWICE", "OWN FILES", "ON DISK")
_CLEAR = "\x1b[H\x1b[J"


@click.command(name="memory", short_help="Show what containers take in memory, and what sharing saves.")
@click.option("--watch", is_flag=True, help="Show it again and again, until interrupted.")
@click.option(
    "--interval",
    "interval_s",
    type=click.FloatRange(0.1, 3600),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="With --watch: how long to wait in between.",
)
@output_options
def command(watch: bool, interval_s: float) -> None:
    """Show, for each container, how much of its image is in memory.

    MAPPED: of its files, mapped by its processes. RESIDENT: of its image, in the page cache. SHARED: of that, what
    other containers have, too. TWICE: what is in memory a second time, because a large file was opened before it was
    whole. OWN FILES: in memory, of files it wrote. ON DISK: of its image, in the node's pool. The page cache does not
    say who read a page: what several images contain is resident for each of them. With --quiet, only the totals.

    \b
    Examples:
      pagepool memory
      pagepool memory --watch
      pagepool memory --json | jq .saved
    """
    source = open_source()
    while True:
        report = measure_memory(source.inputs())
        if watch and not output.current().json and sys.stdout.isatty():
            output.print_line(_CLEAR)
        _show(report, watch)
        if not watch:
            return
        output.flush()
        time.sleep(interval_s)


def open_source() -> MemorySource:
    """The node that runs on this machine.

    Raises:
        UnsupportedError: there is none.
    """
    raise UnsupportedError("no node runs on this machine")


def report_as_json(report: MemoryReport) -> dict[str, Any]:
    """For `--json`."""
    return {**asdict(report), "saved": report.saved}


def _show(report: MemoryReport, watch: bool) -> None:
    if output.current().json:
        if watch:
            output.print_line(json.dumps(report_as_json(report)))  # one document a line
        else:
            output.print_json(report_as_json(report))
        return
    if not output.current().quiet:
        rows = [_cells(one) for one in report.containers]
        output.print_table(_HEADERS, rows, right=range(2, len(_HEADERS)))
        output.print_line()
    size = output.human_size
    output.print_line(f"in memory, of images:      {size(report.resident):>10}")
    output.print_line(f"  shared between containers{size(report.shared):>11}")
    output.print_line(f"  held twice               {size(report.twice):>11}")
    output.print_line(f"of containers' own files:  {size(report.private):>10}")
    output.print_line(f"shared by image only:      {size(report.per_image):>10}")
    output.print_line(f"without any sharing:       {size(report.per_container):>10}")


def _cells(one: ContainerMemory) -> tuple[str, ...]:
    figures = (one.mapped, one.resident, one.shared, one.twice, one.private, one.present)
    return one.id[:12], one.image, *("-" if figure is None else output.human_size(figure) for figure in figures)
