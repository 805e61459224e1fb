"""``pagepool login``: try credentials on a server, and keep them where docker and podman look for theirs."""

from __future__ import annotations

import sys
from typing import Unpack

import click

from pagepool.cli import output
from pagepool.cli.asking import ask_password
from pagepool.cli.connect import ServerOptions, server_url, verify_of
from pagepool.cli.keeping import store_credentials
from pagepool.cli.options import output_options, server_options
from pagepool.errors import InvalidError
from pagepool.transport import Credentials, RegistryClient, Session


@click.command(name="login", short_help="Log in to a server, for docker and podman, too.")
@click.argument("address", metavar="[SERVER]", required=False)
@output_options
@server_options
def command(address: str | None, **server: Unpack[ServerOptions]) -> None:
    """Log in to SERVER, the default one without it, and keep the credentials if it takes them.

    They go where docker and podman keep theirs, which then know them too: into the first of podman's and docker's files
    that has an entry for the server, else into docker's; or into the credential helper that is configured there. In a
    file they are not encrypted; it is readable to you alone.

    The password is asked for, or read from standard input. It is never an argument: everybody on the machine can see
    those.

    \b
    Examples:
      pagepool login registry.example.org
      pagepool login --username alice https://127.0.0.1:5000
      pagepool login --username ci --password-stdin registry.example.org < token
    """
    options: ServerOptions = {**server, "server": address or server["server"]}
    url, host = server_url(options, None)
    username = options["username"]
    if options["password_stdin"]:
        if not username:
            raise click.UsageError("--password-stdin needs --username.")
        password = sys.stdin.readline().rstrip("\r\n")
    else:
        otherwise = "--username and --password-stdin"
        try:
            username = username or str(click.prompt("Username", err=True))
        except click.Abort:
            if sys.stdin.isatty():
                raise
            click.echo(err=True)
            raise click.UsageError(f"Nobody can be asked here: give {otherwise}.") from None
        password = ask_password(otherwise)
    if not username or ":" in username or not password:
        raise InvalidError(username, "a user name without colons and a password are needed")
    with Session(url, credentials=Credentials(username, password), verify=verify_of(options, host)) as session:
        RegistryClient(session).ping()
    where = store_credentials(host, username, password)
    if output.current().json:
        output.print_json({"server": host, "username": username, "kept": where})
    else:
        output.note(f"{host} lets {username} in; kept in {where}")
