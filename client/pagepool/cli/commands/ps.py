"""``pagepool ps``: what containers run."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from pagepool.cli import output, roots
from pagepool.cli.options import output_options
from pagepool.container import list_containers
from pagepool.container.records import DEAD

if TYPE_CHECKING:
    from pagepool.container import Record

_SHOWN = 12
_COMMAND = 30
_UNITS = ((86400 * 2, 86400, "days"), (3600 * 2, 3600, "hours"), (120, 60, "minutes"), (0, 1, "seconds"))

_Wanted = Callable[["Record"], bool]


class _Filter(click.ParamType):  # type: ignore[type-arg] # not generic before click 8.2
    """Which containers are wanted, as docker's ``--filter``."""

    name = "filter"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> _Wanted:
        kind, _, wanted = str(value).partition("=")
        if kind not in ("label", "name", "id") or not wanted:
            self.fail(f"{value!r} is none of label=KEY[=VALUE], name=PART and id=BEGINNING", param, ctx)
        if kind == "name":
            return lambda record: wanted in record.name
        if kind == "id":
            return lambda record: record.id.startswith(wanted)
        key, equals, text = wanted.partition("=")
        return lambda record: key in record.labels and (not equals or record.labels[key] == text)


@click.command(name="ps", short_help="List containers that run.")
@click.option("-a", "--all", "everything", is_flag=True, help="Also dead ones: those whose `pagepool run` was killed.")
@click.option(
    "-f",
    "--filter",
    "filters",
    multiple=True,
    type=_Filter(),
    metavar="KEY=VALUE",
    help="Only those with label=KEY[=VALUE], name=PART or id=BEGINNING; several: all of it.",
)
@output_options
def command(everything: bool, filters: tuple[_Wanted, ...]) -> None:
    """List the containers of `pagepool run` on this machine, the oldest first.

    PID is the container's first process. With --quiet only ids. A container that has ended is gone, and not listed;
    `pagepool stop` ends one.

    \b
    Examples:
      pagepool ps
      pagepool ps -q
      pagepool ps --filter label=job=nightly
      pagepool ps --all --json
    """
    records = [
        record for record in list_containers(roots.containers_directory()) if everything or record.status != DEAD
    ]
    records = [record for record in records if all(wanted(record) for wanted in filters)]
    if output.current().json:
        output.print_json({"containers": [_row(record) for record in records]})
    elif output.current().quiet:
        output.print_lines(record.id for record in records)
    else:
        headers = ("CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PID", "PORTS", "NAME")
        output.print_table(headers, [_cells(record) for record in records], right=(5,))


def _row(record: Record) -> dict[str, Any]:
    return asdict(record) | {"command": list(record.command), "pid": record.pid or None, "name": record.name or None}


def _cells(record: Record) -> tuple[str, ...]:
    words = shlex.join(record.command)
    return (
        record.id[:_SHOWN],
        record.image,
        words if len(words) <= _COMMAND else f"{words[: _COMMAND - 1]}…",
        _age(time.time() - record.created_s),
        record.status,
        str(record.pid or "-"),
        ", ".join(record.ports) or "-",
        record.name or "-",
    )


def _age(seconds: float) -> str:
    size, unit = next((size, unit) for least, size, unit in _UNITS if seconds >= least or not least)
    return f"{max(0, int(seconds // size))} {unit} ago"
