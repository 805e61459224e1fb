"""What ``pagepool mount`` does once its command line is read. What only FUSE needs is loaded for that."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pagepool.cli import exits
from pagepool.cli.connect import PoolOptions, on_server
from pagepool.cli.kernelmounts import check_free, choose, kernel_row, mount_kernel, tell_offline
from pagepool.cli.nodeclient import node_client
from pagepool.cli.state import current
from pagepool.cli.usage import refuse
from pagepool.errors import InvalidError, KernelLimitError
from pagepool.node.client import KernelMountOptions

if TYPE_CHECKING:
    from pathlib import Path

    from pagepool.node.client import KernelMount
    from pagepool.oci import Platform, Reference


class MountGiven(PoolOptions):
    """The options, by the names that click gives them."""

    upper: Path | None
    read_only: bool
    temporary: bool
    eager: bool
    no_fill: bool
    quota: int | None
    backend: str
    foreground: bool
    dev: bool
    nosuid: bool
    allow_other: bool | None
    platform: Platform | None


def mount(reference: Reference, path: Path, given: MountGiven) -> int:
    """Mount an image at a directory, and say so.

    Args:
        reference: the image.
        path: the directory.
        given: the options.

    Returns:
        The exit code.

    Raises:
        click.UsageError: options that exclude each other.
        PagepoolError, OSError: it cannot be mounted.
    """
    _check_wishes(given)
    if not path.is_dir():
        raise InvalidError(str(path), "is no directory to mount upon; make one")
    check_free(path)
    reference = on_server(reference)
    node = node_client()
    needs_fuse = given["foreground"] or given["pool"] is not None
    choice = choose(given["backend"], node, given["upper"], needs_fuse=needs_fuse)
    reason = choice.reason
    if choice.backend == "kernel":
        try:
            mounted = mount_kernel(given, reference, path, _wish(given), given["platform"], node)
        except KernelLimitError as error:
            if given["backend"] != "auto":
                raise
            reason = str(error)
        else:
            _report(mounted, reason)
            return exits.OK
    from pagepool.cli.fusemounts import mount_fuse

    mount_fuse(reference, path, given, reason)
    return exits.OK


def _wish(given: MountGiven) -> KernelMountOptions:
    return KernelMountOptions(
        upper=given["upper"],
        temporary=given["temporary"],
        read_only=given["read_only"],
        nosuid=given["nosuid"],
        dev=given["dev"],
        eager=given["eager"],
        fill=not given["no_fill"],
        quota=given["quota"] or 0,
    )


def _check_wishes(given: MountGiven) -> None:
    """Refuse wishes of which one would be forgotten."""
    upper, temporary = given["upper"], given["temporary"]
    if temporary and upper is not None:
        refuse("--rw and --upper exclude each other: what is written is kept, or it is not.")
    if temporary and given["read_only"]:
        refuse("--rw and --ro exclude each other.")
    if given["quota"] and not temporary and upper is None:
        refuse("--quota is for --rw and --upper: nothing can be written without.")


def _report(mounted: KernelMount, reason: str) -> None:
    from pagepool.cli import output

    fields = mounted.fields
    tell_offline(mounted)
    if current().json:
        output.print_json(kernel_row(fields))
        return
    output.print_path(mounted.path)
    kind = "read-only" if fields["read_only"] else f"changes are kept in {fields['upper']}"
    if fields["temporary"]:
        kind = "changes go when it is unmounted"
    output.note(f"mounted {fields['image']} (kernel: {reason}; {kind})")
