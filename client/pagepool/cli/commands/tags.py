"""``pagepool tags``: the tags of a repository."""

from __future__ import annotations

from typing import Unpack

import click

from pagepool.cli import output
from pagepool.cli.connect import ServerOptions, connect, on_server
from pagepool.cli.options import ReferenceType, output_options, server_options
from pagepool.oci import Reference


@click.command(name="tags", short_help="List the tags of a repository.")
@click.argument("repository", metavar="REPOSITORY", type=ReferenceType())
@output_options
@server_options
def command(repository: Reference, **server: Unpack[ServerOptions]) -> None:
    """List the tags of REPOSITORY, one a line, in the registry's order.

    \b
    Examples:
      pagepool tags app
      pagepool tags --json registry.example.org/team/app
    """
    if repository.tag or repository.digest:
        raise click.UsageError("REPOSITORY is a name without tag or digest.")
    repository = on_server(repository)
    with connect(server, repository) as connection:
        found = list(connection.registry.tags(repository.repository))
    if output.current().json:
        output.print_json({"name": repository.repository, "tags": found})
    else:
        output.print_lines(output.printable(tag) for tag in found)
