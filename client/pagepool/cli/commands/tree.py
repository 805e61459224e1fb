"""``pagepool tree``: the merged tree of an image as text, and text as a tree file (docs/format/treedump.md)."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import click

from pagepool.cli import output
from pagepool.cli.connect import PoolOptions, on_server
from pagepool.cli.options import output_options, pool_options
from pagepool.cli.target import complete_file, open_image
from pagepool.digest import Digest, blake3_raw
from pagepool.errors import ImageInvalidError
from pagepool.image import TreeFile
from pagepool.image.treedump import build_tree, dump_tree
from pagepool.oci import Reference

if TYPE_CHECKING:
    from collections.abc import Iterator


@click.group(name="tree", short_help="Show an image's tree as text, and make one of text.")
def command() -> None:
    """Look at trees: the merged file systems of images, a line for each name.

    \b
    Examples:
      pagepool tree dump app:1 > app.dump
      pagepool tree build app.dump app.tree
    """


@command.command(name="dump", short_help="Print a tree as text.")
@click.argument("source", metavar="REF|FILE", shell_complete=complete_file)
@output_options
@pool_options
def dump(source: str, **options: Unpack[PoolOptions]) -> None:
    """Print a tree as text: all that it says of every file, and nothing of what is in them.

    FILE is a tree file, and begins with "/" or ".". Equal trees print equal lines.

    \b
    Examples:
      pagepool tree dump app:1
      diff <(pagepool tree dump app:1) <(pagepool tree dump app:2)
    """
    with _open_tree(source, options) as tree:
        if output.current().json:
            output.print_json({"tree": str(Digest("blake3", tree.digest)), "lines": list(dump_tree(tree))})
        else:
            output.print_lines(dump_tree(tree))


@command.command(name="build")
@click.argument("source", metavar="DUMP", type=click.Path(allow_dash=True, path_type=Path))
@click.argument("target", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path))
@output_options
def build(source: Path, target: Path) -> None:
    """Make the tree file that a dump describes, and print its digest.

    Of a dump that was not changed it is the same file again. DUMP "-" is read from standard input.

    \b
    Examples:
      pagepool tree build app.dump app.tree
      pagepool tree dump app:1 | pagepool tree build - app.tree
    """
    try:
        text = sys.stdin.read() if str(source) == "-" else source.read_text("ascii")
    except UnicodeDecodeError as error:
        raise ImageInvalidError(str(source), "a dump is ASCII text") from error
    raw = build_tree(text.splitlines())
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        temporary.write_bytes(raw)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    digest = str(Digest("blake3", blake3_raw(raw)))
    if output.current().json:
        output.print_json({"tree": digest, "size": len(raw)})
    else:
        output.print_line(digest)


@contextmanager
def _open_tree(source: str, options: PoolOptions) -> Iterator[TreeFile]:
    if source.startswith(("/", ".")):
        tree = TreeFile.open(Path(source))
        try:
            yield tree
        finally:
            tree.close()
        return
    with open_image(options, on_server(Reference.parse(source))) as image:
        tree = image.client.load_tree(image.repository, image.tree)
        try:
            yield tree
        finally:
            tree.close()
