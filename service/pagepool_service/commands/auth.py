"""`pagepool auth`: make users and tokens for `pagepool serve`, and see who may do what. Needs no service to run."""

from __future__ import annotations

import datetime
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pagepool.cli import output
from pagepool.cli.asking import ask_password
from pagepool.cli.options import output_options
from pagepool.errors import InvalidError
from pagepool.linux import sync_directory
from pagepool.oci import validate_repository
from pagepool_service.auth.authority import Authority
from pagepool_service.auth.htpasswd import COST, check_user, hash_password, load_htpasswd
from pagepool_service.auth.keys import KeyRing
from pagepool_service.auth.principals import ACTIONS, ANONYMOUS
from pagepool_service.auth.tokens import hash_token, load_tokens, new_token
from pagepool_service.settings import Settings

if TYPE_CHECKING:
    from pagepool_service.auth.principals import Principal

_FILE = click.Path(path_type=Path, dir_okay=False)
_LIFE = re.compile(r"([0-9]{1,5})([dhm])")
_UNITS = {"d": "days", "h": "hours", "m": "minutes"}


@click.group(name="auth")
def auth() -> None:
    """Make users and tokens for `pagepool serve`, and see who may do what.

    \b
    Examples:
      pagepool auth hash alice --file users
      pagepool auth token new ci --expires 90d --file tokens.toml
      pagepool auth check --htpasswd users --rights rights.toml --user alice team/app
    """


@auth.command(name="hash")
@click.argument("name", metavar="NAME")
@click.option("--file", "path", type=_FILE, metavar="FILE", help="Put the line into this file, in place of an older.")
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input, one line.")
@click.option("--cost", type=click.IntRange(8, 16), default=COST, show_default=True, help="Twice the work for each.")
@output_options
def hash_command(name: str, path: Path | None, password_stdin: bool, cost: int) -> None:
    """Make the line of a user for --htpasswd: name and bcrypt hash.

    The password is asked for, or read from standard input; it is never an argument, which everybody on the machine
    could see.

    \b
    Examples:
      pagepool auth hash alice
      pagepool auth hash alice --file users
      pagepool auth hash ci --file users --password-stdin < secret
    """
    try:
        check_user(name)
        line = f"{name}:{hash_password(_read_password(password_stdin), cost)}"
    except ValueError as error:
        raise InvalidError(name, str(error)) from None
    if path is None:
        output.print_line(line)
        return
    known = bool(path.exists() and load_htpasswd(path))
    lines = path.read_text().splitlines() if known else []
    kept = [one for one in lines if not one.strip().startswith(f"{name}:")]
    write_private(path, "".join(f"{one}\n" for one in [*kept, line]))
    output.note(f"{path}: {name} has a new password" if len(kept) < len(lines) else f"{path}: {name} was added")


@auth.group(name="token")
def token() -> None:
    """Make static tokens, for programs.

    \b
    Examples:
      pagepool auth token new ci --expires 90d --file tokens.toml
    """


@token.command(name="new")
@click.argument("name", metavar="NAME")
@click.option("--user", metavar="USER", help="Who it is in the file of rights. [NAME]")
@click.option("--expires", metavar="LIFE", help="When it ends: 90d, 12h, or a date. [never]")
@click.option("--file", "path", type=_FILE, metavar="FILE", help="Add it to this file. [print what to add]")
@output_options
def new_command(name: str, user: str | None, expires: str | None, path: Path | None) -> None:
    """Make a token, and print it: once, for only its hash is kept.

    It is sent as a bearer token, or as the password of any user name.

    \b
    Examples:
      pagepool auth token new ci --file tokens.toml
      pagepool auth token new nightly --user ci --expires 90d --file tokens.toml
    """
    try:
        check_user(name)
        check_user(user or name)
    except ValueError as error:
        raise InvalidError(name, str(error)) from None
    secret = new_token()
    table = [f'["{name}"]', f'user = "{user or name}"', f'sha256 = "{hash_token(secret)}"']
    if expires is not None:
        table.append(f"expires = {_end(expires).strftime('%Y-%m-%dT%H:%M:%SZ')}")
    text = "\n".join(table) + "\n"
    if path is not None:
        before = path.read_text() if path.exists() else ""
        if before and any(one.name == name for one in load_tokens(path).known.values()):
            raise InvalidError(name, f"is the name of a token in {path} already")
        write_private(path, f"{before.rstrip()}\n\n{text}" if before.strip() else text)
    if output.current().json:
        output.print_json({"name": name, "user": user or name, "token": secret, "entry": text})
        return
    output.print_line(secret)
    if path is None:
        click.echo(f"\nAdd to the file of --tokens:\n\n{text}", err=True, nl=False)
    else:
        output.note(f"{path}: token {name} was added")


@auth.command(name="check", short_help="Tell who may do what by these files.")
@click.argument("repositories", nargs=-1, metavar="[REPOSITORY]...")
@click.option("--htpasswd", type=_FILE, help="As of `pagepool serve`.")
@click.option("--tokens", type=_FILE, help="As of `pagepool serve`.")
@click.option("--rights", type=_FILE, help="As of `pagepool serve`.")
@click.option("--anonymous-pull/--no-anonymous-pull", default=None, help="As of `pagepool serve`.")
@click.option("--user", "users", multiple=True, metavar="NAME", help="Only these; anonymous is everybody else.")
@output_options
def check_command(repositories: tuple[str, ...], users: tuple[str, ...], **files: Any) -> None:
    """Read the files as `pagepool serve` does, and tell who may do what in these repositories.

    They need not be there. Without any, the files are only checked, and who may do something somewhere is told.

    \b
    Examples:
      pagepool auth check --htpasswd users --rights rights.toml
      pagepool auth check --htpasswd users --rights rights.toml team/app public/base
      pagepool auth check --htpasswd users --rights rights.toml --user alice team/app --json
    """
    settings = Settings.load(**files)
    if not settings.authenticates:
        raise click.UsageError("Nothing to check: give --htpasswd or --tokens, as `pagepool serve` has them.")
    for repository in repositories:
        validate_repository(repository)
    authority = Authority(settings, KeyRing(None))
    found = [_describe(authority, principal, repositories) for principal in _principals(authority, users)]
    if output.current().json:
        output.print_json({"users": found})
        return
    for name in sorted(authority.rights.names() - authority.users()):
        output.warn(f"{name} is in the rights, and nobody can log in as {name}")
    headers = ["USER", "GROUPS", "CATALOG", *(repositories or ("ANYTHING",))]
    rows = [
        [
            one["user"],
            ",".join(one["groups"]),
            "yes" if one["catalog"] else "",
            *(",".join(one["repositories"][name]) or "-" for name in repositories),
            *(() if repositories else ("yes" if one["anything"] else "no",)),
        ]
        for one in found
    ]
    output.print_table(headers, rows)


def write_private(path: Path, text: str) -> None:
    """Write a file in place of what was there, readable to its owner alone, or to whom the older one was: it stays that
    owner's and group's, as a service that runs as another user reads what root writes.

    On return it is on the disk: an empty one after a loss of power would lock everybody out.

    Raises:
        OSError: also if it belongs to another user, and may not be given to that one; it is as it was.
    """
    older = path.stat() if path.exists() else None
    part = path.with_name(f".{path.name}.new")
    part.unlink(missing_ok=True)
    part.touch(mode=0o600, exist_ok=False)
    try:
        with part.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if older is not None:
            os.chown(part, older.st_uid, older.st_gid)
            part.chmod(older.st_mode & 0o777)
        part.rename(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def _principals(authority: Authority, users: tuple[str, ...]) -> list[Principal]:
    rights = authority.rights
    names = users or (*sorted(authority.users() | rights.names()), "anonymous")
    return [ANONYMOUS if name == "anonymous" else rights.principal(name) for name in names]


def _describe(authority: Authority, principal: Principal, repositories: tuple[str, ...]) -> dict[str, Any]:
    rights = authority.rights
    return {
        "user": str(principal),
        "groups": sorted(principal.groups),
        "can_log_in": principal.name in authority.users(),
        "catalog": rights.catalog(principal),
        "anything": rights.has_any(principal),
        "repositories": {
            name: [action for action in ACTIONS if action in rights.actions(principal, name)] for name in repositories
        },
    }


def _read_password(from_stdin: bool) -> str:
    if from_stdin:
        return sys.stdin.readline().rstrip("\r\n")
    return ask_password("--password-stdin", twice=True)


def _end(text: str) -> datetime.datetime:
    """When a token ends.

    Raises:
        InvalidError: it cannot be read, or is over.
    """
    now = datetime.datetime.now(datetime.UTC)
    match = _LIFE.fullmatch(text)
    try:
        end = now + datetime.timedelta(**{_UNITS[match[2]]: int(match[1])}) if match else _parse_date(text)
    except (ValueError, OverflowError):
        raise InvalidError(text, "is no time, as 90d, 12h or 2027-01-31 are") from None
    if end <= now:
        raise InvalidError(text, "is over already")
    return end


def _parse_date(text: str) -> datetime.datetime:
    found = datetime.datetime.fromisoformat(text)
    return (found if found.tzinfo else found.replace(tzinfo=datetime.UTC)).astimezone(datetime.UTC)
