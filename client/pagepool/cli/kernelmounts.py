"""Mounts by the kernel, for commands: which backend is to mount, having the node do it, showing what it did."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pagepool.cli.connect import credentials_for, server_url, verify_of
from pagepool.cli.nodeclient import may_ask, node_client
from pagepool.errors import BusyError, PagepoolError, UnreachableError, UnsupportedError
from pagepool.mount import kernel

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pagepool.cli.connect import PoolOptions
    from pagepool.cli.progress import Fetching
    from pagepool.node.client import KernelMount, KernelMountOptions, NodeClient
    from pagepool.oci import Platform, Reference


@dataclass(frozen=True, slots=True)
class Choice:
    """A backend, and why it was chosen."""

    backend: str
    reason: str


def choose(wanted: str, node: NodeClient, upper: Path | None, *, needs_fuse: bool = False) -> Choice:
    """Which backend is to mount something.

    Args:
        wanted: ``kernel``, ``fuse``, or ``auto``.
        node: what it has mounted already need not be tried.
        upper: where what is written is to be kept: one that is there already decides.
        needs_fuse: whether something was asked for that only fuse has.

    Raises:
        UnsupportedError: the kernel was asked for, and cannot.
    """
    if wanted == "fuse":
        return Choice("fuse", "it was asked for")
    if wanted == "auto":
        if needs_fuse:
            return Choice("fuse", "--foreground and --pool, or PAGEPOOL_POOL, are for FUSE")
        before = None if upper is None else upper_backend(upper)
        if before == "fuse":
            return Choice("fuse", f"{upper} was made by FUSE")
    known = node.support() if may_ask(node) else None
    if known is not None:
        return Choice("kernel", known)
    support = kernel.probe(node.places.state)
    if support.kernel:
        return Choice("kernel", support.reason)
    if wanted == "kernel":
        raise UnsupportedError(f"the kernel cannot mount it: {support.reason}")
    return Choice("fuse", support.reason)


def upper_backend(upper: Path) -> str | None:
    """Which backend has made the directory of an upper; None if it is new, or something else."""
    from pagepool.overlay import OverlayUnknownError, read_info
    from pagepool.upper import find_upper

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
    from pagepool.mount import default_directory, list_mounts

    for state in list_mounts(default_directory()):
        if Path(state.path) == target and not state.dead:
            raise BusyError(f"{target} is mounted already: {state.source}; pagepool umount {path}")


def mount_kernel(
    options: PoolOptions,
    reference: Reference,
    path: Path,
    wish: KernelMountOptions,
    platform: Platform | None,
    node: NodeClient | None = None,
) -> KernelMount:
    """Have the node mount an image; the node is started if it is not running.

    Args:
        node: that was spoken to already.

    Raises:
        PagepoolError, OSError: as `NodeClient.mount`.
    """
    node = node or node_client()
    ensure_node(node)
    url, host = server_url(options, reference)
    credentials = credentials_for(options, host, reference.repository)
    with _watched(eager=wish.eager) as watched:
        return node.mount(
            url,
            reference,
            path,
            wish,
            platform=platform,
            credentials=credentials,
            verify=verify_of(options, host),
            tree_timeout_s=options["tree_timeout"],
            on_making=watched.making,
            on_bytes=watched.count,
        )


class _Unwatched:
    """Nobody looks. The same is told to a `pagepool.cli.progress.Fetching` where somebody does."""

    def count(self, size: int) -> None:
        """So many bytes of the image have come."""

    def making(self, seconds: int) -> None:
        """For so long the service has been putting the image's tree together."""


@contextmanager
def _watched(*, eager: bool) -> Iterator[_Unwatched | Fetching]:
    """Show what comes of an image; or, where it is not waited for, that it takes long, if it does."""
    if not sys.stderr.isatty():
        yield _Unwatched()
        return
    from pagepool.cli.progress import fetching

    with fetching(at_once=eager) as watched:
        yield watched


def ensure_node(node: NodeClient) -> None:
    """Start the node if it is not running.

    Raises:
        UnsupportedError, UnreachableError: it cannot be.
    """
    if node.met or node.is_running():
        return
    from pagepool.cli import output
    from pagepool.cli.progress import spinner

    with spinner("starting the node"):
        started = node.ensure()
    if started:
        output.note(f"started the node; its pool is {node.places.pool}")


def tell_offline(mounted: KernelMount) -> None:
    """Say that an image is the one that was known before: its tag may have moved, and files may be missing."""
    if mounted.fields.get("offline"):
        from pagepool.cli import output

        output.warn("the service cannot be reached: only what was fetched before can be read")


def kernel_paths() -> list[Path]:
    """Where this node's mounts are, but for those of containers of `pagepool run`; also while it is not running.

    None for users who may not ask it: they could not unmount them.
    """
    from pagepool.node.alive import noted_mounts

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
        from pagepool.node.alive import mounts_alive, noted_mounts

        alive = mounts_alive()
        records = [record for record in noted_mounts(node.places) if record.id in alive]
        return [kernel_row({**record.shown(), "served": False, "local": False}) for record in records]


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
    from pagepool.cli import output

    kind = "dead" if row["dead"] else "read-only" if row["read_only"] else "writable"
    return _how_local(kind, row) + (f"; {output.printable(row['last_error'])}" if row.get("last_error") else "")


def _how_local(kind: str, row: dict[str, Any]) -> str:
    if not row.get("served", True):
        return f"{kind}, the node is not running"
    from pagepool.cli import output

    if row.get("local"):
        return f"{kind}, fully local"
    if row.get("cut_off"):
        return f"{kind}, {output.human_size(row['missing_bytes'])} to fetch, and errors until then: its node has ended"
    if row.get("lazily_read"):
        return f"{kind}, {output.counted(row['lazily_read'], 'file')} through the node"
    if "missing_bytes" in row:
        return f"{kind}, {output.human_size(row['missing_bytes'])} to fetch"
    return kind
