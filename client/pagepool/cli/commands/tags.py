"""``pagepool tags``: the tags of a repository."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack

import click

from pagepool.cli import output
from pagepool.cli.connect import ServerOptions, connect, on_server
from pagepool.cli.damage import DAMAGED, warn_of_damage
from pagepool.cli.options import ReferenceType, output_options, server_options
from pagepool.oci import Reference


@click.command(name="tags", short_help="List the tags of a repository.")
@click.argument("repository", metavar="REPOSITORY", type=ReferenceType())
@output_options
@server_options
def command(repository: Reference, **server: Unpack[ServerOptions]) -> None:
    """List the tags of REPOSITORY, one a line, in the registry's order.

    A tag whose record is damaged in the service's store is named on standard error instead, and in JSON as
    "damaged"; the exit code is then 5.

    \b
    Examples:
      pagepool tags app
      pagepool tags --json registry.example.org/team/app
    """
    if repository.tag or repository.digest:
        raise click.UsageError("REPOSITORY is a name without tag or digest.")
    repository = on_server(repository)
    with connect(server, repository) as connection:
        damaged: list[Mapping[str, Any]] = []
        found = list(connection.registry.tags(repository.repository, damaged.append))
    if output.current().json:
        named = {DAMAGED: damaged} if damaged else {}
        output.print_json({"name": repository.repository, "tags": found, **named})
    else:
        output.print_lines(output.printable(tag) for tag in found)
    warn_of_damage({**entry, "name": f"{repository.repository}:{output.pick(entry, 'name')}"} for entry in damaged)
