"""``pagepool container``: removes what is kept of containers that have ended."""

from __future__ import annotations

import signal

import click

from pagepool.cli import output, roots
from pagepool.cli.containers import complete_ended, find_known
from pagepool.cli.lazy import HintingGroup
from pagepool.cli.options import output_options
from pagepool.container import list_ended, remove_ended, stop_containers
from pagepool.container.ended import remove_unreadable
from pagepool.container.records import DEAD, has_ended
from pagepool.errors import BusyError


@click.group(name="container", cls=HintingGroup, short_help="Remove what is kept of containers that have ended.")
def command() -> None:
    """Remove what is kept of containers that have ended in the background: what they were, how they ended, and their
    logs. The last 200 are kept; `pagepool ps --all` lists them.

    \b
    Examples:
      pagepool container rm job
      pagepool container prune
    """


@command.command(name="rm", short_help="Remove what is kept of some that have ended.")
@click.argument("containers", metavar="CONTAINER...", nargs=-1, required=True, shell_complete=complete_ended)
@click.option("-f", "--force", is_flag=True, help="Those that run, too: they are killed first.")
@output_options
def rm(containers: tuple[str, ...], force: bool) -> None:
    """Remove what is kept of containers that have ended, named by ids, beginnings of ids, or names.

    Names or ids are printed. Of several that had the same name, the one that ended last is meant. If one is not known,
    or runs, nothing is removed. An image is removed by `pagepool rm`.

    \b
    Examples:
      pagepool container rm job
      pagepool container rm --force web
    """
    found = find_known(containers)
    running = [record for record in found if not has_ended(record) and record.status != DEAD]
    if running and not force:
        raise BusyError(f"container {running[0].name or running[0].id} runs: pagepool stop ends it, or --force")
    roots.end_killed(roots.FuseRoots())
    stop_containers(running, 0, signal.SIGKILL, roots.containers_directory())
    for record in found:
        if record.ended_directory:
            remove_ended(record)
    _report([record.name or record.id for record in found])


@command.command(name="prune", short_help="Remove what is kept of all that have ended.")
@click.option("-f", "--force", is_flag=True, hidden=True, help="As docker's: nothing is asked here.")
@output_options
def prune(force: bool) -> None:  # noqa: ARG001 - see its help
    """Remove what is kept of all containers that have ended, also of those whose `pagepool run` was killed.

    \b
    Examples:
      pagepool container prune
    """
    roots.end_killed(roots.FuseRoots())
    records = list_ended(roots.ended_directory())
    for record in records:
        remove_ended(record)
    _report([record.id for record in records] + remove_unreadable(roots.ended_directory()))


def _report(removed: list[str]) -> None:
    if output.current().json:
        output.print_json({"removed": removed})
    else:
        output.print_lines(removed)
