"""What is said of a command line that was read, and cannot be meant."""

from __future__ import annotations

from typing import NoReturn


def refuse(usage: str) -> NoReturn:
    """Say what is wrong. Loads click only then: commands that run by the hundred do without it.

    Raises:
        click.UsageError: always.
    """
    import click

    raise click.UsageError(usage)
