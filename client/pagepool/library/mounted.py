"""Images as mounts: of this process (`Image.mount`), or of one in the background (`mount_in_background`)."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from pagepool.errors import InvalidError, PagepoolError, UnsupportedError
from pagepool.mount import MountOptions, mount_fuse, serve_in_background
from pagepool.overlay import discard

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pagepool.digest import Digest
    from pagepool.library.image import Image
    from pagepool.mount import Mount, MountRecord
    from pagepool.node.client import KernelMount, NodeClient
    from pagepool.transport import Credentials
    from pagepool.transport.http import VerifyTypes
    from pagepool.transport.trees import PoolPlace
    from pagepool.vfs import FileSystem, Rootfs

Backend = Literal["fuse", "kernel"]


class MountedImage:
    """An image that this process has mounted. A context manager; or `unmount` it.

    This process must not touch the mount itself while it holds Python's lock in a system call that waits: see
    docs/mount.md.

    Args:
        mount: serves it.
        root: what is mounted; closed with it.
    """

    def __init__(self, mount: Mount, root: Rootfs) -> None:
        self._mount = mount
        self.root = root

    @property
    def path(self) -> Path:
        """Where it is mounted."""
        return self._mount.path

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait until somebody has unmounted it. False if that took longer."""
        return self._mount.join(timeout_s)

    def unmount(self) -> None:
        """Unmount, and close what was mounted.

        Raises:
            BusyError: it is in use; it stays.
        """
        self._mount.unmount()
        self.root.close()

    def close(self) -> None:
        """Unmount in any case; whoever still uses it gets errors."""
        self._mount.close()
        self.root.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def mount_image(
    image: Image,
    path: str | Path,
    *,
    upper: str | Path | None = None,
    read_only: bool = False,
    backend: Backend = "fuse",
    options: MountOptions | None = None,
) -> MountedImage:
    """See `Image.mount`."""
    if backend != "fuse":
        raise InvalidError(backend, "is no backend; there are fuse and kernel")
    _check_upper(upper, path)
    with _leaving_no_new(upper):
        root = image.open() if upper is None else image.overlay(upper)
        try:
            chosen = options or MountOptions(source=str(image.reference or image.tree), read_only=read_only)
            mount = mount_fuse(root.fs, path, options=chosen, upper=None if upper is None else Path(upper))
        except BaseException:
            root.close()
            raise
    return MountedImage(mount, root)


def mount_by_kernel(
    image: Image, path: str | Path, *, upper: str | Path | None = None, read_only: bool = False
) -> KernelMount:
    """See `Image.mount`. By digest: what is mounted is this image, though its tag may have moved."""
    from pagepool.node.client import KernelMountOptions, NodeClient
    from pagepool.oci import Reference

    node = NodeClient()
    _check_kernel(node)
    if image.manifest is None:
        raise UnsupportedError("the kernel's mount needs the image itself, not only its tree: open it by its name")
    if not node.met:
        node.ensure()
    client = image.client
    if not isinstance(client.verify, bool | str):
        raise UnsupportedError("a node checks certificates by authorities in files, or not at all: give their paths")
    named = image.reference or Reference(image.repository)
    return node.mount(
        client.url,
        replace(named, digest=image.manifest),
        path,
        KernelMountOptions(None if upper is None else Path(upper), read_only=read_only),
        credentials=client.credentials,
        verify=client.verify,
    )


def _check_kernel(node: NodeClient) -> None:
    """See that the kernel can mount images. A node that runs has tried it, which takes longer than a mount.

    Raises:
        UnsupportedError: it cannot.
    """
    if node.support() is not None:
        return
    from pagepool.mount.kernel import probe

    support = probe(node.places.state)
    if not support.kernel:
        raise UnsupportedError(f"the kernel cannot mount it: {support.reason}")


@dataclass(frozen=True, slots=True)
class MountPlan:
    """What a process in the background is to open: the image, resolved, and how to reach its service.

    Args:
        url: of the service.
        repository: where the image is.
        tree: digest of its file system.
        name: of the image, for people.
        manifest: digest of the image's manifest; "" if it is not known.
        upper: the overlay's directory; None to mount the image itself.
        directory: of the client; None: the default.
        budget: of its pool; None: the default.
        shared: whether to read the service's own pool.
        pool: where that is.
        credentials: who we are.
        verify: whether to check the server's certificate.
        timeout_s: of requests.
    """

    url: str
    repository: str
    tree: Digest
    name: str
    manifest: str = ""
    upper: Path | None = None
    directory: Path | None = None
    budget: int | None = None
    shared: bool = True
    pool: PoolPlace | None = None
    credentials: Credentials | None = None
    verify: VerifyTypes = True
    timeout_s: float = 30.0

    def __call__(self) -> OpenedPlan:
        """Open it."""
        return OpenedPlan(self)


class OpenedPlan:
    """The file system of a plan, for the length of a ``with`` block."""

    def __init__(self, plan: MountPlan) -> None:
        self._stack = _open_plan(plan)

    def __enter__(self) -> FileSystem:
        return self._stack.__enter__()

    def __exit__(self, *details: object) -> None:
        self._stack.__exit__(None, None, None)


@contextmanager
def _open_plan(plan: MountPlan) -> Iterator[FileSystem]:
    from pagepool.digest import Digest
    from pagepool.library.client import Client
    from pagepool.library.image import Image
    from pagepool.oci import Reference

    with Client(
        plan.url,
        directory=plan.directory,
        budget=plan.budget,
        shared=plan.shared,
        credentials=plan.credentials,
        verify=plan.verify,
        timeout_s=plan.timeout_s,
    ) as client:
        manifest = Digest.parse(plan.manifest) if plan.manifest else None
        reference = Reference.parse(plan.name)
        image = Image(client, plan.repository, plan.tree, reference=reference, manifest=manifest, pool=plan.pool)
        with image.open() if plan.upper is None else image.overlay(plan.upper) as root:
            yield root.fs


def plan_mount(image: Image, upper: Path | None = None) -> MountPlan:
    """How another process is to open an image, and its service, as this one does."""
    client = image.client
    return MountPlan(
        client.url,
        image.repository,
        image.tree,
        str(image.reference or image.repository),
        "" if image.manifest is None else str(image.manifest),
        upper=None if upper is None else upper.absolute(),
        directory=client.directory.absolute(),
        budget=client.budget,
        shared=client.shared,
        pool=image.pool,
        credentials=client.credentials,
        verify=client.verify,
        timeout_s=client.timeout_s,
    )


def mount_in_background(plan: MountPlan, path: str | Path, options: MountOptions | None = None) -> MountRecord:
    """Mount by a process of its own, which stays until the mount is unmounted. Returns when it can be used.

    Raises:
        PagepoolError, OSError: what opening or mounting raised.
    """
    _check_upper(plan.upper, path)
    chosen = options or MountOptions(source=plan.name)
    with _leaving_no_new(plan.upper):
        return serve_in_background(plan, path, options=chosen, upper=plan.upper)


@contextmanager
def _leaving_no_new(upper: str | Path | None) -> Iterator[None]:
    """Remove an overlay that was made for a mount which then failed."""
    made = upper is not None and not Path(upper).exists()
    try:
        yield
    except BaseException:
        if made and upper is not None:
            with suppress(PagepoolError, OSError):
                discard(Path(upper))
        raise


def _check_upper(upper: str | Path | None, path: str | Path) -> None:
    """Refuse an overlay below the place that is mounted upon: nobody could find its files any more, nor it itself."""
    if upper is not None and Path(upper).resolve().is_relative_to(Path(path).resolve()):
        raise InvalidError(str(upper), f"lies in {path}, and would be hidden by the mount")
