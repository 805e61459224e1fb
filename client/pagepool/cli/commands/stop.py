"""``pagepool stop``: end containers."""

from __future__ import annotations

import signal
from typing import Any

import click

from pagepool.cli import output, roots
from pagepool.cli.containers import complete_container
from pagepool.cli.options import output_options
from pagepool.container import find_containers, stop_containers

_WAIT_S = 10.0


class _Signal(click.ParamType):  # type: ignore[type-arg] # not generic before click 8.2
    name = "signal"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value).upper()
        found = getattr(signal, f"SIG{text.removeprefix('SIG')}", None)
        number = int(found) if isinstance(found, signal.Signals) else int(text) if text.isdigit() else 0
        if not 0 < number < signal.NSIG:
            most = signal.NSIG - 1
            self.fail(f"{value!r} is no signal: give a name such as HUP, or a number up to {most}", param, ctx)
        return number


@click.command(name="stop", short_help="End containers.")
@click.argument("containers", metavar="CONTAINER...", nargs=-1, required=True, shell_complete=complete_container)
@click.option(
    "-t",
    "--time",
    "wait_s",
    type=click.FloatRange(min=0, max=86400),
    default=_WAIT_S,
    show_default=True,
    help="Seconds after which one that has not ended is killed; 0 kills at once.",
)
@click.option("-s", "--signal", "number", type=_Signal(), help="What to send first. [the image's stop signal, or TERM]")
@output_options
def command(containers: tuple[str, ...], wait_s: float, number: int | None) -> None:
    """End containers of `pagepool run`, by ids, beginnings of ids, or names.

    Each is asked by the image's stop signal, all at the same time, and killed if it has not ended after --time. Names
    or ids are printed once all have ended, and nothing is left of them; `pagepool run` ends with the program's exit
    code, or 137. If one is not known, none is stopped.

    \b
    Examples:
      pagepool stop web
      pagepool stop --time 60 db
      pagepool stop $(pagepool ps -q)
    """
    directory = roots.containers_directory()
    records = find_containers(containers, directory)
    if not wait_s:
        number = signal.SIGKILL
    ended = stop_containers(records, wait_s, number, directory)
    if output.current().json:
        rows = [{"id": one.id, "name": one.name or None, "killed": killed} for one, killed in ended]
        output.print_json({"stopped": rows})
    else:
        output.print_lines(one.name or one.id for one, _ in ended)
