"""An image of a service: what can be done with it, and the pool that its objects are read from."""

from __future__ import annotations

import threading
from functools import cached_property
from typing import TYPE_CHECKING, Final, Literal, overload

from pagepool.content import Ticker, TreeContent
from pagepool.errors import ManifestUnknownError, PoolFullError
from pagepool.oci import parse_config
from pagepool.transport.extents import ExtentClient
from pagepool.units import human_size
from pagepool.vfs import Rootfs, TreeFileSystem

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from pagepool.content import ObjectCache
    from pagepool.digest import Digest
    from pagepool.image.treefile import TreeFile
    from pagepool.library.client import Client
    from pagepool.library.mounted import Backend, MountedImage
    from pagepool.library.overlay import Overlay
    from pagepool.node.client import KernelMount
    from pagepool.oci import Config, Reference
    from pagepool.transport.trees import PoolPlace


_OF_TIMEOUT: Final = 10
"""The service may fill its pool for one part in so many of the time that a request may take."""


class Objects:
    """The open objects of one pool, which several images share: closed when the last one lets go.

    Args:
        cache: closed with this.
        shared: whether the pool is the service's, and filled by it.
    """

    def __init__(self, cache: ObjectCache, *, shared: bool) -> None:
        self.cache = cache
        self.shared = shared
        self._ticker = Ticker(cache)
        self._holders = 1
        self._lock = threading.Lock()

    def hold(self) -> Objects:
        """Count a further holder."""
        with self._lock:
            self._holders += 1
        return self

    def release(self) -> None:
        """Count one less."""
        with self._lock:
            self._holders -= 1
            last = not self._holders
        if last:
            self._ticker.close()
            self.cache.close()


class Image:
    """One image of a service, resolved: it stays that image, though its tag may move. Made by `Client.image`.

    Args:
        client: outlives it.
        repository: where the image is.
        tree: digest of its merged file system.
        reference: as it was asked for, if it was by name.
        manifest: digest of its manifest, if that is known.
        pool: the service's pool.
    """

    def __init__(
        self,
        client: Client,
        repository: str,
        tree: Digest,
        *,
        reference: Reference | None = None,
        manifest: Digest | None = None,
        pool: PoolPlace | None = None,
    ) -> None:
        self.client = client
        self.repository = repository
        self.tree = tree
        self.reference = reference
        self.manifest = manifest
        self.pool = pool

    def __repr__(self) -> str:
        return f"<Image {self.repository} {self.tree}>"

    @cached_property
    def config(self) -> Config:
        """Its configuration: command, environment, user, history. Asks the service.

        Raises:
            ManifestUnknownError: the image is not there any more, or was opened by its tree alone.
        """
        if self.manifest is None:
            raise ManifestUnknownError(str(self.tree))
        return parse_config(self.client.registry.get_config(self.repository, str(self.manifest)))

    def open(self) -> Rootfs:
        """Its file system, to read. No privileges; pages straight from the pool. The caller closes it.

        Raises:
            TreeUnknownError: the service does not have it any more.
            UnreachableError: its tree file is not here, and the service cannot be reached.
            DigestMismatchError: its tree file came with wrong bytes; opening again asks again.
        """
        fs, release = self.open_tree()
        return Rootfs(fs, release)

    def overlay(self, directory: str | Path) -> Overlay:
        """Its file system with private changes that are kept in a directory. The caller closes it.

        Args:
            directory: made if it is not there; else an overlay of the same image, which is taken up again.

        Raises:
            BusyError: somebody has this overlay open.
            InvalidError: it is an overlay of another image, or no overlay.
            TreeUnknownError, UnreachableError: as `open`.
        """
        from pagepool.library.overlay import Overlay

        return Overlay.open_image(self, directory)

    @overload
    def mount(
        self,
        path: str | Path,
        *,
        upper: str | Path | None = None,
        read_only: bool = False,
        backend: Literal["fuse"] = "fuse",
    ) -> MountedImage: ...

    @overload
    def mount(
        self, path: str | Path, *, upper: str | Path | None = None, read_only: bool = False, backend: Literal["kernel"]
    ) -> KernelMount: ...

    @overload
    def mount(
        self, path: str | Path, *, upper: str | Path | None = None, read_only: bool = False, backend: Backend
    ) -> MountedImage | KernelMount: ...

    def mount(
        self,
        path: str | Path,
        *,
        upper: str | Path | None = None,
        read_only: bool = False,
        backend: Backend = "fuse",
    ) -> MountedImage | KernelMount:
        """Mount its file system. Unmount what comes back, or use it as a context manager.

        Args:
            path: an existing directory.
            upper: directory that takes what is written: of an overlay, or for the kernel an upper; without it nothing
                can be.
            read_only: write nothing though there is one.
            backend: ``fuse`` is served by threads of this process, and needs /dev/fuse, and fusermount3 unless this is
                root. ``kernel`` is mounted by the node of this machine, which is started if it is not running, and
                needs root; the mount outlives this process unless it is unmounted.

        Raises:
            UnsupportedError: the backend is not there.
            KernelLimitError: the image has something in it that the kernel cannot mount, and FUSE can.
            BusyError: the overlay is open elsewhere, or something of ours is mounted there.
            TreeUnknownError, UnreachableError: as `open`.
        """
        from pagepool.library.mounted import mount_by_kernel, mount_image

        if backend == "kernel":
            return mount_by_kernel(self, path, upper=upper, read_only=read_only)
        return mount_image(self, path, upper=upper, read_only=read_only, backend=backend)

    def fill(self, on_bytes: Callable[[int], object] = lambda _: None) -> int:
        """Bring all of it into the pool, in as few requests as possible; then it can be read without the service.

        What does not fit the pool is left out: an object of more than a quarter of its budget, above all.

        Args:
            on_bytes: told of plain bytes as they are there.

        Returns:
            its plain bytes.

        Raises:
            PoolFullError: the pool does not take all of it; what it took is there.
            CorruptError, UnreachableError: as reading.
        """
        tree, content, release = self._open_content()
        try:
            content.prefetch(range(tree.object_count), on_bytes)
            absent = [tree.object(at).size for at in range(tree.object_count) if content.whole(at) is None]
            if absent:
                left, size = human_size(sum(absent)), human_size(int(tree.object_bytes))
                raise PoolFullError(f"it does not keep {left} of the {size} of {self.repository}: see its budget")
            return int(tree.object_bytes)
        finally:
            content.close()
            release()

    def fetch_object(self, digest: bytes) -> bool:
        """Bring one object into the pool, which has lost it.

        Returns:
            whether it is there; False if the image does not have it.
        """
        tree, content, release = self._open_content()
        try:
            place = tree.find_object(digest)
            if place < 0:
                return False
            content.forget(place)
            content.prefetch([place])
            return content.whole(place) is not None
        finally:
            content.close()
            release()

    def open_tree(self) -> tuple[TreeFileSystem, Callable[[], None]]:
        """Its file system by inode, and what to call once that is closed."""
        tree, content, release = self._open_content()
        return TreeFileSystem(tree, content), release

    def _open_content(self) -> tuple[TreeFile, TreeContent, Callable[[], None]]:
        tree = self.client.load_tree(self.repository, self.tree)
        try:
            objects = self.client.objects(self.pool)
        except BaseException:
            tree.close()
            raise

        def release() -> None:
            tree.close()
            objects.release()

        return tree, self._content(tree, objects), release

    def _content(self, tree: TreeFile, objects: Objects) -> TreeContent:
        fetch = ExtentClient(self.client.session, self.repository, self.tree)
        trees = self.client.trees

        within_s = self.client.timeout_s / _OF_TIMEOUT
        pool_id = None if self.pool is None else self.pool.id

        def ask(wanted: Sequence[tuple[bytes, int, int]]) -> int:
            return trees.fill(self.repository, self.tree, wanted, pool_id=pool_id, within_s=within_s)

        return TreeContent(objects.cache, tree, fetch, ask if objects.shared else None)
