"""Roots for containers: where `pagepool run` gets an image's file system from, and how that is taken away again.

Each root has a lock (flock) beside it, which whoever made it holds as long as it is wanted. A container is noted only
once its root is there, so of a process that was killed before, nothing but the root is left: whoever makes the next one
finds that its lock can be had, and takes it away.
"""

from __future__ import annotations

import fcntl
import os
import stat
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from pagepool.cli.connect import on_server
from pagepool.cli.kernelmounts import choose, ensure_node, mount_kernel, tell_offline
from pagepool.cli.nodeclient import node_client
from pagepool.container import DEFAULT_DIRECTORY
from pagepool.container.records import ENDED_DIRECTORY, LOG_DIRECTORY
from pagepool.errors import KernelLimitError, NotFoundError, PagepoolError, UnsupportedError
from pagepool.node.client import KernelMountOptions
from pagepool.oci import parse_config

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager

    from pagepool.cli.connect import PoolOptions
    from pagepool.node.client import NodeClient
    from pagepool.oci import Config, Platform, Reference

_WORK: Final = Path("/var/tmp")
_PREFIX: Final = "pagepool-run-"
_LOCK: Final = ".lock"


@dataclass(frozen=True, slots=True)
class RootRequest:
    """What root is wanted.

    Args:
        reference: the image, as the user named it.
        platform: out of an index; None: this machine's.
        options: how to reach the service.
        eager: fetch all of the image first.
        quota: most bytes that the container may write; 0 for no limit (kernel only).
        programs: what is to be run, as far as the user says.
        upper: directory that keeps what the container writes; None: that is gone with the root.
    """

    reference: Reference
    platform: Platform | None
    options: PoolOptions
    eager: bool = False
    quota: int = 0
    programs: tuple[str, ...] = ()
    upper: Path | None = None


@dataclass(frozen=True, slots=True)
class Root:
    """A root to run one container on.

    Args:
        path: on the host. It can be written, and what is written is that container's alone, and its upper's.
        config: the image's configuration.
        container_id: unique on this machine; letters, digits, ``_.-``.
        image: its full name, for people.
    """

    path: Path
    config: Config
    container_id: str
    image: str


class RootProvider(Protocol):
    """Makes roots. `open_root` is entered and left by the process that runs the container, in its main thread."""

    def open_root(self, request: RootRequest) -> AbstractContextManager[Root]:
        """A root for as long as the block lasts; then nothing is left of it, also when the block raises, but for the
        upper that was asked for."""

    def discard(self, container_id: str, path: Path) -> None:
        """Take away the root of a container whose process was killed. Nothing happens if there is none."""


def containers_directory() -> Path:
    """Where containers are noted."""
    return DEFAULT_DIRECTORY


def ended_directory() -> Path:
    """Where containers are noted that have ended."""
    return ENDED_DIRECTORY


def logs_directory() -> Path | None:
    """Where the output of containers in the background is kept, unless it goes to a file of the user's. It is made;
    None, with a warning, where that cannot be."""
    try:
        LOG_DIRECTORY.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        from pagepool.cli import output

        output.warn(f"what the container writes is not kept: {LOG_DIRECTORY}: {error.strerror}")
        return None
    return LOG_DIRECTORY


def default_provider(backend: str = "auto", upper: Path | None = None) -> RootProvider:
    """What `pagepool run` uses.

    Args:
        backend: ``kernel``, ``fuse``, or ``auto``.
        upper: where what is written is to be kept: one that is there already decides.

    Raises:
        UnsupportedError: the kernel was asked for, and cannot; or this is not root.
    """
    if os.geteuid() != 0:
        raise UnsupportedError("running containers needs root")
    node = node_client()
    choice = choose(backend, node, upper)
    if choice.backend == "kernel":
        return KernelFirstRoots(node) if backend == "auto" else NodeRoots(node)
    if backend == "auto":
        _tell_fuse(choice.reason)
    return FuseRoots()


def end_killed(provider: RootProvider) -> None:
    """End containers whose `pagepool run` was killed, and take their roots away.

    Args:
        provider: anyone, whatever mounted the roots.
    """
    from pagepool.container.run import cleanup_stale

    for record in cleanup_stale(containers_directory()):
        provider.discard(record.id, Path(record.root))


def _tell_fuse(reason: str) -> None:
    from pagepool.cli import output

    output.note(f"mounting by FUSE, not by the kernel: {reason}")


class KernelFirstRoots:
    """Roots that the node mounts by the kernel; those of images that the kernel cannot mount, by FUSE.

    Args:
        node: started if it is not running.
    """

    def __init__(self, node: NodeClient) -> None:
        self._kernel = NodeRoots(node)

    @contextmanager
    def open_root(self, request: RootRequest) -> Iterator[Root]:
        """See `RootProvider`."""
        with ExitStack() as undo:
            try:
                root = undo.enter_context(self._kernel.open_root(request))
            except KernelLimitError as error:
                _tell_fuse(str(error))
                root = undo.enter_context(FuseRoots().open_root(request))
            yield root

    def discard(self, container_id: str, path: Path) -> None:
        """See `RootProvider`."""
        self._kernel.discard(container_id, path)


class NodeRoots:
    """Roots that the node mounts by the kernel. What a container writes is beside the node's pool.

    Args:
        node: started if it is not running.
    """

    def __init__(self, node: NodeClient) -> None:
        self._node = node
        self._roots = node.places.run / "roots"

    @contextmanager
    def open_root(self, request: RootRequest) -> Iterator[Root]:
        """See `RootProvider`."""
        if os.geteuid() != 0:
            raise UnsupportedError("running containers needs root")
        reference = on_server(request.reference)
        identity = _new_id()
        ensure_node(self._node)
        self._roots.mkdir(mode=0o755, parents=True, exist_ok=True)
        _sweep(self._roots.glob(f"*{_LOCK}"), lambda lock: self.discard(lock.stem, lock.with_suffix("")))
        point = self._roots / identity
        with _held(point.with_suffix(_LOCK)):
            yield from self._open(request, reference, identity, point)

    def _open(self, request: RootRequest, reference: Reference, identity: str, point: Path) -> Iterator[Root]:
        point.mkdir(mode=0o755)
        try:
            wish = KernelMountOptions(
                upper=request.upper,
                temporary=request.upper is None,
                owner=identity,
                config=True,
                eager=request.eager,
                quota=request.quota,
                programs=request.programs,
            )
            mounted = mount_kernel(request.options, reference, point, wish, request.platform, self._node)
            tell_offline(mounted)
            config = parse_config(str(mounted.fields["config"]).encode())
            yield Root(point, config, identity, str(reference))
        finally:
            self.discard(identity, point)

    def discard(self, container_id: str, path: Path) -> None:
        """See `RootProvider`."""
        if path.parent != self._roots:
            FuseRoots().discard(container_id, path)
            return
        with suppress(NotFoundError):
            self._node.unmount(path, force=True)
        with suppress(OSError):
            path.rmdir()


class FuseRoots:
    """Mounts images by FUSE, each with an overlay of its own in a temporary directory."""

    @contextmanager
    def open_root(self, request: RootRequest) -> Iterator[Root]:
        """See `RootProvider`."""
        import tempfile

        from pagepool.cli.progress import making
        from pagepool.cli.target import open_client
        from pagepool.library.mounted import mount_in_background, plan_mount
        from pagepool.mount import MountOptions

        if os.geteuid() != 0:
            raise UnsupportedError("running containers needs root")
        if request.quota:
            raise UnsupportedError("--quota needs the backend kernel")
        reference = on_server(request.reference)
        _sweep(_WORK.glob(f"{_PREFIX}*/{_LOCK}"), lambda lock: self._remove(lock.parent))
        with ExitStack() as undo:
            client = undo.enter_context(open_client(request.options, reference))
            timeout_s = request.options["tree_timeout"]
            with making() as on_making:
                image = client.image(
                    reference, platform=request.platform, tree_timeout_s=timeout_s, on_making=on_making
                )
            if request.eager:
                image.fill()
            work = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_WORK))
            undo.callback(self._remove, work)
            undo.enter_context(_held(work / _LOCK))
            root, upper = work / "root", request.upper or work / "upper"
            root.mkdir()
            mount_in_background(plan_mount(image, upper), root, MountOptions(str(reference), allow_other=True))
            yield Root(root, image.config, _new_id(), str(reference))

    def discard(self, container_id: str, path: Path) -> None:
        """See `RootProvider`."""
        if path.parent.parent == _WORK and path.parent.name.startswith(_PREFIX):
            self._remove(path.parent)
            return
        node = node_client()
        if path.parent == node.places.run / "roots":
            NodeRoots(node).discard(container_id, path)

    def _remove(self, work: Path) -> None:
        import shutil

        from pagepool.mount import MountUnknownError, unmount

        with suppress(MountUnknownError):
            unmount(work / "root", force=True)
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def _held(lock: Path) -> Iterator[None]:
    """Have a lock of one's own for the length of the block. It gets its name once it is held."""
    being_made = lock.with_name(f"{lock.name}.new")
    with being_made.open("xb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        being_made.rename(lock)
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _sweep(locks: Iterable[Path], remove: Callable[[Path], None]) -> None:
    """Remove what is beside locks that nobody holds any more, and them. What cannot be removed is left."""
    for lock in locks:
        with suppress(OSError, PagepoolError):
            # In a directory where others may make files, too, it must be one that only this user can have made.
            found = lock.parent.lstat()
            if found.st_uid != os.geteuid() or not stat.S_ISDIR(found.st_mode):
                continue
            with lock.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove(lock)
                lock.unlink(missing_ok=True)


def _new_id() -> str:
    return os.urandom(16).hex()  # what `secrets` does, which loads much
