"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from pagepool.cli.output import State
from pagepool.errors import InvalidError
from pagepool.oci.platform import Platform
from pagepool.oci.reference import Reference

DEFAULT_SERVER = "http://127.0.0.1:5000"
_Command = TypeVar("_Command", bound=Callable[..., Any])


class ReferenceType(click.ParamType):  # type: ignore[type-arg] # not generic before click 8.2
    """An image reference as an argument."""

    name = "reference"

    def convert(self, value: Any, *_: object) -> Reference:
        """Parse; a bad reference is invalid input, not wrong usage."""
        return value if isinstance(value, Reference) else Reference.parse(value)


class PlatformType(click.ParamType):  # type: ignore[type-arg] # not generic before click 8.2
    """A platform, or ``all``, as an option."""

    name = "platform"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Platform | None:
        """Parse; ``all`` is None."""
        if isinstance(value, Platform) or value == "all":
            return value if isinstance(value, Platform) else None
        try:
            return Platform.local() if value == "local" else Platform.parse(value)
        except InvalidError as error:
            self.fail(str(error), param, ctx)


def complete_path(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG001 - click's signature
    """Files and directories of this machine."""
    return [CompletionItem(incomplete, type="file")]


def json_option(command: _Command) -> _Command:
    """``--json``."""
    return click.option(
        "--json",
        is_flag=True,
        expose_value=False,
        callback=_set_json,
        is_eager=True,
        help="Print JSON, sizes in bytes; errors, too, on standard error.",
    )(command)


def output_options(command: _Command) -> _Command:
    """``--json`` and ``--quiet``."""
    command = json_option(command)
    return click.option(
        "-q",
        "--quiet",
        is_flag=True,
        expose_value=False,
        callback=_set_quiet,
        is_eager=True,
        help="No progress and no remarks; only names or digests where there is a table.",
    )(command)


def server_options(command: _Command) -> _Command:
    """Which server, by what protocol, and who we are. They arrive as one keyword for each."""
    option = click.option(
        "--server",
        envvar="PAGEPOOL_SERVER",
        default=DEFAULT_SERVER,
        metavar="URL",
        help="Server for names without a host [$PAGEPOOL_SERVER, or " + DEFAULT_SERVER + "].",
    )
    return option(access_options(command))


def access_options(command: _Command) -> _Command:
    """By what protocol a server is spoken to, and who we are: of `server_options` all but the server."""
    option = click.option("--plain-http", is_flag=True, help="http also for hosts other than this machine.")
    return option(trust_options(command))


def trust_options(command: _Command) -> _Command:
    """Who vouches for a server, and who we are to it: of `access_options` those for a server that is given as a URL."""
    for option in (
        click.option("--password-stdin", is_flag=True, help="Read the password from standard input."),
        click.option("--username", metavar="NAME", help="User name [from docker's or podman's login]."),
    ):
        command = option(command)
    return certificate_options(command)


def certificate_options(command: _Command) -> _Command:
    """Who vouches for a server: of `trust_options` those that are not about us."""
    for option in reversed(
        (
            click.option("--insecure", is_flag=True, help="Do not check the server's certificate."),
            click.option(
                "--ca-certificate",
                envvar="PAGEPOOL_CA_CERTIFICATE",
                type=click.Path(path_type=Path, dir_okay=False, exists=True, resolve_path=True),
                metavar="FILE",
                help="Who vouches for the server's certificate, beside the system's authorities "
                "[$PAGEPOOL_CA_CERTIFICATE, and what docker and podman trust].",
            ),
        )
    ):
        command = option(command)
    return command


def pool_options(command: _Command) -> _Command:
    """The server's options, where this user keeps what was fetched, and how long to wait for an image."""
    for option in (
        click.option(
            "--tree-timeout",
            envvar="PAGEPOOL_TREE_TIMEOUT",
            type=click.FloatRange(0),
            default=600.0,
            metavar="SECONDS",
            help="How long to wait, at most, while the service puts together the tree of a large image "
            "[$PAGEPOOL_TREE_TIMEOUT, or 600].",
        ),
        click.option(
            "--pool",
            envvar="PAGEPOOL_POOL",
            type=click.Path(path_type=Path, file_okay=False),
            metavar="DIR",
            help="Where files are kept once they were fetched [$PAGEPOOL_POOL, or the user's cache].",
        ),
    ):
        command = option(command)
    return server_options(command)


def jobs_option(command: _Command) -> _Command:
    """How many layers go at once."""
    option = click.option(
        "-j", "--jobs", type=click.IntRange(1, 32), default=3, show_default=True, help="Layers transferred at once."
    )
    return option(command)


def platform_option(command: _Command) -> _Command:
    """One platform out of an index."""
    option = click.option(
        "--platform",
        type=PlatformType(),
        default=None,
        metavar="OS/ARCH",
        help="Of an index, only the image for this platform (linux/arm64/v8; local: this machine's).",
    )
    return option(command)


def _set_json(context: click.Context, _: click.Parameter, value: bool) -> None:
    context.ensure_object(State).json |= value


def _set_quiet(context: click.Context, _: click.Parameter, value: bool) -> None:
    context.ensure_object(State).quiet |= value
