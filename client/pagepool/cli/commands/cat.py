"""``pagepool cat``: the content of files in images and overlays."""

from __future__ import annotations

from typing import Unpack

import click

from pagepool.cli import output
from pagepool.cli.connect import PoolOptions
from pagepool.cli.options import output_options, pool_options
from pagepool.cli.target import Target, TargetType, naming, open_target
from pagepool.vfs import Rootfs

_PIECE = 1 << 20


@click.command(name="cat", short_help="Print files of images and overlays.")
@click.argument("targets", metavar="TARGET:PATH...", type=TargetType(), nargs=-1, required=True)
@output_options
@pool_options
def command(targets: tuple[Target, ...], **options: Unpack[PoolOptions]) -> None:
    """Print files, byte for byte, one after the other. Symlinks are followed, inside the image.

    TARGET is REF for an image, DIR for an overlay, whose directory DIR begins with "/" or ".". PATH begins at
    the first ":/". Only what is printed is fetched, and kept in the pool for the next time.

    \b
    Examples:
      pagepool cat app:1:/etc/os-release
      pagepool cat app:1:/etc/passwd ./work:/etc/passwd
      pagepool cat app:1:/usr/share/doc/README.gz | zless
    """
    for target in targets:
        if not target.given:
            raise click.UsageError(f"{target} has no path: TARGET:/PATH")
    for target in targets:
        with open_target(options, target) as root, naming(target):
            _print(root, target.path)


def _print(root: Rootfs, path: str) -> None:
    with root.open(path, "rb", buffering=0) as file:
        offset = 0
        while data := file.view(offset, _PIECE):
            output.write_bytes(data)
            offset += len(data)
