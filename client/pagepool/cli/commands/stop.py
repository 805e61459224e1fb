"""``pagepool stop``: end containers."""

from __future__ import annotations

import signal

import click

from pagepool.cli import output, roots
from pagepool.cli.containers import complete_container, describe
from pagepool.cli.options import output_options
from pagepool.cli.signals import SignalType
from pagepool.container import find_containers, stop_containers
from pagepool.container.records import has_ended


@click.command(name="stop", short_help="End containers.")
@click.argument("containers", metavar="CONTAINER...", nargs=-1, required=True, shell_complete=complete_container)
@click.option(
    "-t",
    "--time",
    "wait_s",
    type=click.FloatRange(min=0, max=86400),
    help="Seconds after which one that has not ended is killed; 0 kills at once. [its --stop-timeout, or 10]",
)
@click.option("-s", "--signal", "number", type=SignalType(), help="What to send first. [its stop signal]")
@output_options
def command(containers: tuple[str, ...], wait_s: float | None, number: int | None) -> None:
    """End containers of `pagepool run`, by ids, beginnings of ids, or names.

    Each is asked by its stop signal, all at the same time, and killed if it has not ended after --time. Names
    or ids are printed once all have ended, and nothing is left of them; `pagepool run` ends with the program's exit
    code, or 137. One that has ended already is named as such on standard error. If one is not known, none is stopped.

    \b
    Examples:
      pagepool stop web
      pagepool stop --time 60 db
      pagepool stop $(pagepool ps -q)
    """
    directory = roots.containers_directory()
    records = find_containers(containers, directory, ended=roots.ended_directory())
    over = [record for record in records if has_ended(record)]
    for one in over:
        output.note(f"container {one.name or one.id} has ended already: {describe(one)}")
    if wait_s == 0:
        number = signal.SIGKILL
    ended = stop_containers([record for record in records if record not in over], wait_s, number, directory)
    ended += [(one, False) for one in over]
    if output.current().json:
        rows = [{"id": one.id, "name": one.name or None, "killed": killed} for one, killed in ended]
        output.print_json({"stopped": rows})
    else:
        output.print_lines(one.name or one.id for one, _ in ended)
