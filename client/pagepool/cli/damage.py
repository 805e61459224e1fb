"""What a service could not read, as commands that list things tell of it: a warning for each, and an exit code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from pagepool.cli import output
from pagepool.cli.exits import CORRUPT

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

DAMAGED = "damaged"
"""The state of an image of which something cannot be read, and the field of other lists that names such things."""


def warn_of_damage(entries: Iterable[Mapping[str, Any]]) -> None:
    """Name what is damaged, after all else was printed, and end the command if there is anything.

    Args:
        entries: with the name of each, and the reason.
    """
    found = list(entries)
    output.flush()
    for entry in found:
        output.warn(f"{output.pick(entry, 'name')} is damaged on the server: {output.pick(entry, 'reason')}")
    if found:
        raise click.exceptions.Exit(CORRUPT)


def damaged_in(answer: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What an answer names as damaged; nothing, if the server is not pagepool's."""
    found = answer.get(DAMAGED)
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []
