"""EROFS images of trees (docs/format/erofs.md), in files that all workers share.

    DATA/trees/erofs/HEX   by the digest of the tree: the image, the image compressed with zstd, a trailer

The trailer says how long the two are, their BLAKE3, and how the image was made. All of it is a cache of bounded size:
a file is compared with its trailer when it is opened, and made again from the tree and the store when it is damaged,
gone, or was made in another way. Files are renamed into place and never written again. Nothing is synced.

Small files' contents come from the store's frames, compared with their names. Thread-safe; one image is made at a time.
"""

from __future__ import annotations

import contextlib
import io
import os
import struct
import threading
import weakref
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

import zstandard
from blake3 import blake3

from pagepool.errors import CorruptError, StoreFullError
from pagepool.image.erofs import INLINE_MAX, write_erofs
from pagepool.image.treestore import make_room, remove_file, replace_file
from pagepool_service.extentstream import read_extents
from pagepool_service.making import Makings

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pagepool.image.treefile import TreeFile
    from pagepool_service.making import Making
    from pagepool_service.store.store import Store

MAX_BYTES: Final = 1 << 30
"""Of all files together."""
_MOST_OPEN: Final = 32
_MOST_HELD: Final = 128 << 20  # bytes of images that are in no file
_LEVEL: Final = 3
_PIECE: Final = 1 << 20
# magic, version of what writes images, size of inlined files; sizes and BLAKE3 of the image, and of it compressed.
_TRAILER: Final = struct.Struct("<8sIIQQ32s32s")
_MAGIC: Final = b"PPEROFS\n"
_VERSION: Final = 1


class ErofsImage:
    """An image that is open. Its bytes were compared with its digest, and stay what they are.

    Args:
        descriptor: of a file with the image at its start and the compressed one behind it; closed with the object.
        trailer: of the file.
        held: whether the file is in memory only.
    """

    def __init__(self, descriptor: int, trailer: bytes, *, held: bool) -> None:
        _, _, _, self.size, self.coded_size, self.digest, self._coded_digest = _TRAILER.unpack(trailer)
        self.held = self.size + self.coded_size if held else 0
        self._descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)

    def pieces(self, start: int, end: int, *, coded: bool = False) -> Iterator[bytes]:
        """The bytes `[start, end)` of the image, or of it compressed. Blocks.

        Raises:
            CorruptError: the file ended early.
        """
        offset, size = (self.size, self.coded_size) if coded else (0, self.size)
        at, end = offset + start, offset + min(end, size)
        while at < end:
            piece = os.pread(self._descriptor, min(_PIECE, end - at), at)
            if not piece:
                raise CorruptError("erofs image", self.digest.hex(), "its file ends early")
            yield piece
            at += len(piece)

    def is_sound(self) -> bool:
        """Whether both have their digests. Blocks."""
        for digest, coded in ((self.digest, False), (self._coded_digest, True)):
            found = blake3()
            with contextlib.suppress(CorruptError):
                for piece in self.pieces(0, 1 << 62, coded=coded):
                    found.update(piece)
            if found.digest() != digest:
                return False
        return True


class ErofsImages:
    """The images of one store's trees.

    Args:
        store: has the contents of small files.
        directory: of the files; None to keep the last ones in memory only.
        max_bytes: of all files together.
        makings: by which processes make each image once; None: this one is the only one.
    """

    def __init__(
        self,
        store: Store,
        directory: Path | None,
        max_bytes: int = MAX_BYTES,
        makings: Makings | None = None,
    ) -> None:
        self._makings = makings or Makings(None)
        self._store = store
        self._directory = directory
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._making = threading.Lock()
        self._open: OrderedDict[bytes, ErofsImage] = OrderedDict()

    def find(self, tree: bytes) -> ErofsImage | None:
        """The image of a tree if it was made before. Reads one file at most.

        Args:
            tree: its raw digest; whoever asks has made sure that he may see it.
        """
        with self._lock:
            found = self._open.get(tree)
            if found is not None:
                self._open.move_to_end(tree)
                return found
        found = self._load(tree)
        return None if found is None else self._remember(tree, found)

    def check(self, tree: bytes, image: ErofsImage) -> bool:
        """Whether an image that was found still has its digest; else it is forgotten. Blocks: reads all of it."""
        if image.is_sound():
            return True
        with self._lock:
            if self._open.get(tree) is image:
                del self._open[tree]
        if self._directory is not None and not image.held:
            remove_file(self._directory / tree.hex())
        return False

    def build(self, tree: TreeFile) -> ErofsImage:
        """The image of a tree, made if it has to be. Blocks for as long as that takes: about 20 µs for each node.

        Raises:
            CorruptError: a small file's content is damaged; it names the object.
            LimitError: the tree has something in it that EROFS cannot have.
            StoreFullError: there is no room for it.
        """
        with self._making, self._makings.alone(tree.digest.hex()) as making:
            found = self.find(tree.digest)
            if found is None:
                found = self._remember(tree.digest, self._make(tree, making))
        return found

    def _make(self, tree: TreeFile, making: Making) -> ErofsImage:
        out = io.BytesIO()
        making.step()
        write_erofs(tree, lambda asked: self._read(tree, asked, making), out)
        image = out.getbuffer()
        making.step()
        coded = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compress(image)
        trailer = _TRAILER.pack(
            _MAGIC, _VERSION, INLINE_MAX, len(image), len(coded), blake3(image).digest(), blake3(coded).digest()
        )
        size = len(image) + len(coded) + len(trailer)
        if self._directory is not None and size <= self._max_bytes:
            path = self._directory / tree.digest.hex()
            if replace_file(path, image, coded, trailer):
                make_room(self._directory, self._max_bytes, path)
                found = self._load(tree.digest)
                if found is not None:
                    return found
        return _hold(image, coded, trailer)

    def _read(self, tree: TreeFile, asked: Sequence[int], making: Making) -> Iterator[tuple[int, memoryview]]:
        places = {tree.object(index).digest: index for index in asked}
        for digest, data in read_extents(self._store, list(places)):
            making.step()
            if isinstance(data, CorruptError):
                raise CorruptError("object", digest.hex(), data.reason) from data
            yield places[digest], data

    def _load(self, tree: bytes) -> ErofsImage | None:
        """An image out of its file, compared with its digest; it counts as used."""
        if self._directory is None:
            return None
        path = self._directory / tree.hex()
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        found = _open_image(descriptor)
        if found is None:
            remove_file(path)  # it is made again
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return found

    def _remember(self, tree: bytes, image: ErofsImage) -> ErofsImage:
        with self._lock:
            self._open[tree] = image
            held = sum(kept.held for kept in self._open.values())
            while len(self._open) > 1 and (len(self._open) > _MOST_OPEN or held > _MOST_HELD):
                held -= self._open.popitem(last=False)[1].held
        return image


def _open_image(descriptor: int) -> ErofsImage | None:
    """The image in a file; None, and the file closed, if it is not sound, or was made in another way."""
    try:
        size = os.fstat(descriptor).st_size
        trailer = os.pread(descriptor, _TRAILER.size, max(size - _TRAILER.size, 0))
        magic, version, inline_max, plain, coded, _, _ = _TRAILER.unpack(trailer)
    except (OSError, struct.error):
        os.close(descriptor)
        return None
    if (magic, version, inline_max) != (_MAGIC, _VERSION, INLINE_MAX) or plain + coded + len(trailer) != size:
        os.close(descriptor)
        return None
    found = ErofsImage(descriptor, trailer, held=False)
    try:
        return found if found.is_sound() else None
    except OSError:
        return None


def _hold(image: memoryview, coded: bytes, trailer: bytes) -> ErofsImage:
    """An image in memory."""
    descriptor = os.memfd_create("pagepool-erofs", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(image)
            file.write(coded)
    except OSError as error:
        os.close(descriptor)
        raise StoreFullError(f"there is no memory for an image of {len(image)} bytes") from error
    return ErofsImage(descriptor, trailer, held=True)
