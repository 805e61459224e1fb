"""Entries of file systems, as lists show them: names, long lines as of ``ls -l``, and JSON."""

from __future__ import annotations

import stat
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pagepool.cli import output
from pagepool.image import Kind
from pagepool.vfs.interface import FORMATS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pagepool.vfs import Attributes, Rootfs

_LIST_EVERY = 2000
_SIZED = (Kind.REGULAR, Kind.SYMLINK)
Entry = tuple[str, "Attributes"]
"""An absolute path, and what there is to know of it."""


def describe(root: Rootfs, entry: Entry) -> dict[str, Any]:
    """An entry as JSON, fields as the service names them."""
    path, found = entry
    shown: dict[str, Any] = {
        "path": output.as_text(path),
        "type": found.kind.value,
        "mode": found.mode,
        "uid": found.uid,
        "gid": found.gid,
        "size": found.size,
        "mtime_ns": found.mtime_ns,
        "nlink": found.nlink,
    }
    if found.kind is Kind.SYMLINK:
        shown["linkname"] = output.as_text(str(root.readlink(path)))
    if found.kind in (Kind.CHAR, Kind.BLOCK):
        shown |= {"devmajor": found.devmajor, "devminor": found.devminor}
    return shown


def walk(root: Rootfs, path: str, depth: int = sys.maxsize) -> Iterator[Entry]:
    """A path and everything below, a directory before what is in it, by name. Symlinks are not followed.

    Args:
        path: without a slash at its end.
        depth: how far below to go; 0 is the path alone.
    """
    found = root.lstat(path)
    yield path, found
    if found.kind is Kind.DIRECTORY:
        yield from walk_below(root, path, depth)


def walk_below(root: Rootfs, path: str, depth: int = sys.maxsize) -> Iterator[Entry]:
    """Everything below a directory."""
    stack = [iter(root.scandir(path))] if depth else []
    while stack:
        entry = next(stack[-1], None)
        if entry is None:
            stack.pop()
            continue
        yield entry.path, entry.attributes
        if entry.is_dir() and len(stack) < depth:
            stack.append(iter(root.scandir(entry.path)))


def print_entries(root: Rootfs, entries: Iterable[Entry], *, long: bool) -> None:
    """Print entries as they come; the columns of a long listing are aligned batch by batch."""
    if not long:
        output.print_lines(output.printable(path) for path, _ in entries)
        return
    batch: list[tuple[str, ...]] = []
    for entry in entries:
        batch.append(_cells(root, entry))
        if len(batch) == _LIST_EVERY:
            print_long(batch)
            batch.clear()
    print_long(batch)


def print_long(rows: Iterable[tuple[str, ...]]) -> None:
    """Print lines of mode, links, owner, size, and the rest, aligned."""
    rows = list(rows)
    widths = [max((len(row[at]) for row in rows), default=0) for at in range(4)]
    for mode, links, owner, size, rest in rows:
        columns = (mode.ljust(widths[0]), links.rjust(widths[1]), owner.ljust(widths[2]), size.rjust(widths[3]))
        output.print_line(" ".join((*columns, rest)))


def long_cells(
    kind: int, mode: int, nlink: int, owner: str, size: int | None, mtime_ns: int, path: str, target: str
) -> tuple[str, ...]:
    """The columns of one line.

    Args:
        kind: the file type bits of its mode.
        size: None for what has none.
        target: of a symlink or hard link; else "".
    """
    name = output.printable(path) + (f" -> {output.printable(target)}" if target else "")
    shown = "-" if size is None else output.human_size(size)
    return stat.filemode(kind | stat.S_IMODE(mode)), str(nlink), owner, shown, f"{_time(mtime_ns)} {name}"


def _cells(root: Rootfs, entry: Entry) -> tuple[str, ...]:
    path, found = entry
    size = found.size if found.kind in _SIZED else None
    target = str(root.readlink(path)) if found.kind is Kind.SYMLINK else ""
    owner = f"{found.uid}:{found.gid}"
    return long_cells(FORMATS[found.kind], found.mode, found.nlink, owner, size, found.mtime_ns, path, target)


def _time(mtime_ns: int) -> str:
    try:
        moment: Any = datetime.fromtimestamp(mtime_ns // 1_000_000_000, UTC)
    except (ValueError, OverflowError, OSError):
        return f"@{mtime_ns // 1_000_000_000}"
    return f"{moment:%Y-%m-%d %H:%M}"
