"""``pagepool find``: files of images and overlays that meet conditions."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import click

from pagepool.cli import output
from pagepool.cli.connect import PoolOptions
from pagepool.cli.findtests import (
    by_mode,
    by_name,
    by_number,
    by_path,
    by_size,
    by_type,
    is_newer,
    parse_moment,
)
from pagepool.cli.listing import Entry, describe, print_entries, walk
from pagepool.cli.options import output_options, pool_options
from pagepool.cli.target import Target, TargetType, naming, open_target
from pagepool.image import Kind
from pagepool.vfs import Rootfs

if TYPE_CHECKING:
    from pagepool.cli.findtests import Condition


def _conditions(command: Callable[..., Any]) -> Callable[..., Any]:
    """Spelled with one dash, as find has them, or with two."""
    options = (
        ("name", "PATTERN", "Whose name matches a shell pattern."),
        ("iname", "PATTERN", "The same, whatever the case."),
        ("path", "PATTERN", "Whose whole path does; * matches slashes, too."),
        ("type", "f|d|l|c|b|p|s", "Of this type; several with commas."),
        ("size", "[+|-]N[c|k|M|G]", "Of this size, rounded up to the unit; more (+) or less (-)."),
        ("newer", "TIME|TARGET:PATH", "Changed after that moment, or after that file was."),
        ("older", "TIME", "Changed before that moment."),
        ("perm", "[-|/]MODE", "With just these permission bits, all of them (-), or any (/)."),
        ("uid", "[+|-]N", "Of this owner."),
        ("gid", "[+|-]N", "Of this group."),
        ("links", "[+|-]N", "With so many names."),
    )
    for name, metavar, text in reversed(options):
        option = click.option(f"-{name}", f"--{name}", f"test_{name}", metavar=metavar, help=text)
        command = option(command)
    return command


@click.command(name="find", short_help="Find files in images and overlays.")
@click.argument("targets", metavar="TARGET[:PATH]...", type=TargetType(), nargs=-1, required=True)
@_conditions
@click.option("-empty", "--empty", is_flag=True, help="Files of no bytes, directories without entries.")
@click.option("-maxdepth", "--maxdepth", type=click.IntRange(min=0), metavar="N", help="At most so far below PATH.")
@click.option("-mindepth", "--mindepth", type=click.IntRange(min=0), metavar="N", help="At least so far below PATH.")
@click.option("-l", "--long", is_flag=True, help="Mode, owner, size and time of each file.")
@click.option("-print0", "--print0", "-0", is_flag=True, help="Names as they are, each with a NUL behind it.")
@output_options
@pool_options
def command(
    targets: tuple[Target, ...],
    empty: bool,
    maxdepth: int | None,
    mindepth: int | None,
    long: bool,
    print0: bool,
    **options: Any,
) -> None:
    """Find files that meet all conditions, in images and overlays. Nothing is fetched but the tree.

    TARGET is REF for an image, DIR for an overlay, whose directory DIR begins with "/" or ".". PATH begins at
    the first ":/"; without it everything is looked at. A directory comes before what is in it. TIME is an ISO
    date and time, UTC unless it says otherwise, or @SECONDS since 1970.

    \b
    Examples:
      pagepool find app:1 -name '*.so*' -type f
      pagepool find app:1:/usr -size +10M --long
      pagepool find app:1 -perm /6000 -type f
      pagepool find ./work -newer 2024-05-06T07:08 --json
      pagepool find app:1:/etc -newer app:1:/etc/os-release
    """
    values = {name: options.pop(f"test_{name}") for name in _TESTS}
    pool: PoolOptions = options  # type: ignore[assignment]
    conditions = [_TESTS[name](value, pool) for name, value in values.items() if value is not None]
    depths = range(mindepth or 0, sys.maxsize if maxdepth is None else maxdepth + 1)
    results: list[dict[str, Any]] = []
    for target in targets:
        with open_target(pool, target) as root, naming(target):
            found = _find(root, target.path.rstrip("/") or "/", conditions, depths, empty=empty)
            if output.current().json:
                results += [{"target": target.name, **describe(root, entry)} for entry in found]
            elif print0:
                _print_nul(found)
            else:
                print_entries(root, found, long=long)
    if output.current().json:
        output.print_json({"entries": results})


def _find(root: Rootfs, path: str, conditions: list[Condition], depths: range, *, empty: bool) -> Iterator[Entry]:
    base = path.rstrip("/").count("/")
    for here, found in walk(root, path, depths.stop - 1):
        depth = 0 if here == path else here.count("/") - base
        wanted = depth in depths and all(condition(here, found) for condition in conditions)
        if wanted and (not empty or _is_empty(root, here, found.kind, found.size)):
            yield here, found


def _is_empty(root: Rootfs, path: str, kind: Kind, size: int) -> bool:
    return not root.listdir(path) if kind is Kind.DIRECTORY else kind is Kind.REGULAR and not size


def _print_nul(entries: Iterable[Entry]) -> None:
    for path, _ in entries:
        output.write_bytes(path.encode("utf-8", "surrogateescape") + b"\0")


def _newer(text: str, options: PoolOptions) -> Condition:
    """Than a moment, or than a file, which has a path and no moment has."""
    if ":/" not in text:
        return is_newer(parse_moment(text))
    target = TargetType().convert(text, None, None)
    with open_target(options, target) as root, naming(target):
        return is_newer(root.stat(target.path).mtime_ns)


def _older(text: str, _: PoolOptions) -> Condition:
    moment = parse_moment(text)
    return lambda _, found: found.mtime_ns < moment


_TESTS: dict[str, Callable[[str, PoolOptions], Condition]] = {
    "name": lambda text, _: by_name(text),
    "iname": lambda text, _: by_name(text, fold=True),
    "path": lambda text, _: by_path(text),
    "type": lambda text, _: by_type(text),
    "size": lambda text, _: by_size(text),
    "newer": _newer,
    "older": _older,
    "perm": lambda text, _: by_mode(text),
    "uid": lambda text, _: by_number(text, lambda found: found.uid),
    "gid": lambda text, _: by_number(text, lambda found: found.gid),
    "links": lambda text, _: by_number(text, lambda found: found.nlink),
}
