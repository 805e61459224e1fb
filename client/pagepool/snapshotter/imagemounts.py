"""The mounts that a snapshotter has a node make: of whole images, of their first layers, and for containers.

A whole image is mounted, read-only, as long as any snapshot is a layer of it: so the node keeps a lease on it at the
service, and fetches the rest of it when there is time. A container's own mount has a directory of its own for what it
writes, and is made when it is asked for. All of these outlive the snapshotter, and most outlive the node; what does not
(a boot, a node that was ended altogether) is mounted anew.

Thread-safe.
"""

from __future__ import annotations

import logging
import os
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from pagepool.digest import Digest
from pagepool.errors import BusyError, NotFoundError, PagepoolError, UnreachableError
from pagepool.linux.mounts import clone_mount
from pagepool.mount import kernel
from pagepool.mount.mountinfo import is_dead
from pagepool.node.alive import is_cut_off
from pagepool.node.client import KernelMountOptions
from pagepool.oci import Reference
from pagepool.snapshotter.turns import Turns

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from pathlib import Path

    from pagepool.node.client import NodeClient
    from pagepool.snapshotter.catalogue import ImageRecord
    from pagepool.snapshotter.claims import Server

OWNER: Final = "containerd"
ROOT: Final = "rootfs"
WRITTEN: Final = "written"

log = logging.getLogger("pagepool.snapshotter")


class ImageMounts:
    """The mounts of a snapshotter.

    Args:
        node: makes them; started when it is needed.
        servers: where images are, by name.
        directory: below which images are mounted.
        wait_s: how long to wait for a service that still reads an image's layers.
    """

    def __init__(self, node: NodeClient, servers: Mapping[str, Server], directory: Path, wait_s: float) -> None:
        self._node = node
        self._servers = servers
        self._directory = directory
        self._wait_s = wait_s
        self._turns: Turns[Path] = Turns()

    def image(self, image: ImageRecord, depth: int, *, asks: bool = False) -> Path:
        """Where the first layers of an image are mounted; they are if they are not.

        Args:
            asks: whether the service is asked for it, though the node knows the image: it may not be there any more,
                or be denied to us. What is on this machine is used all the same, as containerd does.

        Raises:
            PagepoolError, OSError: they cannot be.
        """
        whole = depth == image.layers
        path = self._directory / str(image.id) / ("all" if whole else str(depth))
        options = KernelMountOptions(dev=True, fill=whole, owner=OWNER, layers=None if whole else depth, noted=not asks)
        self._mount(image, path, options)
        return path

    def container(self, image: ImageRecord, depth: int, directory: Path) -> Path:
        """Where a container's root file system is mounted; it is if it is not.

        Args:
            directory: of its own: what it writes is kept there.

        Raises:
            PagepoolError, OSError: it cannot be.
        """
        layers = None if depth == image.layers else depth
        options = KernelMountOptions(upper=directory / WRITTEN, dev=True, owner=OWNER, layers=layers, noted=True)
        self._mount(image, directory / ROOT, options)
        return directory / ROOT

    def _mount(self, image: ImageRecord, path: Path, options: KernelMountOptions) -> None:
        with self._turns.turn(path):
            self._node.ensure()
            if os.path.ismount(path) and not is_cut_off(self._node.places, path):
                return
            server = self._servers.get(image.server)
            if server is None:
                raise UnreachableError(image.server, "it is none of the services that this snapshotter was told of")
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._replacing(path):
                self._node.mount(
                    server.url,
                    replace(Reference.parse(image.name), digest=Digest.parse(image.manifest)),
                    path,
                    options,
                    credentials=server.credentials(image.repository),
                    verify=server.verify,
                    wait_s=self._wait_s,
                )

    @contextmanager
    def _replacing(self, path: Path) -> Iterator[None]:
        """Take away a mount all of whose node had ended, for another one. It is put back if that cannot be made, which
        is no error where a container still uses what it writes to: the mount is what containerd wants to see then."""
        if not os.path.ismount(path):
            self._unmount(path)  # one that is dead
            yield
            return
        former = clone_mount(path)
        try:
            self._unmount(path)
            try:
                yield
            except (PagepoolError, OSError) as error:
                kernel.attach(former, path)
                if not isinstance(error, BusyError):
                    raise
        finally:
            os.close(former)

    def unmount(self, path: Path) -> None:
        """Unmount what is mounted somewhere, if anything is, and remove the directory. Whoever uses it keeps it."""
        with self._turns.turn(path):
            self._unmount(path)
            with suppress(FileNotFoundError):
                path.rmdir()

    def _unmount(self, path: Path) -> None:
        while os.path.ismount(path) or is_dead(path):
            try:
                self._node.unmount(path, force=True)
            except NotFoundError:
                return

    def drop(self, kept: Collection[str]) -> None:
        """Unmount what is of no image.

        Args:
            kept: the numbers of images.
        """
        for directory in sorted(self._directory.iterdir()):
            if directory.name in kept:
                continue
            try:
                for path in sorted(directory.iterdir()):
                    self.unmount(path)
                directory.rmdir()
            except (PagepoolError, OSError) as error:
                log.warning("%s is not unmounted: %s", directory, error)
