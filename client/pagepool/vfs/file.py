"""An open regular file of a file system, as Python's io has them.

`RawFile` is unbuffered; `buffered` puts the standard library's buffers and text layers on it. `RawFile.view` reads
without copying: a view of the pool's pages wherever the bytes are an image's. An open file keeps its inode, though its
last name may be removed.

Several threads may use `pread`, `view` and `pwrite`; the position is one thread's, as in io.
"""

from __future__ import annotations

import errno
import io
import os
from typing import TYPE_CHECKING, Any, Literal, cast, overload

from pagepool.vfs.interface import Changes, FileSystem, WritableFileSystem, fail
from pagepool.vfs.treefs import TreeFileSystem

if TYPE_CHECKING:
    from typing_extensions import Buffer

_LARGEST_STEP = 1 << 20
_EMPTY = memoryview(b"")


class RawFile(io.RawIOBase):
    """An open file.

    Args:
        fs: where it is.
        ino: a regular file.
        readable: whether it may be read.
        writable: whether it may be written; `fs` is a `WritableFileSystem` then.
        append: whether each write goes to the end.
        name: as it was opened, for people.
    """

    def __init__(
        self, fs: FileSystem, ino: int, *, readable: bool, writable: bool = False, append: bool = False, name: str = ""
    ) -> None:
        self._fs = fs
        self._ino = ino
        self._readable = readable
        self._writing = cast("WritableFileSystem", fs) if writable else None
        self._append = append
        self._position = 0
        self._whole: memoryview | None = None
        self.name = name
        fs.hold(ino)
        self._held = True

    def view(self, offset: int, size: int) -> memoryview:
        """Bytes of the file, without copying where they are an image's. Blocks while they are fetched.

        Args:
            offset: where to begin, at least 0.
            size: how many, at least 0.

        Returns:
            a read-only view, shorter only at the end of the file. It stays valid, and does not change.

        Raises:
            OSError: a negative number (EINVAL), or a file not open for reading (EBADF).
            CorruptError, UnreachableError: the bytes cannot be had.
        """
        whole = self._whole
        if whole is not None and offset >= 0 and size >= 0:
            return whole[offset : offset + size]
        return self._view(offset, size)

    def pread(self, size: int, offset: int) -> bytes:
        """As `os.pread`: `view`, copied."""
        whole = self._whole
        if whole is not None and offset >= 0 and size >= 0:
            return bytes(whole[offset : offset + size])
        return bytes(self._view(offset, size))

    def pwrite(self, data: Buffer, offset: int) -> int:
        """As `os.pwrite`; all of it, or an error."""
        return self._writer().write(self._ino, offset, data)

    def sync(self) -> None:
        """Make what was written durable, as ``fsync``. Blocks."""
        self._check_open()
        if self._writing is not None:
            self._writing.sync()

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._fs.attributes(self._ino).size

    @property
    def ino(self) -> int:
        """The number of its inode."""
        return self._ino

    def close(self) -> None:
        """Let go of the file. Views stay valid."""
        if self._held:
            self._held = False
            self._whole = None
            self._fs.release(self._ino)
        super().close()

    def readable(self) -> bool:
        """Whether it was opened for reading."""
        self._check_open()
        return self._readable

    def writable(self) -> bool:
        """Whether it was opened for writing."""
        self._check_open()
        return self._writing is not None

    def seekable(self) -> bool:
        """It is."""
        self._check_open()
        return True

    def tell(self) -> int:
        """The position."""
        self._check_open()
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move the position; also to the next data or hole (`os.SEEK_DATA`, `os.SEEK_HOLE`)."""
        self._check_open()
        if whence in (os.SEEK_DATA, os.SEEK_HOLE):
            self._position = self._fs.seek(self._ino, offset, whence)
            return self._position
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}.get(whence)
        if base is None or base + offset < 0:
            fail(errno.EINVAL)
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Buffer, /) -> int:
        """Read at the position."""
        target = memoryview(buffer).cast("B")
        data = self.view(self._position, min(len(target), _LARGEST_STEP))
        target[: len(data)] = data
        self._position += len(data)
        return len(data)

    def readall(self) -> bytes:
        """Read from the position to the end."""
        data = bytes(self.view(self._position, max(0, self.size - self._position)))
        self._position += len(data)
        return data

    def write(self, data: Buffer, /) -> int:
        """Write at the position, or at the end if the file was opened to append."""
        writer = self._writer()
        if self._append:
            self._position = writer.append(self._ino, data)
            return memoryview(data).nbytes
        written = writer.write(self._ino, self._position, data)
        self._position += written
        return written

    def truncate(self, size: int | None = None, /) -> int:
        """Make the file that long; as long as the position says without `size`."""
        wanted = self._position if size is None else size
        self._writer().set_attributes(self._ino, Changes(size=wanted))
        return wanted

    def _view(self, offset: int, size: int) -> memoryview:
        self._check_open()
        if not self._readable:
            fail(errno.EBADF, self._ino)
        found = self._fs.read(self._ino, offset, size)
        if isinstance(self._fs, TreeFileSystem):  # it never changes
            self._whole = self._fs.whole(self._ino)
        return found

    def _writer(self) -> WritableFileSystem:
        self._check_open()
        if self._writing is None:
            fail(errno.EBADF, self._ino)
        return self._writing

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")


@overload
def buffered(raw: RawFile, mode: str, buffering: Literal[0]) -> RawFile: ...
@overload
def buffered(raw: RawFile, mode: str, buffering: int = -1, **text: Any) -> io.IOBase: ...
def buffered(raw: RawFile, mode: str, buffering: int = -1, **text: Any) -> io.IOBase:
    """What the built-in `open` puts on a raw file.

    Args:
        mode: as of `open`.
        buffering: 0 for none (binary only), a size, or -1 to choose one.
        text: `encoding`, `errors`, `newline` for text.
    """
    binary = "b" in mode
    try:
        if binary and any(value is not None for value in text.values()):
            raise ValueError("binary mode takes no encoding, errors or newline")
        if buffering == 0:
            if not binary:
                raise ValueError("can't have unbuffered text I/O")
            return raw
        size = io.DEFAULT_BUFFER_SIZE if buffering < 2 else buffering
        readable, writable = raw.readable(), raw.writable()
        stream: io.BufferedIOBase
        if readable and writable:
            stream = io.BufferedRandom(raw, size)
        else:
            stream = io.BufferedReader(raw, size) if readable else io.BufferedWriter(raw, size)
        if binary:
            return stream
        return io.TextIOWrapper(cast("io.BufferedRandom", stream), line_buffering=buffering == 1, **text)
    except BaseException:
        raw.close()
        raise


def parse_mode(mode: str) -> tuple[bool, bool, str]:
    """Take a mode of `open` apart: readable, writable, and its letter of ``rwxa``.

    Raises:
        ValueError: it is none.
    """
    letters = [letter for letter in mode if letter in "rwxa"]
    rest = [letter for letter in mode if letter not in "rwxa"]
    if len(letters) != 1 or len(set(mode)) != len(mode) or not set(rest) <= set("b+t") or {"b", "t"} <= set(rest):
        raise ValueError(f"invalid mode: {mode!r}")
    kind = letters[0]
    return kind == "r" or "+" in mode, kind != "r" or "+" in mode, kind
