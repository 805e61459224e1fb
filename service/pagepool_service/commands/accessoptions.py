"""Options of `pagepool serve` about TLS, who may log in, and what he may do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pagepool_service.settings import SettingInvalidError, parse_proxies, parse_size, parse_url

if TYPE_CHECKING:
    from collections.abc import Callable

_FILE = click.Path(path_type=Path, dir_okay=False)


def parsed(parse: Callable[[str], Any]) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    """An option's callback that parses its text."""

    def callback(ctx: click.Context, param: click.Parameter, text: str | None) -> Any:
        try:
            return None if text is None else parse(text)
        except SettingInvalidError as error:
            raise click.BadParameter(f"{text!r} {error.reason}", ctx, param) from error

    return callback


def access_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """All of them."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


_OPTIONS = (
    click.option("--tls-certificate", type=_FILE, help="Certificate and its chain, PEM: serve with TLS. [without]"),
    click.option("--tls-key", type=_FILE, help="Its key, PEM. [in the same file]"),
    click.option("--htpasswd", type=_FILE, help="Users and bcrypt hashes: see `pagepool auth hash`. [none]"),
    click.option("--tokens", type=_FILE, help="Static tokens: see `pagepool auth token`. [none]"),
    click.option("--rights", type=_FILE, help="Who may do what, TOML. [whoever can log in: everything]"),
    click.option(
        "--anonymous-pull/--no-anonymous-pull", default=None, help="Let everybody pull, without --rights. [no]"
    ),
    click.option(
        "--challenge", type=click.Choice(["bearer", "basic"]), help="How clients are asked for credentials. [bearer]"
    ),
    click.option(
        "--trusted-proxies",
        metavar="ADDRESSES",
        callback=parsed(parse_proxies),
        help="Proxies whose X-Forwarded-For and -Proto count: addresses and networks. [none]",
    ),
    click.option(
        "--external-url",
        metavar="URL",
        callback=parsed(parse_url),
        help="Where clients reach the service, behind a proxy. [what they say]",
    ),
    click.option(
        "--absolute-locations/--no-absolute-locations",
        default=None,
        help="Tell clients where to upload by that whole address, not by a path alone. [no]",
    ),
    click.option(
        "--max-uploads-per-user", type=click.IntRange(0), help="Most uploads a user may have open; 0: any number. [0]"
    ),
    click.option(
        "--repository-quota",
        "repository_quota_bytes",
        metavar="SIZE",
        callback=parsed(parse_size),
        help="Most bytes a repository may hold. [no limit]",
    ),
    click.option(
        "--share-pool/--no-share-pool",
        default=None,
        help="Let other users of this machine read the cache. [only without --htpasswd and --tokens]",
    ),
)
