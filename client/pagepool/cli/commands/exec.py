"""``pagepool exec``: a program in a container that runs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TextIO

import click

from pagepool.cli import exits, output, roots
from pagepool.cli.containers import ProgramCommand, complete_container
from pagepool.cli.options import output_options
from pagepool.cli.usage import refuse
from pagepool.container import ExecOptions, exec_in_container, find_containers
from pagepool.container.options import parse_env, parse_env_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from pagepool.container import Record


@click.command(
    name="exec",
    cls=ProgramCommand,
    short_help="Run a program in a container that runs.",
    context_settings={"allow_interspersed_args": False},
)
@click.argument("container", metavar="CONTAINER", shell_complete=complete_container)
@click.argument("words", metavar="[--] COMMAND...", nargs=-1, type=click.UNPROCESSED)
@click.option("-i", "--interactive", is_flag=True, help="The program reads our standard input.")
@click.option("-t", "--tty", is_flag=True, help="The program has a terminal.")
@click.option("-d", "--detach", is_flag=True, help="End when the program runs; its output is thrown away.")
@click.option("-e", "--env", multiple=True, metavar="NAME[=VALUE]", help="Set a variable; without =, as it is here.")
@click.option(
    "--env-file",
    multiple=True,
    type=click.File(encoding="utf-8"),
    metavar="FILE",
    help="Set the variables of FILE, a NAME=VALUE in each line.",
)
@click.option("-w", "--workdir", metavar="DIR", help="Start there, not where the container's own program did.")
@click.option(
    "-u",
    "--user",
    metavar="USER[:GROUP]",
    help="Run as this user, by name or number, not as the container's own program.",
)
@output_options
def command(
    container: str,
    words: tuple[str, ...],
    interactive: bool,
    tty: bool,
    detach: bool,
    env: tuple[str, ...],
    env_file: tuple[TextIO, ...],
    workdir: str | None,
    user: str | None,
) -> int:
    """Run COMMAND in CONTAINER, which `pagepool run` has started, beside the program that it runs: by the container's
    name, its id, or the beginning of that.

    It has the user, the environment and the working directory of the container's own program, each of which options
    replace, and no more rights. Ctrl-C and other signals go to it; the third SIGINT or SIGTERM kills it. It ends when
    the container does. Needs root.

    \b
    Examples:
      pagepool exec -it web -- sh
      pagepool exec web -- nginx -s reload
      pagepool exec --user postgres -e PGDATABASE=app db -- psql -c 'select 1'

    \b
    Exit codes: the program's, or 128 and the number of the signal that killed it;
      125 if it could not be run, as when there is no such container, 126 if it cannot be executed,
      127 if it is not there.
    """
    if detach and interactive:
        refuse("--detach and --interactive exclude each other.")
    variables = [variable for file in env_file for variable in parse_env_file(file.read(), os.environ)]
    variables += [parse_env(text, os.environ) for text in env]
    given = words[1:] if words[:1] == ("--",) else words
    if not given:
        refuse("Say what is to be run in the container.")
    options = ExecOptions(given, tuple(variables), user, workdir, tty, interactive)
    (record,) = find_containers([container], roots.containers_directory())
    if detach:
        return _detach(record, options)
    return exec_in_container(record, options, directory=roots.containers_directory())


def _detach(record: Record, options: ExecOptions) -> int:
    """Run it in the background."""
    from pagepool.cli.background import in_background

    directory = roots.containers_directory()

    def work(tell: Callable[[dict[str, Any]], None]) -> int:
        return exec_in_container(
            record, options, directory=directory, started=lambda pid: tell({"id": record.id, "pid": pid})
        )

    answer = in_background(work, None)
    if output.current().json:
        output.print_json({"id": answer["id"], "name": record.name or None, "pid": answer["pid"]})
    return exits.OK
