"""What the commands of measurements have in common beside options."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Never

import click

from pagepool.cli import output
from pagepool_service.bench.images import find_images
from pagepool_service.bench.servers import PEER, peer_installed

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pagepool_service.bench.figures import Figure


def with_peer(wanted: bool | None) -> bool:
    """Whether docker-registry is measured, too; says so if it is not because it is not there."""
    if wanted is False or peer_installed():
        return wanted is not False
    if wanted:
        raise click.UsageError(f"{PEER} is not installed (apt-get install {PEER})")
    output.warn(f"{PEER} is not installed (apt-get install {PEER}): measuring without it")
    return False


def environment() -> dict[str, str]:
    """What processes inherit: not the settings of this machine's own service."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PAGEPOOL_")}


def interrupt(*_: object) -> Never:
    """Take a signal as Ctrl-C, so that it cleans up as that does."""
    raise KeyboardInterrupt


def find_layouts(places: Sequence[Path]) -> dict[str, Path]:
    """The directories of the images in places, by name."""
    find_images(places)  # raises for what is none
    found: list[Path] = []
    for place in places:
        found += [place] if (place / "oci-layout").is_file() else [path.parent for path in place.glob("*/oci-layout")]
    return {path.resolve().name: path.resolve() for path in found}


def print_figures(figures: Sequence[Figure]) -> None:
    """Print a table."""
    headers = ("", "pagepool", "beside it", "ratio", "aim", "", "what is beside it")
    output.print_table(headers, [_cells(one) for one in figures], right=(1, 2, 3, 4))


def _cells(one: Figure) -> tuple[str, ...]:
    aim = "" if one.aim is None else f"{'>=' if one.at_least else '<='} {one.aim:g}"
    return (
        one.name,
        number(one.value),
        number(one.other),
        "-" if one.ratio is None else f"{one.ratio:.2f}",
        aim,
        {True: "met", False: "MISSED", None: ""}[one.met],
        one.against,
    )


def number(value: float | None) -> str:
    """A figure for people."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
