"""``pagepool images``: what a registry has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Unpack

import click

from pagepool.cli import output
from pagepool.cli.connect import Connection, ServerOptions, connect
from pagepool.cli.damage import DAMAGED, warn_of_damage
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

    An image of which something is damaged in the service's store is in the state "damaged", and named with
    the reason on standard error; with --quiet only there. The exit code is then 5.

    \b
    Examples:
      pagepool images
      pagepool images -q
      pagepool images --json --server https://registry.example.org
    """
    with connect(server) as connection:
        rows = connection.service.images() if connection.service.available() else _of_registry(connection)
        damaged: list[Mapping[str, Any]] = []
        if output.current().quiet and not output.current().json:
            output.print_lines(output.printable(_name(row)) for row in _sound(rows, damaged))
            warn_of_damage(damaged)
            return
        found = list(rows)
        if not found and not output.current().json:
            _tell_of_login(connection)
    if output.current().json:
        output.print_json({"images": found})
    else:
        output.print_table(
            ("NAME", "TAG", "DIGEST", "PLATFORM", "SIZE", "CREATED", "STATE"),
            [_cells(row) for row in found],
            right=(4,),
        )
    list(_sound(found, damaged))
    warn_of_damage(damaged)


def _name(row: Mapping[str, Any]) -> str:
    return f"{row['name']}:{row['tag']}"


def _sound(rows: Iterable[Mapping[str, Any]], damaged: list[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Those that are not damaged; the others are put aside."""
    for row in rows:
        if row.get("state") == DAMAGED:
            damaged.append({"name": _name(row), "reason": row.get("reason")})
        else:
            yield row


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
