"""``pagepool images``: what a registry has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Unpack

import click

from pagepool.cli import output
from pagepool.cli.connect import Connection, ServerOptions, connect
from pagepool.cli.options import output_options, server_options
from pagepool.errors import NotFoundError, UnauthorizedError
from pagepool.transport.service import platform_text


@click.command(name="images", short_help="List images.")
@output_options
@server_options
def command(**server: Unpack[ServerOptions]) -> None:
    """List the tagged images of a registry.

    A registry that is not a pagepool service says less: names and digests, if it lists its repositories at
    all.

    \b
    Examples:
      pagepool images
      pagepool images -q
      pagepool images --json --server https://registry.example.org
    """
    with connect(server) as connection:
        rows = connection.service.images() if connection.service.available() else _of_registry(connection)
        if output.current().quiet and not output.current().json:
            output.print_lines(output.printable(f"{row['name']}:{row['tag']}") for row in rows)
            return
        found = list(rows)
        if not found and not output.current().json:
            _tell_of_login(connection)
    if output.current().json:
        output.print_json({"images": found})
        return
    output.print_table(
        ("NAME", "TAG", "DIGEST", "PLATFORM", "SIZE", "CREATED", "STATE"), [_cells(row) for row in found], right=(4,)
    )


def _tell_of_login(connection: Connection) -> None:
    """Say that a list is empty because nobody has logged in, where others may see more."""
    try:
        connection.registry.ping()
    except UnauthorizedError as error:
        output.note(f"no image may be seen by everybody: {error}")


def _of_registry(connection: Connection) -> Iterator[Mapping[str, Any]]:
    """The same rows, as far as any registry can say."""
    registry = connection.registry
    for name in registry.catalog():
        try:
            tags = list(registry.tags(name))
        except NotFoundError:
            continue  # some registries go on listing a repository after its last image was deleted
        for tag in tags:
            found = registry.head_manifest(name, tag)
            if found is not None:
                said = {"name": name, "tag": tag, "digest": str(found.digest), "media_type": found.media_type}
                yield said | dict.fromkeys(("size", "platform", "created", "state"))


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        output.pick(row, "name"),
        output.pick(row, "tag"),
        output.short_digest(output.pick(row, "digest")),
        _platforms(row),
        output.human_size(row.get("size")),
        output.pick(row, "created")[:19].replace("T", " "),
        output.pick(row, "state"),
    )


def _platforms(row: Mapping[str, Any]) -> str:
    """The platform of an image, or those of an index."""
    listed = row.get("platforms")
    if isinstance(listed, list) and listed:
        return ",".join(str(one) for one in listed[:3]) + (",…" if len(listed) > 3 else "")
    return platform_text(row.get("platform"))
