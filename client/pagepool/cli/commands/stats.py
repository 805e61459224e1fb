"""``pagepool stats``: what is stored, and what sharing saves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack

import click

from pagepool.cli import output
from pagepool.cli.connect import ServerOptions, connect
from pagepool.cli.damage import damaged_in, warn_of_damage
from pagepool.cli.options import output_options, server_options
from pagepool.errors import NotFoundError


@click.command(name="stats", short_help="Show sizes, and what sharing saves.")
@output_options
@server_options
def command(**server: Unpack[ServerOptions]) -> None:
    """Show how much a pagepool service stores, in all and for each image.

    With --quiet, only the totals. In JSON all sizes are bytes.

    What is damaged in the service's store is not counted. It is named on standard error, and in JSON as
    "damaged"; the exit code is then 5.

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
    else:
        _print(found)
    warn_of_damage(
        {**entry, "name": f"{output.pick(entry, 'kind')} {output.pick(entry, 'name')}"} for entry in damaged_in(found)
    )


def _print(found: Mapping[str, Any]) -> None:
    total = found.get("total")
    if isinstance(total, dict):
        _print_total(total)
    images = found.get("images")
    if isinstance(images, list) and images and not output.current().quiet:
        output.print_line()
        _print_images([image for image in images if isinstance(image, dict)])


def _print_total(total: Mapping[str, Any]) -> None:
    """All fields, whatever they are; groups indented below their name."""
    _print_group({name: value for name, value in total.items() if not isinstance(value, dict | list)}, "", "")
    for name, value in total.items():
        if isinstance(value, dict) and value:
            output.print_line(f"{_label(name)}:")
            # Fields of the group of sizes are not called bytes each: stored {extents, opaque, …}.
            _print_group(value, "  ", "bytes" if name == "stored" else "")


def _print_group(group: Mapping[str, Any], indent: str, unit: str) -> None:
    width = max((len(_label(name)) for name in group), default=0) + 2
    for name, value in group.items():
        if not isinstance(value, dict | list):
            output.print_line(f"{indent}{_label(name):<{width}}{_show(name + unit, value):>12}")


def _label(name: str) -> str:
    if name == "unmountable_blobs":  # each image has one, its config: nothing to worry about
        return "blobs that are no layer"
    return output.printable(name.removesuffix("_bytes").replace("_", " "))


def _print_images(images: list[dict[str, Any]]) -> None:
    fields = [name for name, value in images[0].items() if not isinstance(value, dict | list)]
    rows = [[_show(field, image.get(field)) for field in fields] for image in images]
    right = [at for at, field in enumerate(fields) if not isinstance(images[0][field], str)]
    output.print_table([_label(field).upper() for field in fields], rows, right)


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
