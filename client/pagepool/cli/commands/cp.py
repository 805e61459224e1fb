"""``pagepool cp``: copy files out of images, and in and out of overlays and containers that run."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Unpack

import click

from pagepool.cli import output, roots
from pagepool.cli.connect import PoolOptions, on_server
from pagepool.cli.containers import find_running
from pagepool.cli.copying import Copied, Copier, Destination, LocalPlace, RootPlace
from pagepool.cli.insideplace import InsidePlace, find_views
from pagepool.cli.options import ReferenceType, output_options, pool_options
from pagepool.cli.progress import counting
from pagepool.cli.target import Target, complete_file, open_overlay, open_target, parse_target
from pagepool.container import Record
from pagepool.container.finding import open_inside
from pagepool.errors import PathUnknownError
from pagepool.oci import Reference
from pagepool.overlay import OverlayUnknownError
from pagepool.vfs import fail


@dataclass(frozen=True, slots=True)
class _Side:
    """A source or destination: a path here, or in an image, an overlay or a container.

    Args:
        target: the image or overlay.
        path: absolute in its image, overlay or container.
        text: as it was written.
        container: None, as `target` is, for a path of this machine.
    """

    target: Target | None
    path: str
    text: str
    container: Record | None = None

    @property
    def where(self) -> str:
        """The image, overlay or container, for people; "" for this machine."""
        return self.text.partition(":/")[0] if self.container else self.target.name if self.target else ""

    @property
    def name(self) -> str:
        """The last component; "" for a root, and for what ends in a dot."""
        last = self.path.rstrip("/").rpartition("/")[2]
        return "" if last in (".", "..") else last


@click.command(name="cp", short_help="Copy files out of images, in and out of overlays and containers.")
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True, shell_complete=complete_file)
@click.argument("destination", metavar="DESTINATION", shell_complete=complete_file)
@click.option("-r", "-R", "--recursive", is_flag=True, help="Directories, too, with all that is in them.")
@click.option("-p", "--preserve", is_flag=True, help="Owner, times, all of the mode, and extended attributes, too.")
@click.option("--image", type=ReferenceType(), metavar="REF", help="Make the overlay over this image if there is none.")
@output_options
@pool_options
def command(
    sources: tuple[str, ...],
    destination: str,
    recursive: bool,
    preserve: bool,
    image: Reference | None,
    **options: Unpack[PoolOptions],
) -> None:
    """Copy each SOURCE to DESTINATION, or into it if that is a directory.

    A file in an image is REF:PATH, one in an overlay is DIR:PATH, whose directory DIR begins with "/" or ".", and one
    in a container that runs is CONTAINER:PATH, by its name or id (twelve characters suffice); what has no ":/" in it
    is a file of this machine. Where a container that runs has the name of an image, it is meant: REF:TAG is the
    image. Images can be copied from, overlays in both directions, if nobody else has them open, and containers in
    both, with their volumes, as root. A root, or a path that ends in "/.", stands for all that is in it.

    What is new gets the permissions of its source; without --preserve it belongs to root in an overlay or container,
    and to you on this machine. What is there keeps its own. A single file is copied through symlinks; with
    --recursive, symlinks are copied as such. Devices, FIFOs and sockets are left out.

    \b
    Examples:
      pagepool cp app:1:/etc/passwd .
      pagepool cp -rp app:1:/usr/share/doc ./doc
      pagepool cp my.conf ./work:/etc/app/
      pagepool cp -r app:2:/etc/ssl ./work:/etc/
      pagepool cp --image app:1 my.conf ./new:/etc/app.conf
      pagepool cp web:/var/log/nginx/error.log .
    """
    into = _side(destination)
    if into.target is not None and into.target.directory is None:
        raise click.UsageError(f"{destination} is in an image, which cannot be changed: make an overlay of it.")
    if not into.where and os.path.islink(destination) and os.readlink(destination).startswith("/proc/"):  # noqa: PTH114, PTH115
        # Such as /dev/stdout: the copy would be in its place, for everybody on this machine.
        raise click.UsageError(f"{destination} is a link to what a process has open: pagepool cat prints files.")
    if image is not None and into.target is None:
        raise click.UsageError("--image is for a destination in an overlay.")
    done = Copied()
    with ExitStack() as stack:
        places = _Places(options, stack)
        if image is not None and into.target is not None:
            places.make(into.target, on_server(image))
        try:
            target = places.open(into)
        except OverlayUnknownError as error:
            error.args = (f"{error}: --image REF makes one",)
            raise
        on_bytes = stack.enter_context(counting("copying"))
        for source in map(_side, sources):
            path = _choose_path(target, source, into, len(sources) > 1)
            copier = Copier(
                places.open(source), target, preserve=preserve, done=done, on_bytes=on_bytes, on_skip=_warner(source)
            )
            if source.where and places.open(source).look(source.path) is None:
                raise PathUnknownError(f"{source.where}:{source.path}")
            copier.copy(source.path, path, recursive=recursive)
    if output.current().json:
        output.print_json({"destination": destination, "files": done.files, "size": done.size, "skipped": done.skipped})
    else:
        output.note(f"copied {output.counted(done.files, 'file')}, {output.human_size(done.size)}, to {destination}")


class _Places:
    """The file systems of one copy, each opened once.

    Args:
        stack: closes them.
    """

    def __init__(self, options: PoolOptions, stack: ExitStack) -> None:
        self._options, self._stack = options, stack
        self._opened: dict[str, Destination] = {"": LocalPlace()}

    def make(self, target: Target, image: Reference) -> None:
        """Open an overlay, making it over an image if it is not there."""
        assert target.directory is not None
        root = self._stack.enter_context(open_overlay(self._options, target.directory, image))
        self._opened[target.name] = RootPlace(root)

    def open(self, side: _Side) -> Destination:
        if side.where not in self._opened:
            self._opened[side.where] = self._open(side)
        return self._opened[side.where]

    def _open(self, side: _Side) -> Destination:
        if side.container is not None:
            _, root = open_inside(side.container, roots.containers_directory(), self._stack)
            return InsidePlace(root, find_views(side.container.pid))
        assert side.target is not None
        return RootPlace(self._stack.enter_context(open_target(self._options, side.target)))


def _side(text: str) -> _Side:
    name, found, path = text.partition(":/")
    if not found:
        return _Side(None, text, text)
    container = find_running(name)
    if container is not None:
        return _Side(None, f"/{path}", text, container)
    target = parse_target(text)
    return _Side(target, target.path, text)


def _choose_path(target: Destination, source: _Side, into: _Side, several: bool) -> str:
    """Under what name a source is copied: in the destination if that is a directory, else instead of it.

    Raises:
        OSError: ENOTDIR where the destination has to be a directory, and is none.
    """
    if target.is_directory(into.path):
        return f"{into.path.rstrip('/')}/{source.name}" if source.name else into.path
    if several or into.path.endswith("/"):
        fail(errno.ENOTDIR, os.fsencode(into.text))
    return into.path


def _warner(source: _Side) -> Callable[[str], None]:
    where = f"{source.where}:" if source.where else ""
    return lambda path: output.warn(f"{where}{path} is neither file, directory nor symlink, and is left out")
