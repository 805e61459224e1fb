"""Changes as an OCI layer: a tar that other tools apply to the base and get what the overlay shows.

Follows image-spec v1.1.0 `layer.md`. Of every name that was added or modified the whole inode is written, since a tar
has no part of one; a deleted name is a whiteout (``.wh.NAME``), a directory that hides another one is followed by an
opaque mark (``.wh..wh..opq``). Directories on the way to a change come before it, with what they are now, though they
may be unchanged: a runtime that gives each layer a directory of its own would make them up otherwise. For the same
reason a hard link only ever refers to a name in this layer.

The same file systems give the same bytes: order is by name, and nothing is written that is not part of the image (no
user names, no times of whiteouts). Holes of a file are part of it: with very many of them (`holes`) it is a sparse
member, and they are neither read nor written. Memory is bounded: data goes through in pieces.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pagepool.errors import LayerInvalidError
from pagepool.image import Kind, Member
from pagepool.image.member import show_name
from pagepool.image.tarencode import END, encode_member, encode_sparse, padding
from pagepool.overlay.diff import Change, ChangeKind, image_xattrs
from pagepool.overlay.holes import find_segments
from pagepool.vfs import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pagepool.vfs import Attributes, FileSystem

WHITEOUT: Final = b".wh."
OPAQUE: Final = b".wh..wh..opq"
PIECE: Final = 1 << 20
"""Most bytes of data in one chunk."""


def iter_layer(now: FileSystem, changes: Iterable[Change]) -> Iterator[bytes | memoryview]:
    """Encode changes as a layer.

    Args:
        now: the file system that they lead to; nobody may change it meanwhile.
        changes: as `plan_diff` gives them.

    Returns:
        the tar in chunks of at most about `PIECE` bytes; views of data are valid as those of `FileSystem.read` are.

    Raises:
        LayerInvalidError: no layer can hold a file (a name that begins with ``.wh.``, for one), or it was changed
            while it was read.
        CorruptError, UnreachableError: content cannot be had.
    """
    yield from _Encoder(now).encode(changes)
    yield END


class _Encoder:
    """Writes one layer."""

    def __init__(self, now: FileSystem) -> None:
        self._now = now
        # The way to the directory that is being written, the root first: every one on it has its header.
        self._way: list[tuple[bytes, int]] = []
        self._links: dict[int, bytes] = {}
        self._opaque: bytes | None = None

    def encode(self, changes: Iterable[Change]) -> Iterator[bytes | memoryview]:
        for change in changes:
            if change.kind is ChangeKind.DELETED:
                if self._opaque is None or not change.path.startswith(self._opaque):
                    yield from self._white_out(change.path)
            else:
                yield from self._entry(change)

    def _entry(self, change: Change) -> Iterator[bytes | memoryview]:
        path, ino = change.path, change.ino
        directory, _, name = path.rpartition(b"/")
        if path:
            yield from self._descend(directory)
        _refuse_mark(path, name)
        attributes = self._now.attributes(ino)
        if attributes.kind is Kind.DIRECTORY:
            yield self._enter(path, ino, attributes)
            if change.opaque:
                self._opaque = path + b"/"
                yield encode_member(_mark(self._opaque + OPAQUE))
        elif (first := self._links.get(ino)) is not None:
            yield encode_member(_member(path, attributes)._replace(kind=Kind.HARDLINK, size=0, linkname=first))
        else:
            if attributes.nlink > 1:
                self._links[ino] = path
            yield from self._inode(path, attributes)

    def _inode(self, path: bytes, attributes: Attributes) -> Iterator[bytes | memoryview]:
        ino, kind = attributes.ino, attributes.kind
        member = _member(path, attributes)._replace(xattrs=image_xattrs(self._now, ino))
        if kind is Kind.SYMLINK:
            member = member._replace(linkname=self._now.readlink(ino))
        elif kind is Kind.REGULAR:
            yield from self._file(member._replace(size=attributes.size), ino)
            return
        yield encode_member(member)

    def _file(self, member: Member, ino: int) -> Iterator[bytes | memoryview]:
        segments = find_segments(self._now, ino, member.size)
        if segments is None:
            yield encode_member(member)
            segments = [(0, member.size)] if member.size else []
        else:
            yield encode_sparse(member, segments)
        for offset, size in segments:
            yield from self._data(member.path, ino, offset, size)
        if segments:
            yield padding(sum(size for _, size in segments))

    def _data(self, path: bytes, ino: int, start: int, size: int) -> Iterator[memoryview]:
        for offset in range(start, start + size, PIECE):
            wanted = min(PIECE, start + size - offset)
            data = self._now.read(ino, offset, wanted)
            if len(data) != wanted:
                raise LayerInvalidError(show_name(path), "was changed while it was read")
            yield data

    def _descend(self, directory: bytes) -> Iterator[bytes]:
        """Write the directories on the way to a directory that were not written, and the directory itself."""
        parts = directory.split(b"/") if directory else []
        if self._is_written(directory, len(parts)):
            return
        for depth in range(len(parts) + 1):
            path = b"/".join(parts[:depth])
            if not self._is_written(path, depth):
                ino = self._now.lookup(self._way[depth - 1][1], parts[depth - 1]) if depth else ROOT
                yield self._enter(path, ino, self._now.attributes(ino))

    def _is_written(self, directory: bytes, depth: int) -> bool:
        return depth < len(self._way) and self._way[depth][0] == directory

    def _enter(self, path: bytes, ino: int, attributes: Attributes) -> bytes:
        _refuse_mark(path, path.rpartition(b"/")[2])
        del self._way[path.count(b"/") + 1 if path else 0 :]
        self._way.append((path, ino))
        return encode_member(_member(path, attributes)._replace(xattrs=image_xattrs(self._now, ino)))

    def _white_out(self, path: bytes) -> Iterator[bytes]:
        directory, _, name = path.rpartition(b"/")
        if name.startswith(WHITEOUT):
            raise LayerInvalidError(show_name(path), "was deleted, and no layer can say it: its name begins with .wh.")
        yield from self._descend(directory)
        yield encode_member(_mark((directory + b"/" if directory else b"") + WHITEOUT + name))


def _refuse_mark(path: bytes, name: bytes) -> None:
    if name.startswith(WHITEOUT):
        raise LayerInvalidError(show_name(path), "its name begins with .wh., which removes files in a layer")


def _member(path: bytes, attributes: Attributes) -> Member:
    kind, mode, uid, gid = attributes[1:5]
    device = (attributes.devmajor, attributes.devminor) if kind in (Kind.CHAR, Kind.BLOCK) else (0, 0)
    return Member(path, path, kind, mode, uid, gid, attributes.mtime_ns, 0, 0, b"", *device)


def _mark(path: bytes) -> Member:
    return Member(path, path, Kind.REGULAR, 0, 0, 0, 0, 0, 0)
