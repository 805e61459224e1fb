"""What an image's files must hold, computed from its layers by `tarfile` and SHA-256: a second opinion on pagepool's.

Layers are merged by the rules of OCI: whiteouts take away what is below, a file takes the place of whatever has its
name. Where a layer writes below a symlink of another one runtimes differ; such files are not judged (`left_out`).
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from dataclasses import dataclass
from functools import partial
from typing import IO, TYPE_CHECKING, Any, cast

from pagepool.errors import LayerInvalidError
from pagepool.layout.inflate import inflate
from pagepool.load.truth import PAGE, TrueFile, encode_truth, page_digest
from pagepool.oci.verify import CHUNK_SIZE, VerifyingReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pagepool.oci import Descriptor, Readable

_WHITEOUT, _OPAQUE = b".wh.", b".wh..wh..opq"


@dataclass(frozen=True, slots=True)
class _Content:
    size: int
    digest: bytes
    pages: bytes


class _Directory(dict[bytes, "_Node"]):
    """What is below a directory; `explicit` if the layer itself names it."""

    explicit = False


@dataclass(frozen=True, slots=True)
class _Other:
    """A symlink, device or pipe; or, without a target, a file that is not judged."""

    target: bytes = b""


_Node = _Directory | _Content | _Other


class TruthBuilder:
    """Merges layers, lowest first."""

    def __init__(self) -> None:
        self._root = _Directory()
        self.left_out = 0

    def add_layer(self, blob: Descriptor, content: Readable, progress: Callable[[int], None]) -> None:
        """Read a layer; the content is compared with its digest, and closed.

        Args:
            progress: told of plain bytes as they are read.

        Raises:
            DigestMismatchError: it is not what its descriptor says.
            LayerInvalidError: it cannot be read as a tar.
        """
        reader = VerifyingReader(content, blob)
        try:
            plain = inflate(iter(partial(reader.read, CHUNK_SIZE), b""), str(blob.digest))
            layer = _read_layer(cast("IO[bytes]", _Stream(plain, progress)), self._root)
            while reader.read(CHUNK_SIZE):  # what stands behind the end of the archive is part of the digest, too
                pass
        except (tarfile.TarError, EOFError) as error:
            raise LayerInvalidError(str(blob.digest), str(error)) from error
        finally:
            reader.close()
        self.left_out += layer.left_out
        for path in layer.whiteouts:
            _remove(self._root, path)
        for path in layer.opaque:
            directory = _find(self._root, path)
            if isinstance(directory, _Directory):
                directory.clear()
        self._merge(self._root, layer.root, b"")

    def encode(self) -> bytes:
        """The truth file of all layers together."""
        return encode_truth(self._files(self._root, b""))

    def _files(self, directory: _Directory, prefix: bytes) -> Iterator[TrueFile]:
        for name, node in directory.items():
            if isinstance(node, _Directory):
                yield from self._files(node, prefix + name + b"/")
            elif isinstance(node, _Content):
                yield TrueFile(prefix + name, node.size, node.digest, node.pages)

    def _merge(self, below: _Directory, above: _Directory, prefix: bytes) -> None:
        for name, node in above.items():
            old = below.get(name)
            if isinstance(node, _Directory) and isinstance(old, _Directory):
                self._merge(old, node, prefix + name + b"/")
            elif isinstance(node, _Directory) and not node.explicit and isinstance(old, _Other) and old.target:
                self._through(prefix, old.target, node)
            else:
                below[name] = node

    def _through(self, prefix: bytes, target: bytes, node: _Directory) -> None:
        """A layer that writes below a symlink: whatever becomes of that, it is not judged."""
        path = _normal(target if target.startswith(b"/") else prefix + target)
        for file in self._files(node, b"" if path is None else path + b"/"):
            self.left_out += 1
            if path is not None and _find(self._root, file.path) is not None:
                _put(self._root, file.path, _Other())


class _Layer:
    """One layer by itself."""

    def __init__(self) -> None:
        self.root = _Directory()
        self.whiteouts: list[bytes] = []
        self.opaque: list[bytes] = []
        self.left_out = 0


def _read_layer(stream: IO[bytes], below: _Directory) -> _Layer:
    layer = _Layer()
    with tarfile.open(fileobj=stream, mode="r|", errorlevel=2) as archive:
        for member in archive:
            path = _normal(os.fsencode(member.name))
            if path is None:
                layer.left_out += 1
            elif path:
                _add(layer, path, member, archive, below)
            cast("Any", archive).members.clear()  # it would keep all of them
    return layer


def _add(layer: _Layer, path: bytes, member: tarfile.TarInfo, archive: tarfile.TarFile, below: _Directory) -> None:
    parent, _, name = path.rpartition(b"/")
    if name == _OPAQUE:
        layer.opaque.append(parent)
    elif name.startswith(_WHITEOUT):
        layer.whiteouts.append((parent + b"/" if parent else b"") + name.removeprefix(_WHITEOUT))
    elif member.isdir():
        found = _find(layer.root, path)
        directory = found if isinstance(found, _Directory) else _Directory()
        directory.explicit = True
        layer.left_out += not _put(layer.root, path, directory)
    else:
        node = _node(layer, member, archive, below)
        layer.left_out += not _put(layer.root, path, node)


def _node(layer: _Layer, member: tarfile.TarInfo, archive: tarfile.TarFile, below: _Directory) -> _Node:
    if member.isreg():
        content = archive.extractfile(member)
        return _Other() if content is None else _hash(content)
    if member.islnk():
        target = _normal(os.fsencode(member.linkname)) or b""
        found = _find(layer.root, target) or _find(below, target)
        return found if isinstance(found, _Content | _Other) else _Other()
    return _Other(os.fsencode(member.linkname) if member.issym() else b"")


def _hash(content: IO[bytes]) -> _Content:
    whole, pages, size = hashlib.sha256(), bytearray(), 0
    while piece := content.read(PAGE * 256):
        whole.update(piece)
        size += len(piece)
        view = memoryview(piece)
        for at in range(0, len(piece), PAGE):
            pages += page_digest(view[at : at + PAGE])
    return _Content(size, whole.digest(), bytes(pages))


def _normal(path: bytes) -> bytes | None:
    """A path without empty parts and dots; None if it goes up."""
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    return None if b".." in parts else b"/".join(parts)


def _find(root: _Directory, path: bytes) -> _Node | None:
    node: _Node | None = root
    for part in filter(None, path.split(b"/")):
        if not isinstance(node, _Directory):
            return None
        node = node.get(part)
    return node


def _put(root: _Directory, path: bytes, node: _Node) -> bool:
    """Put something at a path, with the directories above it; False if there is no directory above it."""
    *above, name = path.split(b"/")
    directory = root
    for part in above:
        found = directory.setdefault(part, _Directory())
        if not isinstance(found, _Directory):
            return False
        directory = found
    directory[name] = node
    return True


def _remove(root: _Directory, path: bytes) -> None:
    parent, _, name = path.rpartition(b"/")
    directory = _find(root, parent)
    if isinstance(directory, _Directory):
        directory.pop(name, None)


class _Stream:
    """What `tarfile` reads a stream from."""

    def __init__(self, chunks: Iterator[bytes], progress: Callable[[int], None]) -> None:
        self._chunks, self._progress = chunks, progress
        self._rest = memoryview(b"")

    def read(self, size: int) -> bytes:
        parts: list[bytes] = []
        while size:
            if not self._rest:
                self._rest = memoryview(next(self._chunks, b""))
                if not self._rest:
                    break
                self._progress(len(self._rest))
            part = bytes(self._rest[:size])
            self._rest = self._rest[len(part) :]
            size -= len(part)
            parts.append(part)
        return b"".join(parts)
