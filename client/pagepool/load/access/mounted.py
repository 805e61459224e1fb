"""Images through mounts: read and written by system calls, as any program does."""

from __future__ import annotations

import os
import shutil
from collections import OrderedDict
from contextlib import suppress
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, Final, Protocol

from pagepool.errors import PagepoolError
from pagepool.library.mounted import mount_in_background, plan_mount
from pagepool.load.access.library import manifest_of
from pagepool.mount import MountOptions, unmount
from pagepool.node.client import KernelMountOptions

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pagepool.digest import Digest
    from pagepool.library import Client, Image
    from pagepool.node.client import NodeClient
    from pagepool.oci import Reference

_MOST_OPEN: Final = 256


class Mounter(Protocol):
    """Mounts and unmounts."""

    def mount(self, image: Image, path: Path, upper: Path | None) -> int:
        """Mount; the process that serves the mount alone, or 0."""
        ...

    def unmount(self, path: Path) -> None:
        """Unmount, also if it is in use."""
        ...


class FuseMounter:
    """Mounts by FUSE, each served by a process of its own."""

    def mount(self, image: Image, path: Path, upper: Path | None) -> int:
        """See `Mounter`."""
        options = MountOptions(source=str(image.reference or image.tree), read_only=upper is None)
        return mount_in_background(plan_mount(image, upper), path, options).pid

    def unmount(self, path: Path) -> None:
        """See `Mounter`."""
        unmount(path, force=True)


class KernelMounter:
    """Mounts by the kernel.

    Args:
        node: which does it; started by the caller.
    """

    def __init__(self, node: NodeClient) -> None:
        self._node = node

    def mount(self, image: Image, path: Path, upper: Path | None) -> int:
        """See `Mounter`."""
        client, named = image.client, image.reference
        assert named is not None
        self._node.mount(
            client.url,
            replace(named, digest=image.manifest),
            path,
            KernelMountOptions(upper, read_only=upper is None, fill=False),
            credentials=client.credentials,
            verify=client.verify if isinstance(client.verify, bool | str) else True,
        )
        return 0

    def unmount(self, path: Path) -> None:
        """See `Mounter`."""
        self._node.unmount(path, force=True)


class MountedFiles:
    """An image or overlay that is mounted at a directory. The files that were read last are kept open.

    Args:
        path: where.
        manifest: of the image.
        pid: the process that serves it alone; 0 if there is none.
        on_close: unmounts it.
    """

    def __init__(
        self, path: Path, manifest: Digest, pid: int, writable: bool, on_close: Callable[[MountedFiles], object]
    ) -> None:
        self.path, self.manifest, self.pid = path, manifest, pid
        self._flags = (os.O_RDWR | os.O_CREAT if writable else os.O_RDONLY) | os.O_CLOEXEC | os.O_NOFOLLOW
        self._on_close = on_close
        self._files: OrderedDict[bytes, int] = OrderedDict()

    def read(self, path: bytes, offset: int, size: int) -> bytes:
        """See `Opened`."""
        file = self._file(path)
        data = os.pread(file, size, offset)
        while len(data) < size and (more := os.pread(file, size - len(data), offset + len(data))):
            data += more
        return data

    def write(self, path: bytes, offset: int, data: bytes) -> None:
        """See `Writable`."""
        file, done = self._file(path), 0
        while done < len(data):
            done += os.pwrite(file, data[done:], offset + done)

    def truncate(self, path: bytes, size: int) -> None:
        """See `Writable`."""
        os.ftruncate(self._file(path), size)

    def sync(self, path: bytes) -> None:
        """See `Writable`."""
        os.fsync(self._file(path))

    def close(self) -> None:
        """See `Opened`."""
        for file in self._files.values():
            os.close(file)
        self._files.clear()
        self._on_close(self)

    def _file(self, path: bytes) -> int:
        file = self._files.get(path)
        if file is None:
            whole = self.path / os.fsdecode(path)
            if self._flags & os.O_CREAT:
                whole.parent.mkdir(parents=True, exist_ok=True)
            file = self._files[path] = os.open(whole, self._flags, 0o644)
            if len(self._files) > _MOST_OPEN:
                os.close(self._files.popitem(last=False)[1])
        return file


class MountedAccess:
    """See `Access`.

    Args:
        client: resolves images; closed with this.
        mounter: mounts them.
        directory: where mounts and overlays are.
    """

    def __init__(self, client: Client, mounter: Mounter, directory: Path) -> None:
        self._client, self._mounter = client, mounter
        self._mounts, self._uppers = directory / "mounts", directory / "uppers"
        self._numbers = count(1)
        self._open: list[MountedFiles] = []
        for made in (self._mounts, self._uppers):
            made.mkdir(parents=True, exist_ok=True)

    def open(self, reference: Reference) -> MountedFiles:
        """See `Access`."""
        return self._mount(reference, None)

    def open_overlay(self, reference: Reference, name: str) -> MountedFiles:
        """See `Access`."""
        return self._mount(reference, self._uppers / name)

    def discard(self, name: str) -> None:
        """See `Access`."""
        with suppress(FileNotFoundError):
            shutil.rmtree(self._uppers / name)

    def requests(self) -> None:
        """See `Access`: others fetch."""
        return None  # noqa: RET501 - an answer, not the lack of one

    def memory_pids(self) -> list[int]:
        """See `Access`: what serves the mounts."""
        return [one.pid for one in self._open if one.pid]

    def close(self) -> None:
        """See `Access`."""
        for one in list(self._open):
            with suppress(PagepoolError, OSError):
                one.close()
        self._client.close()

    def _mount(self, reference: Reference, upper: Path | None) -> MountedFiles:
        image = self._client.image(reference)
        path = self._mounts / str(next(self._numbers))
        path.mkdir()
        try:
            pid = self._mounter.mount(image, path, upper)
        except BaseException:
            path.rmdir()
            raise
        opened = MountedFiles(path, manifest_of(image), pid, upper is not None, self._unmount)
        self._open.append(opened)
        return opened

    def _unmount(self, opened: MountedFiles) -> None:
        self._mounter.unmount(opened.path)
        self._open.remove(opened)
        opened.path.rmdir()
