"""Containers on command lines: commands that end with a program's exit code, and what a shell completes."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem

from pagepool.cli import exits, roots
from pagepool.cli.state import State
from pagepool.container.records import DEAD, list_containers
from pagepool.errors import DeniedError


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


def complete_container(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG001 - click's signature
    """Names of containers, and ids of those that have none; nothing where they may not be seen."""
    try:
        records = list_containers(roots.containers_directory())
    except (OSError, DeniedError):
        return []
    shown = [CompletionItem(record.name or record.id, help=record.image) for record in records if record.status != DEAD]
    return [item for item in shown if item.value.startswith(incomplete)]
