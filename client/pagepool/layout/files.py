"""The files of a layout or archive, by relative name: in a directory, or inside a tar that is never unpacked.

Both kinds of `Files` are thread-safe, since every read says its own position. Names inside a tar are data of
a stranger: a name that leads out of the archive makes the whole archive invalid; a symbolic link (old `docker
save` writes them for layers that are equal) is followed inside the archive only, by name.
"""

from __future__ import annotations

import os
import posixpath
import stat
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from pagepool.errors import ImageInvalidError, LimitError
from pagepool.oci import Readable

MAX_DOCUMENT = 16 << 20
"""Bytes of one JSON file that are read."""
_MAX_MEMBERS = 200_000
_MAX_LINKS = 8


class Files(Protocol):
    """Files by name. Thread-safe."""

    @property
    def where(self) -> str:
        """The directory or archive, for messages."""
        ...

    def size(self, name: str) -> int | None:
        """Size of a regular file; None if there is none of that name."""
        ...

    def open(self, name: str) -> Readable:
        """Open a regular file at its beginning; the caller closes it.

        Raises:
            ImageInvalidError: there is none, or it is no regular file.
        """
        ...

    def close(self) -> None:
        """Release what is held."""
        ...


def read_document(files: Files, name: str) -> bytes:
    """Read a small file whole.

    Raises:
        ImageInvalidError: there is none.
        LimitError: it is larger than any such document.
    """
    size = files.size(name)
    if size is not None and size > MAX_DOCUMENT:
        raise LimitError(f"{name} in {files.where}", size, MAX_DOCUMENT)
    source = files.open(name)
    try:
        parts = []
        while part := source.read(MAX_DOCUMENT):
            parts.append(part)
        return b"".join(parts)
    finally:
        source.close()


class DirectoryFiles:
    """Files below a directory of the host. Symbolic links are followed: build tools make layouts of them."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @property
    def where(self) -> str:
        """The directory."""
        return str(self._directory)

    def size(self, name: str) -> int | None:
        """Size of a regular file; None if there is none of that name."""
        try:
            found = (self._directory / name).stat()
        except OSError:
            return None
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def open(self, name: str) -> BinaryIO:
        """Open a regular file."""
        try:
            # Without O_NONBLOCK, a FIFO in its place would block for good.
            descriptor = os.open(self._directory / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            raise ImageInvalidError(self.where, f"{name} is missing") from None
        except OSError as error:
            raise ImageInvalidError(self.where, f"{name} cannot be read: {error.strerror}") from None
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise ImageInvalidError(self.where, f"{name} is not a regular file")
        return os.fdopen(descriptor, "rb", buffering=0)

    def close(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True, slots=True)
class _Member:
    """Where a regular file's bytes lie in the tar; or the name a link leads to; or neither, for other kinds."""

    offset: int = -1
    size: int = 0
    link: str | None = None


class TarFiles:
    """The files in an uncompressed tar.

    Args:
        file: the archive, seekable; this object closes it.
        where: the archive, for messages.

    Raises:
        ImageInvalidError: not a tar, cut off, or with names that lead out of it.
    """

    def __init__(self, file: BinaryIO, where: str) -> None:
        self._file = file
        self._where = where
        try:
            self._members = self._index()
        except BaseException:
            file.close()
            raise

    @property
    def where(self) -> str:
        """The archive."""
        return self._where

    def size(self, name: str) -> int | None:
        """Size of a regular file; None if there is none of that name."""
        member = self._resolve(name)
        return member.size if member and member.offset >= 0 else None

    def open(self, name: str) -> Readable:
        """Open a regular file."""
        member = self._resolve(name)
        if member is None:
            raise ImageInvalidError(self._where, f"{name} is missing")
        if member.offset < 0:
            raise ImageInvalidError(self._where, f"{name} is not a regular file")
        return _Window(self._file.fileno(), member.offset, member.size)

    def close(self) -> None:
        """Close the archive; readers handed out fail from now on."""
        self._file.close()

    def _resolve(self, name: str) -> _Member | None:
        for _ in range(_MAX_LINKS):
            member = self._members.get(name)
            if member is None or member.link is None:
                return member
            name = member.link
        raise ImageInvalidError(self._where, f"{name} is a link that leads in a circle")

    def _index(self) -> dict[str, _Member]:
        members: dict[str, _Member] = {}
        end = os.fstat(self._file.fileno()).st_size
        try:
            # Never given to extract: only names and positions are read.
            with tarfile.open(fileobj=self._file, mode="r:", errorlevel=1) as archive:
                for info in archive:
                    if info.isreg() and info.offset_data + info.size > end:
                        raise ImageInvalidError(self._where, f"is cut off inside {info.name!r}")
                    members[self._inside(info.name, info.name)] = self._member(info)
                    if len(members) > _MAX_MEMBERS:
                        raise LimitError(f"number of members in {self._where}", len(members), _MAX_MEMBERS)
        except tarfile.ReadError as error:
            reason = "is cut off" if "unexpected end" in str(error) else f"is not a tar archive: {error}"
            raise ImageInvalidError(self._where, reason) from None
        except (tarfile.TarError, ValueError, ArithmeticError, LookupError) as error:
            raise ImageInvalidError(self._where, f"is not a tar archive: {error}") from None
        return members

    def _member(self, info: tarfile.TarInfo) -> _Member:
        if info.issym():
            target = posixpath.join(posixpath.dirname(info.name), info.linkname)
            return _Member(link=self._inside(target, info.name))
        if info.islnk():
            return _Member(link=self._inside(info.linkname, info.name))
        if info.isreg() and not info.issparse():
            return _Member(info.offset_data, info.size)
        return _Member()

    def _inside(self, name: str, member: str) -> str:
        """The name without detours.

        Raises:
            ImageInvalidError: it is absolute, or leads out of the archive.
        """
        plain = posixpath.normpath(name)
        if plain.startswith("/") or plain == ".." or plain.startswith("../"):
            raise ImageInvalidError(self._where, f"{member!r} leads out of the archive")
        return plain


class _Window:
    """A stretch of an open file. Reads name their position, so that several can go on at once."""

    def __init__(self, descriptor: int, offset: int, size: int) -> None:
        self._descriptor = descriptor
        self._offset = offset
        self._left = size

    def read(self, size: int = -1, /) -> bytes:
        """Return up to `size` bytes, none at the end of the stretch."""
        wanted = self._left if size < 0 else min(size, self._left)
        data = os.pread(self._descriptor, wanted, self._offset) if wanted else b""
        self._offset += len(data)
        self._left -= len(data)
        return data

    def close(self) -> None:
        """Nothing is held: the archive stays open."""
