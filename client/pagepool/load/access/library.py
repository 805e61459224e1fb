"""Images through the library: no mount, no privileges."""

from __future__ import annotations

import shutil
from collections import OrderedDict
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from pagepool.errors import ManifestUnknownError

if TYPE_CHECKING:
    from pathlib import Path

    from pagepool.digest import Digest
    from pagepool.library import Client, Image
    from pagepool.oci import Reference
    from pagepool.vfs import MutableRootfs, RawFile, Rootfs

_MOST_OPEN: Final = 256


def manifest_of(image: Image) -> Digest:
    """The manifest of an image that was asked for by name."""
    if image.manifest is None:
        raise ManifestUnknownError(str(image.tree))
    return image.manifest


class LibraryImage:
    """An image, with the files that were read last kept open, as programs do.

    Args:
        root: closed with this.
    """

    def __init__(self, root: Rootfs, manifest: Digest) -> None:
        self.manifest = manifest
        self._root = root
        self._files: OrderedDict[bytes, RawFile] = OrderedDict()

    def read(self, path: bytes, offset: int, size: int) -> bytes:
        """See `Opened`."""
        return self._file(path).pread(size, offset)

    def close(self) -> None:
        """See `Opened`."""
        for file in self._files.values():
            file.close()
        self._files.clear()
        self._root.close()

    def _file(self, path: bytes) -> RawFile:
        file = self._files.get(path)
        if file is None:
            file = self._files[path] = self._root.open(path, self._mode(path), buffering=0)
            if len(self._files) > _MOST_OPEN:
                self._files.popitem(last=False)[1].close()
        return file

    def _mode(self, _path: bytes) -> str:
        return "rb"


class LibraryOverlay(LibraryImage):
    """An overlay."""

    def __init__(self, root: MutableRootfs, manifest: Digest) -> None:
        super().__init__(root, manifest)
        self._out = root

    def write(self, path: bytes, offset: int, data: bytes) -> None:
        """See `Writable`."""
        self._file(path).pwrite(data, offset)

    def truncate(self, path: bytes, size: int) -> None:
        """See `Writable`."""
        self._file(path).truncate(size)

    def sync(self, path: bytes) -> None:
        """See `Writable`."""
        self._file(path).sync()

    def _mode(self, path: bytes) -> str:
        if self._out.exists(path):
            return "r+b"
        parent = path.rpartition(b"/")[0]
        if parent:
            self._out.mkdir(parent, parents=True, exist_ok=True)
        return "x+b"


class LibraryAccess:
    """See `Access`.

    Args:
        client: closed with this.
        directory: where overlays are.
    """

    def __init__(self, client: Client, directory: Path) -> None:
        self._client = client
        self._directory = directory

    def open(self, reference: Reference) -> LibraryImage:
        """See `Access`."""
        image = self._client.image(reference)
        return LibraryImage(image.open(), manifest_of(image))

    def open_overlay(self, reference: Reference, name: str) -> LibraryOverlay:
        """See `Access`."""
        image = self._client.image(reference)
        return LibraryOverlay(image.overlay(self._directory / name), manifest_of(image))

    def discard(self, name: str) -> None:
        """See `Access`."""
        with suppress(FileNotFoundError):
            shutil.rmtree(self._directory / name)

    def requests(self) -> int:
        """See `Access`."""
        return self._client.session.requests

    def memory_pids(self) -> list[int]:
        """See `Access`: this process does everything."""
        return []

    def close(self) -> None:
        """See `Access`."""
        self._client.close()
