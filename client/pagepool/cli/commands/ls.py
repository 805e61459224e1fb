"""``pagepool ls``: the files in an image."""

from __future__ import annotations

import stat
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Unpack

import click

from pagepool.cli import output
from pagepool.cli.connect import Connection, ServerOptions, connect, on_server
from pagepool.cli.options import output_options, server_options
from pagepool.errors import NotFoundError
from pagepool.oci import Reference
from pagepool.transport import FileEntry

_KINDS = {
    "regular": stat.S_IFREG,
    "file": stat.S_IFREG,
    "dir": stat.S_IFDIR,
    "directory": stat.S_IFDIR,
    "symlink": stat.S_IFLNK,
    "char": stat.S_IFCHR,
    "block": stat.S_IFBLK,
    "fifo": stat.S_IFIFO,
}
_LIST_EVERY = 2000


@click.command(name="ls", short_help="List files in images.")
@click.argument("targets", metavar="REF[:PATH]...", nargs=-1, required=True)
@click.option("-l", "--long", is_flag=True, help="Mode, owner, size and time of each file.")
@click.option("-R", "--recursive", is_flag=True, help="Everything below, too.")
@output_options
@server_options
def command(targets: tuple[str, ...], long: bool, recursive: bool, **server: Unpack[ServerOptions]) -> None:
    """List files in images, as they are after all layers are applied.

    PATH begins at the first ":/" and is absolute in the image; the root if not given. Needs a pagepool
    service.

    \b
    Examples:
      pagepool ls app:1
      pagepool ls -l app:1:/etc
      pagepool ls -R --json app:1:/usr/lib
      pagepool ls -l localhost:5000/app@sha256:…:/bin/sh
    """
    parsed = [split_target(target) for target in targets]
    results = []
    for reference, path in parsed:
        with connect(server, reference) as connection:
            entries = _list(connection, reference, path, recursive)
            if output.current().json:
                entries_json = [dict(entry.raw) for entry in entries]
                results.append({"image": str(reference), "path": path, "entries": entries_json})
                continue
            if len(parsed) > 1 and not output.current().quiet:
                output.print_line(f"{reference}:{output.printable(path)}:")
            _print(entries, long)
    if output.current().json:
        output.print_json(results[0] if len(results) == 1 else results)


def split_target(text: str) -> tuple[Reference, str]:
    """Split ``REF[:PATH]``: the path begins at the first ``:/``."""
    name, found, rest = text.partition(":/")
    return on_server(Reference.parse(name)), f"/{rest}" if found else "/"


def _list(connection: Connection, reference: Reference, path: str, recursive: bool) -> Iterable[FileEntry]:
    try:
        yield from connection.service.files(reference.repository, reference.target, path, recursive)
    except NotFoundError as error:
        raise connection.explain(error) from None


def _print(entries: Iterable[FileEntry], long: bool) -> None:
    """Print as entries come; the columns of a long listing are aligned batch by batch."""
    batch: list[FileEntry] = []
    for entry in entries:
        if not long:
            output.print_line(output.printable(entry.path))
            continue
        batch.append(entry)
        if len(batch) == _LIST_EVERY:
            _print_long(batch)
            batch.clear()
    _print_long(batch)


def _print_long(batch: list[FileEntry]) -> None:
    rows = [_cells(entry) for entry in batch]
    widths = [max((len(row[at]) for row in rows), default=0) for at in range(4)]
    for mode, links, owner, size, rest in rows:
        columns = (mode.ljust(widths[0]), links.rjust(widths[1]), owner.ljust(widths[2]), size.rjust(widths[3]))
        output.print_line(" ".join((*columns, rest)))


def _cells(entry: FileEntry) -> tuple[str, str, str, str, str]:
    mode = stat.filemode(_KINDS.get(entry.type, stat.S_IFREG) | stat.S_IMODE(entry.mode))
    name = output.printable(entry.path)
    if entry.linkname:
        name += f" -> {output.printable(entry.linkname)}"
    size = output.human_size(entry.size) if _is_file(entry) else "-"
    return mode, str(entry.nlink), f"{entry.uid}:{entry.gid}", size, f"{_time(entry.mtime_ns)} {name}"


def _is_file(entry: FileEntry) -> bool:
    return _KINDS.get(entry.type, stat.S_IFREG) in (stat.S_IFREG, stat.S_IFLNK)


def _time(mtime_ns: int) -> str:
    try:
        moment: Any = datetime.fromtimestamp(mtime_ns // 1_000_000_000, UTC)
    except (ValueError, OverflowError, OSError):
        return f"@{mtime_ns // 1_000_000_000}"
    return f"{moment:%Y-%m-%d %H:%M}"
