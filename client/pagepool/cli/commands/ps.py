"""``pagepool ps``: what containers run, and which have ended."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from pagepool.cli import output, roots
from pagepool.cli.containers import LEAST_ID, describe, ended_at, known_containers, show_age
from pagepool.cli.options import output_options
from pagepool.container import list_containers
from pagepool.container.records import CREATED, RUNNING, STATUSES

if TYPE_CHECKING:
    from pagepool.container import Record

_COMMAND = 30

_Wanted = Callable[["Record"], bool]


class _Filter(click.ParamType):  # type: ignore[type-arg] # not generic before click 8.2
    """Which containers are wanted, as docker's ``--filter``."""

    name = "filter"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> _Wanted:
        kind, _, wanted = str(value).partition("=")
        if kind not in ("label", "name", "id", "status") or not wanted:
            self.fail(f"{value!r} is none of label=KEY[=VALUE], name=PART, id=BEGINNING and status=WORD", param, ctx)
        if kind == "status":
            if wanted not in STATUSES:
                self.fail(f"{wanted!r} is none of {', '.join(STATUSES)}", param, ctx)
            return lambda record: record.status == wanted
        if kind == "name":
            return lambda record: wanted in record.name
        if kind == "id":
            return lambda record: record.id.startswith(wanted)
        key, equals, text = wanted.partition("=")
        return lambda record: key in record.labels and (not equals or record.labels[key] == text)


@click.command(name="ps", short_help="List containers that run.")
@click.option("-a", "--all", "everything", is_flag=True, help="Also those that have ended, and dead ones.")
@click.option(
    "-f",
    "--filter",
    "filters",
    multiple=True,
    type=_Filter(),
    metavar="KEY=VALUE",
    help="Only those with label=KEY[=VALUE], name=PART, id=BEGINNING or status=WORD; several: all of it.",
)
@output_options
def command(everything: bool, filters: tuple[_Wanted, ...]) -> None:
    """List the containers of `pagepool run` on this machine, the oldest first.

    PID is the container's first process. With --quiet only ids. With --all also the last 200 that have ended in the
    background: exited, with the exit code, or killed, if their `pagepool run` was, and nobody knows how they ended.
    They are dead until the next `pagepool run` finds that out.

    \b
    Examples:
      pagepool ps
      pagepool ps -q
      pagepool ps --filter label=job=nightly
      pagepool ps --all --filter status=exited
      pagepool ps --all --json
    """
    found = known_containers() if everything else list_containers(roots.containers_directory(), output.warn_of)
    records = [record for record in found if everything or record.status in (CREATED, RUNNING)]
    records = [record for record in records if all(wanted(record) for wanted in filters)]
    if output.current().json:
        output.print_json({"containers": [_row(record) for record in records]})
    elif output.current().quiet:
        output.print_lines(record.id for record in records)
    else:
        headers = ("CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PID", "PORTS", "NAME")
        output.print_table(headers, [_cells(record) for record in records], right=(5,))


def _row(record: Record) -> dict[str, Any]:
    return asdict(record) | {
        "command": list(record.command),
        "pid": record.pid or None,
        "owner": record.owner or None,
        "name": record.name or None,
        "ended_at": ended_at(record),
    }


def _cells(record: Record) -> tuple[str, ...]:
    words = shlex.join(record.command)
    return (
        record.id[:LEAST_ID],
        record.image,
        words if len(words) <= _COMMAND else f"{words[: _COMMAND - 1]}…",
        show_age(record.created_s),
        describe(record),
        str(record.pid or "-"),
        ", ".join(record.ports) or "-",
        record.name or "-",
    )
