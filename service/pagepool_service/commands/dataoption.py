"""The option that says which store a command is about."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])


def data_option(command: _Command) -> _Command:
    """``--data``. The variable is read by `settings`."""
    return click.option(
        "--data",
        type=click.Path(path_type=Path, file_okay=False, readable=False),  # who opens the store says more of it
        help="Data directory. [$PAGEPOOL_DATA, or root's /var/lib/pagepool, or ~/.local/share/pagepool]",
    )(command)
