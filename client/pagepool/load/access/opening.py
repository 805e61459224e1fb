"""Which way to images a mode is, and whether it can be gone here."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from pagepool.errors import InvalidError, UnsupportedError
from pagepool.load.access.http import HttpAccess
from pagepool.load.access.interface import MODES
from pagepool.load.access.library import LibraryAccess

if TYPE_CHECKING:
    from pagepool.library import Client
    from pagepool.load.access.interface import Access
    from pagepool.node.client import NodeClient

_FUSE = Path("/dev/fuse")


def can_write(mode: str) -> bool:
    """Whether overlays can be written in a mode. Over HTTP there are none; files of an image belong to root, and the
    kernel lets no other user write to them in a mount."""
    return mode != "http" and not (mode == "fuse" and os.geteuid())


def check_mode(mode: str, node: NodeClient) -> None:
    """See whether a mode works on this machine.

    Raises:
        UnsupportedError: it does not, with the reason and what to do.
        InvalidError: there is no such mode.
    """
    if mode not in MODES:
        raise InvalidError(mode, f"is no mode; there are {', '.join(MODES)}")
    if mode == "fuse":
        if not os.access(_FUSE, os.R_OK | os.W_OK):
            raise UnsupportedError(f"mode fuse needs {_FUSE}, which cannot be opened here; mode library works anywhere")
        if os.geteuid() and shutil.which("fusermount3") is None:
            raise UnsupportedError("mode fuse needs root or fusermount3 (Debian: package fuse3)")
    if mode == "kernel":
        from pagepool.mount.kernel import probe

        support = probe(node.places.state)
        if not support.kernel:
            raise UnsupportedError(f"mode kernel cannot be had here: {support.reason}")


def open_access(mode: str, client: Client, directory: Path, node: NodeClient) -> Access:
    """Begin to read images in a mode.

    Args:
        mode: one of `MODES`.
        client: of the service; closed with the result.
        directory: for mounts and overlays.
        node: for mode kernel; it is started if it is not running.

    Raises:
        UnsupportedError: the mode does not work here.
    """
    check_mode(mode, node)
    if mode == "library":
        return LibraryAccess(client, directory)
    if mode == "http":
        return HttpAccess(client)
    from pagepool.load.access.mounted import FuseMounter, KernelMounter, MountedAccess

    if mode == "fuse":
        return MountedAccess(client, FuseMounter(), directory)
    node.ensure()
    return MountedAccess(client, KernelMounter(node), directory)
