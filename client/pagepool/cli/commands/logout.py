"""``pagepool logout``: forget the credentials of a server."""

from __future__ import annotations

from typing import Unpack

import click

from pagepool.cli import output
from pagepool.cli.connect import ServerOptions, server_url
from pagepool.cli.keeping import erase_credentials
from pagepool.cli.options import output_options, server_options
from pagepool.errors import UnauthorizedError


@click.command(name="logout", short_help="Forget the credentials of a server.")
@click.argument("address", metavar="[SERVER]", required=False)
@output_options
@server_options
def command(address: str | None, **server: Unpack[ServerOptions]) -> None:
    """Take the credentials of SERVER, the default one without it, out of podman's and docker's files and helpers.

    The server is not asked; a node that has an image mounted keeps what it was given until that is unmounted.

    \b
    Examples:
      pagepool logout registry.example.org
    """
    options: ServerOptions = {**server, "server": address or server["server"]}
    _, host = server_url(options, None)
    found = erase_credentials(host)
    if not found:
        raise UnauthorizedError(f"there are no credentials of {host}")
    if output.current().json:
        output.print_json({"server": host, "erased": found})
    else:
        output.note(f"took the credentials of {host} out of {' and '.join(found)}")
