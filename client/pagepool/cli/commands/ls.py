"""``pagepool ls``: the files in an image or overlay."""

from __future__ import annotations

import stat
from collections.abc import Iterable
from typing import Any, Unpack

import click

from pagepool.cli import output
from pagepool.cli.connect import Connection, PoolOptions, connect
from pagepool.cli.listing import describe, long_cells, print_entries, print_long, walk
from pagepool.cli.options import output_options, pool_options
from pagepool.cli.target import Target, TargetType, naming, open_changed
from pagepool.cli.waiting import wait_until_read
from pagepool.errors import NotFoundError, PendingError
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
_WAIT_S = 60.0
"""As long as the library waits."""


@click.command(name="ls", short_help="List files in images and overlays.")
@click.argument("targets", metavar="TARGET...", type=TargetType(), nargs=-1, required=True)
@click.option("-l", "--long", is_flag=True, help="Mode, owner, size and time of each file.")
@click.option("-R", "--recursive", is_flag=True, help="Everything below, too.")
@output_options
@pool_options
def command(targets: tuple[Target, ...], long: bool, recursive: bool, **options: Unpack[PoolOptions]) -> None:
    """List files in images, as they are after all layers are applied, and in overlays.

    TARGET is REF[:PATH] for an image, DIR[:PATH] for an overlay, whose directory DIR begins with "/" or ".".
    PATH begins at the first ":/" and is absolute in it; the root if not given. Needs a pagepool service.

    \b
    Examples:
      pagepool ls app:1
      pagepool ls -l app:1:/etc
      pagepool ls -R --json app:1:/usr/lib
      pagepool ls -l localhost:5000/app@sha256:…:/bin/sh
      pagepool ls -l ./work:/var/log
    """
    results = []
    for target in targets:
        if len(targets) > 1 and not (output.current().quiet or output.current().json):
            output.print_line(f"{output.printable(f'{target.name}:{target.path}')}:")
        if target.directory is not None:
            found = _overlay(options, target, long, recursive)
        else:
            found = _image(options, target, long, recursive)
        results.append({"image" if target.reference else "overlay": target.name, "path": target.path, "entries": found})
    if output.current().json:
        output.print_json(results[0] if len(results) == 1 else {"listings": results})


def _overlay(options: PoolOptions, target: Target, long: bool, recursive: bool) -> list[dict[str, Any]]:
    """List what an overlay shows: print it, or return it for JSON."""
    assert target.directory is not None
    with open_changed(options, target.directory) as root, naming(target):
        path = target.path.rstrip("/") or "/"
        if recursive or not root.is_dir(path):
            entries = walk(root, path)
        else:
            entries = ((entry.path, entry.attributes) for entry in root.scandir(path))
        if output.current().json:
            return [describe(root, entry) for entry in entries]
        print_entries(root, entries, long=long)
    return []


def _image(options: PoolOptions, target: Target, long: bool, recursive: bool) -> list[dict[str, Any]]:
    """List what the service says of an image: print it, or return it for JSON."""
    assert target.reference is not None
    with connect(options, target.reference) as connection:
        entries = _list(connection, target.reference, target.path, recursive)
        if output.current().json:
            return [dict(entry.raw) for entry in entries]
        _print(entries, long)
    return []


def _list(connection: Connection, reference: Reference, path: str, recursive: bool) -> Iterable[FileEntry]:
    """List; of an image that was pushed just now, when its layers have been read."""
    listed = (reference.repository, reference.target, path, recursive)
    try:
        try:
            yield from connection.service.files(*listed)
        except PendingError:  # before anything was listed
            wait_until_read(connection, reference.repository, reference.target, _WAIT_S)
            yield from connection.service.files(*listed)
    except NotFoundError as error:
        raise connection.explain(error) from None


def _print(entries: Iterable[FileEntry], long: bool) -> None:
    """Print as entries come; the columns of a long listing are aligned batch by batch."""
    batch: list[tuple[str, ...]] = []
    for entry in entries:
        if not long:
            output.print_line(output.printable(entry.path))
            continue
        batch.append(_cells(entry))
        if len(batch) == _LIST_EVERY:
            print_long(batch)
            batch.clear()
    print_long(batch)


def _cells(entry: FileEntry) -> tuple[str, ...]:
    kind = _KINDS.get(entry.type, stat.S_IFREG)
    size = entry.size if kind in (stat.S_IFREG, stat.S_IFLNK) else None
    owner = f"{entry.uid}:{entry.gid}"
    return long_cells(kind, entry.mode, entry.nlink, owner, size, entry.mtime_ns, entry.path, entry.linkname)
