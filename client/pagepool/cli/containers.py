"""Containers on command lines: what a shell completes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from click.shell_completion import CompletionItem

from pagepool.cli import roots
from pagepool.container.records import DEAD, list_containers

if TYPE_CHECKING:
    import click


def complete_container(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG001 - click's signature
    """Names of containers, and ids of those that have none; nothing where they may not be seen."""
    try:
        records = list_containers(roots.containers_directory())
    except OSError:
        return []
    shown = [CompletionItem(record.name or record.id, help=record.image) for record in records if record.status != DEAD]
    return [item for item in shown if item.value.startswith(incomplete)]
