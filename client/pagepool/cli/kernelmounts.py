"""Mounts by the kernel, for commands: which backend is to mount, having the node do it, showing what it did."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pagepool.cli import output
from pagepool.cli.connect import ServerOptions, credentials_for, server_url, verify_of
from pagepool.cli.nodes import may_ask, node_client
from pagepool.cli.progress import counting, spinner
from pagepool.errors import BusyError, PagepoolError, UnreachableError, UnsupportedError
from pagepool.mount import default_directory, kernel, list_mounts
from pagepool.node.alive import mounts_alive, noted_mounts
from pagepool.overlay import OverlayUnknownError, read_info
from pagepool.upper import find_upper

if TYPE_CHECKING:
    from pagepool.node.client import KernelMount, KernelMountOptions
    from pagepool.oci import Platform, Reference


@dataclass(frozen=True, slots=True)
class Choice:
    """A backend, and why it was chosen."""

    backend: str
    reason: str


def choose(wanted: str, state: Path, upper: Path | None, *, needs_fuse: bool = False) -> Choice:
    """Which backend is to mount something.

    Args:
        wanted: ``kernel``, ``fuse``, or ``auto``.
        state: where the node has its pool.
        upper: where what is written is to be kept: one that is there already decides.
        needs_fuse: whether something was asked for that only fuse has.

    Raises:
        UnsupportedError: the kernel was asked for, and cannot.
    """
    if wanted == "fuse":
        return Choice("fuse", "it was asked for")
    if wanted == "auto":
        if needs_fuse:
            return Choice("fuse", "--foreground and --pool are for FUSE")
        before = None if upper is None else upper_backend(upper)
        if before == "fuse":
            return Choice("fuse", f"{upper} was made by FUSE")
    support = kernel.probe(state)
    if support.kernel:
        return Choice("kernel", support.reason)
    if wanted == "kernel":
        raise UnsupportedError(f"the kernel cannot mount it: {support.reason}")
    return Choice("fuse", support.reason)


def upper_backend(upper: Path) -> str | None:
    """Which backend has made the directory of an upper; None if it is new, or something else."""
    if find_upper(upper) is not None:
        return "kernel"
    try:
        read_info(upper)
    except OverlayUnknownError:
        return None
    except (PagepoolError, OSError):
        pass  # it is one; opening it will say what is wrong
    return "fuse"


def check_free(path: Path) -> None:
    """See that nothing of ours is mounted at a directory: it would be hidden, and come back when the new one goes.

    Raises:
        BusyError: something is.
    """
    target = Path(os.path.realpath(path))
    for one in kernel.list_kernel_mounts():
        if one.path == target:
            image = one.source.partition(":")[2]
            raise BusyError(f"{target} is mounted already: {image}; pagepool umount {path}")
    for state in list_mounts(default_directory()):
        if Path(state.path) == target and not state.dead:
            raise BusyError(f"{target} is mounted already: {state.source}; pagepool umount {path}")


def mount_kernel(
    options: ServerOptions, reference: Reference, path: Path, wish: KernelMountOptions, platform: Platform | None
) -> KernelMount:
    """Have the node mount an image; the node is started if it is not running.

    Raises:
        PagepoolError, OSError: as `NodeClient.mount`.
    """
    node = node_client()
    with spinner("starting the node"):
        if node.ensure():
            output.note(f"started the node; its pool is {node.places.pool}")
    url, host = server_url(options, reference)
    credentials = credentials_for(options, host, reference.repository)
    with counting("fetching") as count:
        return node.mount(
            url,
            reference,
            path,
            wish,
            platform=platform,
            credentials=credentials,
            verify=verify_of(options, host),
            on_bytes=count,
        )


def tell_offline(mounted: KernelMount) -> None:
    """Say that an image is the one that was known before: its tag may have moved, and files may be missing."""
    if mounted.fields.get("offline"):
        output.warn("the service cannot be reached: only what was fetched before can be read")


def kernel_paths() -> list[Path]:
    """Where this node's mounts are, but for those of containers of `pagepool run`; also while it is not running.

    None for users who may not ask it: they could not unmount them.
    """
    node = node_client()
    if not may_ask(node):
        return []
    ours = {record.id for record in noted_mounts(node.places) if not record.owner}
    return [one.path for one in kernel.list_kernel_mounts() if one.source.partition(":")[0] in ours]


def kernel_rows() -> list[dict[str, Any]]:
    """The mounts of the node, as the commands show them; if it is not running, those it has noted that are there."""
    node = node_client()
    try:
        return [kernel_row(fields) for fields in node.mounts()]
    except UnreachableError:
        alive = mounts_alive()
        records = [record for record in noted_mounts(node.places) if record.id in alive]
        return [kernel_row({**asdict(record), "served": False, "local": False}) for record in records]


def kernel_row(fields: dict[str, Any]) -> dict[str, Any]:
    """A mount of the node, as the commands show it."""
    return {
        "path": fields["path"],
        "image": fields["image"],
        "upper": fields["upper"] or None,
        "read_only": fields["read_only"],
        "backend": "kernel",
        "pid": None,
        "dead": False,
        **{name: value for name, value in fields.items() if name not in ("path", "image", "upper", "read_only")},
    }


def state_of(row: dict[str, Any]) -> str:
    """How a mount is, in a few words."""
    kind = "dead" if row["dead"] else "read-only" if row["read_only"] else "writable"
    return _how_local(kind, row) + (f"; {output.printable(row['last_error'])}" if row.get("last_error") else "")


def _how_local(kind: str, row: dict[str, Any]) -> str:
    if not row.get("served", True):
        return f"{kind}, the node is not running"
    if row.get("local"):
        return f"{kind}, fully local"
    if row.get("lazily_read"):
        return f"{kind}, {row['lazily_read']} files through the node"
    if "missing_bytes" in row:
        return f"{kind}, {output.human_size(row['missing_bytes'])} to fetch"
    return kind


def find_kernel_mount(path: Path) -> bool:
    """Whether a path is a kernel mount of ours."""
    return any(str(one.path) == str(path) for one in kernel.list_kernel_mounts())


def unmount_kernel_path(path: Path, *, force: bool) -> None:
    """Unmount, and have the node clean up."""
    node_client().unmount(path, force=force)
