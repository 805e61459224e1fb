"""Options that measurements have in common."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Callable

Command = TypeVar("Command", bound="Callable[..., object]")


def images_option(text: str) -> Callable[[Command], Command]:
    """`--images DIR`, which may be repeated, as `places`."""
    return click.option(
        "--images",
        "places",
        multiple=True,
        envvar="PAGEPOOL_BENCH_IMAGES",
        type=click.Path(path_type=Path, exists=True, file_okay=False),
        metavar="DIR",
        help=f"{text} [$PAGEPOOL_BENCH_IMAGES]",
    )


def work_option(text: str) -> Callable[[Command], Command]:
    """`--work DIR`."""
    return click.option(
        "--work",
        type=click.Path(path_type=Path, exists=True, file_okay=False, writable=True),
        help=f"{text} [the system's directory for temporary files]",
    )
