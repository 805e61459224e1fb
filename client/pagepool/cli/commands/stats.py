"""``pagepool stats``: what is stored, and what sharing saves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack

import click

from pagepool.cli import output
from pagepool.cli.connect import ServerOptions, connect
from pagepool.cli.options import output_options, server_options
from pagepool.errors import NotFoundError

_PLAIN_NUMBERS = ("count", "images", "layers", "members", "objects", "files", "tags", "manifests", "repositories")


@click.command(name="stats", short_help="Show sizes, and what sharing saves.")
@output_options
@server_options
def command(**server: Unpack[ServerOptions]) -> None:
    """Show how much a pagepool service stores, in all and for each image.

    With --quiet, only the totals. In JSON all sizes are bytes.

    \b
    Examples:
      pagepool stats
      pagepool stats --json | jq .total.dedup_ratio
    """
    with connect(server) as connection:
        try:
            found = connection.service.stats()
        except NotFoundError as error:
            raise connection.explain(error) from None
    if output.current().json:
        output.print_json(found)
        return
    total = found.get("total")
    if isinstance(total, dict):
        _print_total(total)
    images = found.get("images")
    if isinstance(images, list) and images and not output.current().quiet:
        output.print_line()
        _print_images([image for image in images if isinstance(image, dict)])


def _print_total(total: Mapping[str, Any], indent: str = "") -> None:
    """All fields, whatever they are; groups indented below their name."""
    simple = {name: value for name, value in total.items() if not isinstance(value, dict | list)}
    width = max((len(name) for name in simple), default=0) + 2
    for name, value in simple.items():
        output.print_line(f"{indent}{output.printable(name.replace('_', ' ')):<{width}}{_show(name, value):>12}")
    for name, value in total.items():
        if isinstance(value, dict):
            output.print_line(f"{indent}{output.printable(name.replace('_', ' '))}:")
            # A group of sizes often has names without the word: stored {extents, opaque, …}.
            as_bytes = {
                key if key.endswith(("_bytes", "ratio")) or not isinstance(inner, int) else f"{key}_bytes": inner
                for key, inner in value.items()
            }
            named = as_bytes if name in ("stored", "disk") else value
            _print_group({key.removesuffix("_bytes"): (key, inner) for key, inner in named.items()}, indent + "  ")


def _print_group(group: Mapping[str, tuple[str, Any]], indent: str) -> None:
    width = max((len(name) for name in group), default=0) + 2
    for name, (field, value) in group.items():
        output.print_line(f"{indent}{output.printable(name.replace('_', ' ')):<{width}}{_show(field, value):>12}")


def _print_images(images: list[dict[str, Any]]) -> None:
    fields = [name for name, value in images[0].items() if not isinstance(value, dict | list)]
    rows = [[_show(field, image.get(field)) for field in fields] for image in images]
    right = [at for at, field in enumerate(fields) if isinstance(images[0][field], int | float)]
    output.print_table([field.removesuffix("_bytes").replace("_", " ").upper() for field in fields], rows, right)


def _show(name: str, value: Any) -> str:
    """A value by the name of its field: sizes end in bytes or size, ratios in ratio."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        if name.endswith("ratio"):
            return f"{value:.2f}x"
        if name.endswith(("bytes", "size")):
            return output.human_size(value)
        return f"{value:.2f}" if isinstance(value, float) else str(value)
    if name == "digest":
        return output.short_digest(str(value))
    return output.printable(str(value))
