"""Containers on command lines: commands that end with a program's exit code, what is said, and what shells complete."""

from __future__ import annotations

import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from pagepool.cli import exits, output, roots
from pagepool.cli.state import State
from pagepool.container import find_containers, list_all
from pagepool.container.records import DEAD, KILLED, RUNNING, has_ended, list_containers
from pagepool.errors import DeniedError, InvalidError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pagepool.container import Record

LEAST_ID = 12
"""Characters of an id that `ps` shows, and that mean a container where images can be named, too."""
_UNITS = ((86400 * 2, 86400, "day"), (3600 * 2, 3600, "hour"), (120, 60, "minute"), (0, 1, "second"))


class ProgramCommand(click.Command):
    """A command line that it does not understand ends with 125, too: every other code may be the program's own."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """See `click.Command`."""
        ctx.ensure_object(State).failure = exits.CONTAINER
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            from pagepool.cli.elsewhere import OPTIONS, unknown_option

            raise unknown_option(error, OPTIONS) from None


def known_containers() -> list[Record]:
    """All containers, those that have ended too, the one that was made first in front."""
    return list_all(roots.containers_directory(), roots.ended_directory(), output.warn_of)


def find_known(names: Iterable[str]) -> list[Record]:
    """Containers by names, ids or their beginnings: dead ones too, and those that have ended. See `find_containers`."""
    return find_containers(names, roots.containers_directory(), dead=True, ended=roots.ended_directory())


def find_running(name: str) -> Record | None:
    """The container that runs and has this name, or this id, of which the first twelve characters suffice; None: there
    is none, and it may be an image's name.

    Raises:
        InvalidError: several ids begin so.
    """
    running: list[Record] = []
    with suppress(OSError, DeniedError):  # who is not root sees none
        running = [record for record in list_containers(roots.containers_directory()) if record.status == RUNNING]
    for record in running:
        if name in (record.id, record.name):
            return record
    found = [record for record in running if len(name) >= LEAST_ID and record.id.startswith(name)]
    if len(found) > 1:
        raise InvalidError(name, f"the ids of {len(found)} containers begin so")
    return found[0] if found else None


def describe(record: Record) -> str:
    """How a container is: running, say, or ``exited (3) 2 minutes ago``."""
    code = "" if record.exit_code is None else f" ({record.exit_code})"
    when = "" if record.ended_s is None else f" {show_age(record.ended_s)}"
    return f"{record.status}{code}{when}"


def show_age(then_s: float) -> str:
    """How long ago a moment was."""
    seconds = time.time() - then_s
    size, unit = next((size, unit) for least, size, unit in _UNITS if seconds >= least or not least)
    return f"{output.counted(max(0, int(seconds // size)), unit)} ago"


def ended_at(record: Record) -> str | None:
    """When a container ended, as JSON has it; None: it has not, or nobody has noted it."""
    if record.ended_s is None:
        return None
    return datetime.fromtimestamp(record.ended_s, UTC).isoformat().replace("+00:00", "Z")


def tell_unknown(records: Iterable[Record]) -> int:
    """Warn of containers of which nobody knows how they ended; the exit code that follows from it."""
    code = exits.OK
    for record in records:
        if record.status == KILLED:
            output.warn(f"how container {record.name or record.id} ended is not known: its pagepool run was killed")
            code = exits.FAILURE
    return code


def complete_container(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG001 - click's signature
    """Names of containers that run, and ids of those that have none; nothing where they may not be seen."""
    try:
        records = list_containers(roots.containers_directory())
    except (OSError, DeniedError):
        return []
    return _items([record for record in records if record.status != DEAD], incomplete)


def complete_known(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG001 - click's signature
    """The same, also of containers that have ended."""
    try:
        return _items(list_all(roots.containers_directory(), roots.ended_directory()), incomplete)
    except (OSError, DeniedError):
        return []


def complete_ended(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG001 - click's signature
    """Those that have ended."""
    try:
        records = list_all(roots.containers_directory(), roots.ended_directory())
    except (OSError, DeniedError):
        return []
    return _items([record for record in records if has_ended(record)], incomplete)


def _items(records: Iterable[Record], incomplete: str) -> list[CompletionItem]:
    shown = {record.name or record.id: record.image for record in records}
    return [CompletionItem(name, help=image) for name, image in shown.items() if name.startswith(incomplete)]
