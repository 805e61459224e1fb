"""``pagepool umount``: end mounts."""

from __future__ import annotations

import os
from pathlib import Path

import click

from pagepool.cli import output
from pagepool.cli.kernelmounts import kernel_paths
from pagepool.cli.nodeclient import node_client
from pagepool.cli.nodes import node_options
from pagepool.cli.options import output_options
from pagepool.errors import PagepoolError
from pagepool.mount import MountUnknownError, default_directory, list_mounts, unmount
from pagepool.mount.kernel import list_kernel_mounts


@click.command(name="umount", short_help="Unmount images.")
@click.argument("paths", metavar="DIR...", nargs=-1, type=click.Path(path_type=Path))
@click.option("-a", "--all", "everything", is_flag=True, help="All mounts, but those of `pagepool run`.")
@click.option("-f", "--force", is_flag=True, help="Also those in use: whoever uses them gets errors.")
@output_options
@node_options
def command(paths: tuple[Path, ...], everything: bool, force: bool) -> None:
    """Unmount what `pagepool mount` has mounted, also when the process that served it has died.

    Returns when that process has let go of everything: an overlay can be mounted again at once. What was written
    stays in the directory that was given with --upper; what was written to a mount made with --rw is removed.
    --all goes on where one is in use, and leaves the roots of containers (pagepool run) alone.

    \b
    Examples:
      pagepool umount /mnt/app
      pagepool umount --all
    """
    if bool(paths) == everything:
        raise click.UsageError("Give either directories or --all.")
    kernels = list_kernel_mounts()
    if everything:
        paths = (*reversed(kernel_paths()), *(Path(one.path) for one in list_mounts(default_directory())))
    done: list[str] = []
    failures: list[PagepoolError | OSError] = []
    for path in paths:
        try:
            _unmount(path, {one.path for one in kernels}, force)
        except (PagepoolError, OSError) as error:
            if not everything:
                raise
            failures.append(error)
            continue
        done.append(str(path))
        if not output.current().json:
            output.note(f"unmounted {path}")
    if output.current().json:
        output.print_json({"unmounted": done})
    for failure in failures[1:]:
        output.warn(str(failure))
    if failures:
        raise failures[0]


def _unmount(path: Path, kernels: set[Path], force: bool) -> None:
    if Path(os.path.realpath(path)) in kernels:
        try:
            node_client().unmount(path, force=force)
        except MountUnknownError:  # what is on top is not the kernel's
            pass
        else:
            return
    unmount(path, force=force)
