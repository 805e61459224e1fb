"""`pagepool fsck --repair`: where content may come from, and what is printed."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pagepool.cli import output
from pagepool.cli.connect import credentials_for, verify_of
from pagepool.cli.usage import refuse
from pagepool.errors import ImageInvalidError, NotFoundError
from pagepool.layout import parse_location
from pagepool.transport import Session
from pagepool.transport.http import parse_base
from pagepool_service.backup.repository import open_repository
from pagepool_service.repair.sources import BackupSource, LayoutSource, RegistrySource

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pagepool.cli.connect import TrustOptions
    from pagepool_service.repair.context import Action
    from pagepool_service.repair.run import Repaired
    from pagepool_service.repair.sources import Source

_IMAGES_SHOWN = 8
_PATHS_SHOWN = 20


@contextmanager
def open_sources(texts: Sequence[str], options: TrustOptions) -> Iterator[list[Source]]:
    """Open what ``--from`` names, for the length of a block.

    Args:
        options: for those that are servers. A user name is for one of these, and no other is told it.

    Raises:
        click.UsageError: a user name is given, and not one server.
        PagepoolError: one of them cannot be used, or reached.
    """
    servers = [text for text in texts if "://" in text]
    if options["username"] is not None and len(servers) != 1:
        refuse("--username is for a --from with an address, and for one only.")
    with ExitStack() as stack:
        yield [_open(text, stack, options) for text in texts]


def _open(text: str, stack: ExitStack, options: TrustOptions) -> Source:
    scheme, found, rest = text.partition("://")
    if found:
        host, _, repository = rest.partition("/")
        url = f"{scheme}://{host}"
        server = parse_base(url).netloc.decode("ascii")
        credentials = credentials_for(options, server, repository)
        session = Session(url, credentials=credentials, verify=verify_of(options, server), on_warning=output.note)
        registry = RegistrySource(session, repository.strip("/"))
        stack.callback(registry.close)
        registry.ping()
        return registry
    location = parse_location(text)
    path, name = location.path, location.name
    if not path.exists():
        raise ImageInvalidError(text, "there is no such file or directory, and it is no http:// or https:// address")
    if (path / "format").is_file() and (path / "snapshots").is_dir():
        repository_of = stack.enter_context(open_repository(path, write=False))
        known = repository_of.list_snapshots()
        if not known:
            raise NotFoundError(f"snapshot in {path}")
        return BackupSource(repository_of, repository_of.load(known[-1]))
    layout = LayoutSource(path, name)
    stack.callback(layout.close)
    return layout


def as_json(data: Path, done: Repaired, *, dry_run: bool) -> dict[str, Any]:
    """What a repair did, for machines."""
    return {
        "data": str(data),
        "clean": done.clean,
        "dry_run": dry_run,
        "live": done.live,
        "found": [asdict(problem) for problem in done.before.problems],
        "actions": [asdict(action) for action in done.actions],
        "remaining": [asdict(problem) for problem in done.after.problems],
        "quarantine": None if done.quarantine is None else str(done.quarantine),
    }


def print_repaired(done: Repaired, *, dry_run: bool) -> None:
    """The same for people."""
    for action in done.actions:
        click.echo(f"{'would be ' if dry_run else ''}{action.outcome}: {action.kind} {action.name}: {action.how}")
        _print_lists(action)
    if not dry_run:
        for problem in done.after.problems:
            click.echo(f"remains: {problem.kind} {problem.name}: {problem.reason}")
    if done.quarantine is not None:
        click.echo(f"what was taken out is kept in {done.quarantine}: see listing.txt there")
    lost = sum(action.outcome == "quarantined" for action in done.actions)
    found = output.counted(len(done.before.problems), "problem")
    if output.current().quiet:
        return
    if not done.before.problems:
        brought = output.counted(len(done.actions), "blob")
        click.echo("no problems found" + (f", {brought} out of the quarantine" if done.actions and not dry_run else ""))
    elif dry_run:
        click.echo(f"{found} found; nothing was changed")
    elif done.clean:
        click.echo(f"{found} found, all repaired")
    else:
        remaining = len(done.after.problems)
        quarantined = f"{output.counted(lost, 'thing')} quarantined (push them again)"
        click.echo(f"{found} found, {quarantined}, {remaining} remain{'s' if remaining == 1 else ''}")


def _print_lists(action: Action) -> None:
    for label, values, most in (("images", action.images, _IMAGES_SHOWN), ("lost files", action.paths, _PATHS_SHOWN)):
        if values:
            more = len(values) - most
            click.echo(f"    {label}: {', '.join(values[:most])}" + (f" and {more} more" if more > 0 else ""))
