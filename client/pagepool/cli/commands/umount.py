"""``pagepool umount``: end mounts."""

from __future__ import annotations

import os
from pathlib import Path

import click

from pagepool.cli import output
from pagepool.cli.nodes import node_client, node_options
from pagepool.cli.options import output_options
from pagepool.errors import PagepoolError
from pagepool.mount import default_directory, list_mounts, unmount
from pagepool.mount.kernel import KernelMount, list_kernel_mounts
from pagepool.node.records import MountRecord, read_records


@click.command(name="umount", short_help="Unmount images.")
@click.argument("paths", metavar="DIR...", nargs=-1, type=click.Path(path_type=Path))
@click.option("-a", "--all", "everything", is_flag=True, help="All mounts that `pagepool mount` lists.")
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
        paths = (*_of_the_node(kernels), *(Path(one.path) for one in list_mounts(default_directory())))
    done: list[str] = []
    failures: list[PagepoolError | OSError] = []
    for path in paths:
        try:
            if Path(os.path.realpath(path)) in {one.path for one in kernels}:
                node_client().unmount(path, force=force)
            else:
                unmount(path, force=force)
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


def _of_the_node(kernels: list[KernelMount]) -> list[Path]:
    """The mounts that were asked for by `pagepool mount`: last ones first, as they may be in each other."""
    records = {record.id: record for record in read_records(node_client().places.mounts, MountRecord)}
    ours = [(one, records.get(one.source.partition(":")[0])) for one in reversed(kernels)]
    return [one.path for one, record in ours if record is not None and not record.owner]
