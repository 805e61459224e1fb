"""``pagepool diff``: what an overlay or a container changed, or what changed from one image to another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Unpack

import click

from pagepool.cli import output
from pagepool.cli.connect import PoolOptions
from pagepool.cli.ending import cleaning_up
from pagepool.cli.options import output_options, pool_options
from pagepool.cli.progress import counting
from pagepool.cli.target import Target, TargetType, open_target
from pagepool.cli.uppers import read_while_written
from pagepool.layout.publish import published
from pagepool.library import Changed, Upper
from pagepool.overlay import Change, ChangeKind, iter_layer, plan_diff

if TYPE_CHECKING:
    from pagepool.vfs import FileSystem, Rootfs


@click.command(name="diff", short_help="Show what changed in an overlay.")
@click.argument("target", metavar="TARGET", type=TargetType(containers=True))
@click.argument("other", metavar="[TARGET]", type=TargetType(containers=True), required=False)
@click.option("--tar", "tar", metavar="FILE", help='Write the changes as a layer into FILE; "-" is standard output.')
@output_options
@pool_options
@cleaning_up()
def command(target: Target, other: Target | None, tar: str | None, **options: Unpack[PoolOptions]) -> None:
    """Show what an overlay changed, or, of two TARGETs, what changed from the first to the second.

    A TARGET is REF for an image, DIR for an overlay or for what a kernel mount wrote; DIR begins with "/" or "."; or
    the name of a container that runs, its id, or the first twelve characters of that. Where a container has the name
    of an image, it is meant: REF:TAG is the image.

    A line begins with A for what was added, C for what was modified (content, metadata, or which names are one
    file), D for what was deleted. With --quiet, only the paths.

    With --tar, the changes become an OCI layer: a tar, with whiteouts for what was deleted, that any tool can
    apply.

    \b
    Examples:
      pagepool diff ./work
      pagepool diff --json ./work
      pagepool diff --tar layer.tar ./work
      pagepool diff app:1 app:2
      pagepool diff web
    """
    if other is None and target.directory is None:
        hint = f" The directory is ./{target}." if Path(str(target)).is_dir() else ""
        raise click.UsageError(
            f"{target} is an image, and no container that runs: name a second one to compare it with.{hint}"
        )
    for one in (target, other):
        if one is not None and one.given:
            raise click.UsageError(f"{one} has a path: diff compares all of a file system.")
    container = target.container or (None if other is None else other.container)
    with ExitStack() as stack:
        sides = read_while_written(container, stack, lambda undo: _open_sides(options, target, other, undo))
        now, changes = sides.now, sides.changes
        if tar is not None:
            _write_layer(now, changes, tar)
            if container is not None and not all(one.is_current() for one in sides.uppers):
                output.warn(f"container {container.name or container.id} wrote meanwhile: {tar} is not of one moment")
        elif output.current().json:
            output.print_json({"changes": [_describe(now, change) for change in changes]})
        else:
            output.print_lines(_line(change) for change in changes)


class _Sides(NamedTuple):
    """The file system that changes lead to, the changes, and the uppers that are compared."""

    now: FileSystem
    changes: list[Change]
    uppers: list[Upper]


def _open_sides(options: PoolOptions, target: Target, other: Target | None, undo: ExitStack) -> _Sides:
    root = undo.enter_context(open_target(options, target))
    if other is None:
        assert isinstance(root, Changed)
        return _Sides(root.fs, root.changes(), _uppers(root))
    now = undo.enter_context(open_target(options, other))
    return _Sides(now.fs, plan_diff(now.fs, root.fs), _uppers(root, now))


def _uppers(*roots: Rootfs) -> list[Upper]:
    return [root for root in roots if isinstance(root, Upper)]


def _line(change: Change) -> str:
    path = output.printable(f"/{_text(change.path)}")
    return path if output.current().quiet else f"{change.kind.letter} {path}"


def _describe(now: FileSystem, change: Change) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "path": f"/{_text(change.path)}",
        "change": change.kind.value,
        "letter": change.kind.letter,
    }
    if change.kind is not ChangeKind.DELETED:
        found = now.attributes(change.ino)
        shown |= {"type": found.kind.value, "size": found.size}
        if change.opaque:
            shown["opaque"] = True
    return shown


def _text(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")


def _write_layer(now: FileSystem, changes: list[Change], name: str) -> None:
    size = 0
    with counting("writing") as count, _open(name) as write:
        for chunk in iter_layer(now, changes):
            write(chunk)
            size += len(chunk)
            count(len(chunk))
    output.note(f"wrote {output.counted(len(changes), 'change')}, {output.human_size(size)}")


@contextmanager
def _open(name: str) -> Iterator[Callable[[bytes | memoryview], object]]:
    """What writes into a file, which gets its name when it is whole, or to standard output."""
    if name == "-":
        yield output.write_bytes
    else:
        with published(Path(name)) as file:
            yield file.write
