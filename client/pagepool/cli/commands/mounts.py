"""``pagepool mounts``: what is mounted on this machine, and how much of each image is here."""

from __future__ import annotations

import click

from pagepool.cli import output
from pagepool.cli.kernelmounts import kernel_rows, state_of
from pagepool.cli.nodeclient import asked_node
from pagepool.cli.nodes import node_options
from pagepool.cli.options import output_options
from pagepool.mount import default_directory, list_mounts


@click.command(name="mounts", short_help="List the kernel mounts of this machine.")
@output_options
@node_options
def command() -> None:
    """List what the node has mounted, and what of it is still to be fetched. `pagepool mount` lists FUSE mounts, too.

    "fully local" means that nothing of the image needs the node, the network or the service any more: every file
    is here, and none is read through the node. A large file that was opened before all of it was here is read
    through the node for as long as a program has it open, and fifteen seconds to an hour longer.

    \b
    Examples:
      pagepool mounts
      pagepool mounts --json | jq '.mounts[] | select(.local | not) | .path'
    """
    asked_node()
    rows = kernel_rows()
    if output.current().json:
        output.print_json({"mounts": rows})
    elif output.current().quiet:
        output.print_lines(output.printable(str(row["path"])) for row in rows)
    else:
        cells = [
            (
                str(row["id"]),
                output.printable(str(row["path"])),
                output.printable(str(row["image"])),
                output.human_size(row["bytes"]) if "bytes" in row else "?",
                output.human_size(row["missing_bytes"]) if "missing_bytes" in row else "?",
                state_of(row),
            )
            for row in rows
        ]
        output.print_table(("ID", "PATH", "IMAGE", "SIZE", "MISSING", "STATE"), cells, right=(3, 4))
        if others := list_mounts(default_directory()):
            output.note(f"{output.counted(len(others), 'mount')} by FUSE beside these: pagepool mount lists all")
