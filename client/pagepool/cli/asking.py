"""Asking people for a password, where there is a terminal to ask at."""

from __future__ import annotations

import getpass
import warnings

import click


def ask_password(otherwise: str, *, twice: bool = False) -> str:
    """Ask for a password at the terminal, which does not show it. Blocks.

    Args:
        otherwise: options by which it can be given where there is no terminal.
        twice: ask for it once more, until both are the same.

    Raises:
        click.UsageError: there is no terminal.
        click.Abort: whoever was asked has interrupted it.
    """
    with warnings.catch_warnings():
        # Else it is read, and shown, from wherever standard input comes from, with three lines of warning.
        warnings.simplefilter("error", getpass.GetPassWarning)
        try:
            return str(click.prompt("Password", hide_input=True, confirmation_prompt=twice, err=True))
        except getpass.GetPassWarning:
            raise click.UsageError(f"Nobody can be asked here: give {otherwise}.") from None
