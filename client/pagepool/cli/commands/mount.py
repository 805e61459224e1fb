"""``pagepool mount``: an image, or an overlay of one, as a directory; without arguments, what is mounted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import click

from pagepool.cli import output
from pagepool.cli.kernelmounts import kernel_rows, state_of
from pagepool.cli.mounting import mount
from pagepool.cli.nodeclient import may_ask, node_client
from pagepool.cli.nodes import SizeType, SpelledOption, node_options
from pagepool.cli.options import ReferenceType, output_options, platform_option, pool_options
from pagepool.mount import default_directory, list_mounts

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pagepool.cli.mounting import MountGiven
    from pagepool.mount import MountState
    from pagepool.oci import Reference


class _Directory(click.Argument):
    """DIR, which is named without the bracket that ends the two arguments together."""

    def get_error_hint(self, ctx: click.Context | None) -> str:  # noqa: ARG002 - click's signature
        return "'DIR'"


@click.command(name="mount", short_help="Mount an image or an overlay of it.")
@click.argument("reference", metavar="[REF", type=ReferenceType(), required=False)
@click.argument(
    "path", cls=_Directory, metavar="DIR]", type=click.Path(path_type=Path, file_okay=False), required=False
)
@click.option(
    "--upper",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Keep what is written in this directory: a new overlay, or one of the same image [nothing can be written].",
)
@click.option("--ro", "read_only", is_flag=True, help="Nothing can be written, though there is an overlay.")
@click.option("--rw", "temporary", is_flag=True, help="What is written is kept until it is unmounted (kernel only).")
@click.option(
    "--eager",
    "--fill",
    "eager",
    cls=SpelledOption,
    is_flag=True,
    help="Fetch all of the image first: then the service is not needed any more.",
)
@click.option("--no-fill", is_flag=True, help="Do not fetch the rest of the image in the background (kernel only).")
@click.option(
    "--quota",
    "--disk",
    "quota",
    cls=SpelledOption,
    type=SizeType(),
    metavar="SIZE",
    help="Most bytes that may be written (kernel only).",
)
@click.option(
    "--backend",
    type=click.Choice(["auto", "kernel", "fuse"]),
    default="auto",
    envvar="PAGEPOOL_BACKEND",
    show_default=True,
    help="What mounts it [$PAGEPOOL_BACKEND].",
)
@click.option("--foreground", is_flag=True, help="Serve the mount until Ctrl-C, not in the background (fuse only).")
@click.option("--dev", is_flag=True, help="Device nodes are devices (root only).")
@click.option("--nosuid", is_flag=True, help="setuid, setgid and file capabilities do not count.")
@click.option(
    "--allow-other/--no-allow-other",
    default=None,
    help="Other users may look into it; for a user /etc/fuse.conf has to allow that [root: yes, users: no].",
)
@platform_option
@output_options
@node_options
@pool_options
def command(reference: Reference | None, path: Path | None, **given: Unpack[MountGiven]) -> None:
    """Mount the image REF at the directory DIR, where every program can use it.

    Files are fetched when they are first opened, and kept. With --upper what is written is kept, survives the
    death of every process, and can be mounted again, compared with the image (pagepool diff) or pushed as a new
    one (pagepool commit).

    The backend kernel gives a mount of the kernel's own: files that are here cost what local files cost, and all
    containers share one copy of each in memory, whatever image it came with. It needs root, Linux 6.5, EROFS and
    overlayfs; the node (pagepool node), which fetches what is missing, is started if it is not running. The
    backend fuse works wherever there is /dev/fuse; users other than root need fusermount3 (package fuse3). auto
    takes the kernel where this machine can do that, and with this image, and says why if not. Without arguments,
    lists what is mounted.

    \b
    Examples:
      pagepool mount app:1 /mnt/app
      pagepool mount app:1 /mnt/app --upper ./work
      pagepool mount app:1 /mnt/app --rw --eager
      pagepool mount
      pagepool umount /mnt/app
    """
    if reference is None:
        _print_mounts(list_mounts(default_directory()), kernel_rows() if may_ask(node_client()) else [])
        return
    if path is None:
        raise click.UsageError("Missing argument 'DIR': where to mount the image.")
    mount(reference, path, given)


def _print_mounts(states: Iterable[MountState], kernel: list[dict[str, Any]]) -> None:
    rows = kernel + [
        {
            "path": str(one.path),
            "image": one.source,
            "upper": one.record.upper if one.record else None,
            "read_only": one.read_only,
            "backend": one.record.backend if one.record else "fuse",
            "pid": one.record.pid if one.record else None,
            "dead": one.dead,
        }
        for one in states
    ]
    if output.current().json:
        output.print_json({"mounts": rows})
    elif output.current().quiet:
        output.print_lines(output.printable(str(row["path"])) for row in rows)
    else:
        cells = [
            (str(row["path"]), str(row["image"]), str(row["backend"]), str(row["upper"] or "-"), state_of(row))
            for row in rows
        ]
        output.print_table(("PATH", "IMAGE", "BACKEND", "UPPER", "STATE"), cells)
