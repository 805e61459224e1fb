"""A root file system by paths: what `os` and `pathlib` offer, for an image or an overlay.

`Rootfs` reads. `MutableRootfs` adds what changes, over a `WritableFileSystem`. A path is `str` (decoded as the
operating system's names are), `bytes` or `os.PathLike`; it may begin with a slash or not, which is the same; symlinks
and ``..`` never lead out of the root. Names come back as the path was given: `bytes` for `bytes`, else `str`.

Errors are the operating system's own (FileNotFoundError, NotADirectoryError …). Content that cannot be had raises
CorruptError or UnreachableError. Nobody's permissions are checked: whoever has the object has the file system.
"""

from __future__ import annotations

import errno
import io
import os
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, overload

from pagepool.image.member import Kind
from pagepool.vfs.file import RawFile, buffered, parse_mode
from pagepool.vfs.interface import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    Attributes,
    Changes,
    FileSystem,
    WritableFileSystem,
    fail,
)
from pagepool.vfs.paths import resolve, resolve_new, resolve_parent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import IO

    from _typeshed import OpenBinaryModeReading, OpenBinaryModeUpdating, OpenBinaryModeWriting, OpenTextMode
    from typing_extensions import Buffer

    from pagepool.vfs.paths import AnyPath


class DirEntry(NamedTuple):
    """A name in a directory, with what ``lstat`` shows of it.

    Args:
        name: without its directory.
        path: with it, as it was asked for.
        attributes: of the entry itself, also of a symlink.
    """

    name: str
    path: str
    attributes: Attributes

    def is_dir(self) -> bool:
        """Whether it is a directory; a symlink to one is not."""
        return self.attributes.kind is Kind.DIRECTORY

    def is_file(self) -> bool:
        """Whether it is a regular file; a symlink to one is not."""
        return self.attributes.kind is Kind.REGULAR

    def is_symlink(self) -> bool:
        """Whether it is a symlink."""
        return self.attributes.kind is Kind.SYMLINK


class Rootfs:
    """A root file system to read. Thread-safe. Use it as a context manager, or close it.

    Args:
        fs: closed with this.
        on_close: called once afterwards.
    """

    def __init__(self, fs: FileSystem, on_close: Callable[[], object] = lambda: None) -> None:
        self.fs = fs
        self._on_close = on_close
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of it. Views and what was written stay."""
        if not self._closed:
            self._closed = True
            try:
                self.fs.close()
            finally:
                self._on_close()

    @overload
    def open(self, path: AnyPath, mode: str, buffering: Literal[0], **text: Any) -> RawFile: ...
    @overload
    def open(self, path: AnyPath, mode: str = "r", *, buffering: Literal[0], **text: Any) -> RawFile: ...
    @overload
    def open(self, path: AnyPath, mode: OpenTextMode = "r", buffering: int = -1, **text: Any) -> io.TextIOWrapper: ...
    @overload
    def open(self, path: AnyPath, mode: OpenBinaryModeReading, buffering: Literal[-1, 1] = -1) -> io.BufferedReader: ...
    @overload
    def open(self, path: AnyPath, mode: OpenBinaryModeWriting, buffering: Literal[-1, 1] = -1) -> io.BufferedWriter: ...
    @overload
    def open(
        self, path: AnyPath, mode: OpenBinaryModeUpdating, buffering: Literal[-1, 1] = -1
    ) -> io.BufferedRandom: ...
    @overload
    def open(self, path: AnyPath, mode: str, buffering: int = -1, **text: Any) -> IO[Any]: ...
    def open(self, path: AnyPath, mode: str = "r", buffering: int = -1, **text: Any) -> Any:
        """Open a regular file, as the built-in `open`.

        Args:
            path: symlinks are followed.
            mode: as of `open`; what writes needs a `MutableRootfs`.
            buffering: 0 gives the `RawFile`, whose `view` and `pread` copy nothing and once.
            text: `encoding`, `errors`, `newline`.

        Raises:
            OSError: ENOENT, EISDIR, EROFS, EEXIST, ELOOP …; ENXIO for what is no regular file.
            ValueError: no such mode.
        """
        readable, writable, kind = parse_mode(mode)
        ino = self._ino_to_write(path, kind) if writable else resolve(self.fs, path)
        _check_content(self.fs.attributes(ino), path)
        name = os.fsdecode(path)
        raw = RawFile(self.fs, ino, readable=readable, writable=writable, append=kind == "a", name=name)
        return buffered(raw, mode, buffering, **text)

    def read_bytes(self, path: AnyPath) -> bytes:
        """All of a file."""
        return bytes(self.read_view(path))

    def read_view(self, path: AnyPath) -> memoryview:
        """All of a file, without a copy where its bytes are an image's."""
        ino = resolve(self.fs, path)
        found = self.fs.attributes(ino)
        _check_content(found, path)
        return self.fs.read(ino, 0, found.size)

    def read_text(self, path: AnyPath, encoding: str = "utf-8", errors: str = "strict") -> str:
        """All of a file, decoded."""
        return self.read_bytes(path).decode(encoding, errors)

    def stat(self, path: AnyPath, *, follow: bool = True) -> Attributes:
        """What ``stat`` shows."""
        return self.fs.attributes(resolve(self.fs, path, follow=follow))

    def lstat(self, path: AnyPath) -> Attributes:
        """What ``stat`` shows of a symlink itself."""
        return self.stat(path, follow=False)

    def exists(self, path: AnyPath) -> bool:
        """Whether a path leads somewhere."""
        return self._kind(path) is not None

    def lexists(self, path: AnyPath) -> bool:
        """The same, of a symlink itself."""
        return self._kind(path, follow=False) is not None

    def is_dir(self, path: AnyPath) -> bool:
        """Whether a path leads to a directory."""
        return self._kind(path) is Kind.DIRECTORY

    def is_file(self, path: AnyPath) -> bool:
        """Whether a path leads to a regular file."""
        return self._kind(path) is Kind.REGULAR

    def is_symlink(self, path: AnyPath) -> bool:
        """Whether a path names a symlink."""
        return self._kind(path, follow=False) is Kind.SYMLINK

    @overload
    def listdir(self, path: bytes) -> list[bytes]: ...
    @overload
    def listdir(self, path: str | os.PathLike[str] = "/") -> list[str]: ...
    def listdir(self, path: AnyPath = "/") -> list[str] | list[bytes]:
        """The names in a directory, in byte order."""
        names = [entry.name for entry in self.fs.entries(resolve(self.fs, path))]
        return names if isinstance(path, bytes) else [os.fsdecode(name) for name in names]

    def scandir(self, path: AnyPath = "/") -> Iterator[DirEntry]:
        """The entries of a directory with their attributes, in byte order."""
        base = os.fsdecode(path)
        prefix = base if base.endswith("/") else f"{base}/"
        for entry in self.fs.entries(resolve(self.fs, path)):
            name = os.fsdecode(entry.name)
            yield DirEntry(name, prefix + name, self.fs.attributes(entry.ino))

    @overload
    def walk(self, path: bytes) -> Iterator[tuple[bytes, list[bytes], list[bytes]]]: ...
    @overload
    def walk(self, path: str | os.PathLike[str] = "/") -> Iterator[tuple[str, list[str], list[str]]]: ...
    def walk(self, path: AnyPath = "/") -> Iterator[Any]:
        """As `os.walk` from the top down: directory, names of directories in it, names of everything else.

        Symlinks are not followed. Names may be taken out of the list of directories to leave those out.
        """
        convert: Callable[[bytes], Any] = bytes if isinstance(path, bytes) else os.fsdecode
        slash = convert(b"/")
        todo: list[tuple[int, Any]] = [(resolve(self.fs, path), convert(os.fsencode(path)))]
        while todo:
            ino, here = todo.pop()
            directories: dict[Any, int] = {}
            others: list[Any] = []
            for entry in self.fs.entries(ino):
                if entry.kind is Kind.DIRECTORY:
                    directories[convert(entry.name)] = entry.ino
                else:
                    others.append(convert(entry.name))
            names = list(directories)
            yield here, names, others
            prefix = here if here.endswith(slash) else here + slash
            todo += [(directories[name], prefix + name) for name in reversed(names) if name in directories]

    def readlink(self, path: AnyPath) -> str | bytes:
        """The target of a symlink, as it is written; `bytes` if the path is."""
        target = self.fs.readlink(resolve(self.fs, path, follow=False))
        return target if isinstance(path, bytes) else os.fsdecode(target)

    def xattrs(self, path: AnyPath, *, follow: bool = True) -> Mapping[bytes, bytes]:
        """Extended attributes, by name."""
        return self.fs.xattrs(resolve(self.fs, path, follow=follow))

    def _kind(self, path: AnyPath, *, follow: bool = True) -> Kind | None:
        try:
            return self.fs.attributes(resolve(self.fs, path, follow=follow)).kind
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return None
            raise

    def _ino_to_write(self, path: AnyPath, _kind: str) -> int:
        fail(errno.EROFS, os.fsencode(path))


class MutableRootfs(Rootfs):
    """A root file system to read and write. Thread-safe: each operation is one step, or nothing of it.

    What returned survives the death of the process; `sync` makes it survive the loss of power.

    Args:
        fs: closed with this.
        on_close: called once afterwards.
    """

    def __init__(self, fs: WritableFileSystem, on_close: Callable[[], object] = lambda: None) -> None:
        super().__init__(fs, on_close)
        self._out = fs

    def write_bytes(self, path: AnyPath, data: Buffer) -> int:
        """Make a file hold just that; an existing one keeps its inode."""
        with self.open(path, "wb", buffering=0) as file:
            return file.write(data)

    def write_text(self, path: AnyPath, text: str, encoding: str = "utf-8") -> int:
        """The same with text."""
        return self.write_bytes(path, text.encode(encoding))

    def mkdir(self, path: AnyPath, mode: int = 0o755, *, parents: bool = False, exist_ok: bool = False) -> None:
        """Make a directory; with `parents` those above it, too."""
        if parents:
            head = os.fsencode(path).rstrip(b"/").rpartition(b"/")[0]
            if head and not self.exists(head):
                self.mkdir(head, parents=True, exist_ok=True)
        try:
            self._create(path, Kind.DIRECTORY, mode)
        except FileExistsError:
            if not exist_ok or not self.is_dir(path):
                raise
        except OSError as error:
            if error.errno != errno.EBUSY or not exist_ok:
                raise

    def symlink(self, target: str | bytes, path: AnyPath) -> None:
        """Make a symlink; the target is written as it is."""
        raw = os.fsencode(target)
        if not raw:
            fail(errno.ENOENT, raw)
        self._create(path, Kind.SYMLINK, 0o777, target=raw)

    def mknod(self, path: AnyPath, kind: Kind, mode: int = 0o600, device: tuple[int, int] = (0, 0)) -> None:
        """Make a device, FIFO, socket or empty file; `device` is (major, minor)."""
        if kind in (Kind.DIRECTORY, Kind.SYMLINK, Kind.HARDLINK):
            fail(errno.EPERM, os.fsencode(path))
        self._create(path, kind, mode, device=device)

    def link(self, existing: AnyPath, path: AnyPath) -> None:
        """Give a file a further name; a symlink is linked itself."""
        ino = resolve(self.fs, existing, follow=False)
        self._out.link(ino, *resolve_parent(self.fs, path))

    def unlink(self, path: AnyPath, *, missing_ok: bool = False) -> None:
        """Remove a name of anything but a directory."""
        try:
            self._out.unlink(*resolve_parent(self.fs, path))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def rmdir(self, path: AnyPath) -> None:
        """Remove an empty directory."""
        self._out.rmdir(*resolve_parent(self.fs, path))

    def rmtree(self, path: AnyPath) -> None:
        """Remove a directory and everything below, or a single file. Not one step, but many."""
        parent, name = resolve_parent(self.fs, path)
        self._remove(parent, name)

    def rename(self, source: AnyPath, target: AnyPath, *, replace: bool = True, exchange: bool = False) -> None:
        """Move, over what is there if `replace`; or let the two change places."""
        flags = RENAME_EXCHANGE if exchange else 0 if replace else RENAME_NOREPLACE
        self._out.rename(*resolve_parent(self.fs, source), *resolve_parent(self.fs, target), flags)

    def chmod(self, path: AnyPath, mode: int, *, follow: bool = True) -> None:
        """Set permission bits."""
        self._change(path, Changes(mode=mode & 0o7777), follow)

    def chown(self, path: AnyPath, uid: int | None = None, gid: int | None = None, *, follow: bool = True) -> None:
        """Set owner and group; None leaves one as it is. Takes setuid and setgid away, as for an unprivileged user."""
        self._change(path, Changes(uid=uid, gid=gid, kill_privileges=True), follow)

    def utime(
        self, path: AnyPath, atime_ns: int | None = None, mtime_ns: int | None = None, *, follow: bool = True
    ) -> None:
        """Set times, nanoseconds since 1970; None leaves one as it is."""
        self._change(path, Changes(atime_ns=atime_ns, mtime_ns=mtime_ns), follow)

    def truncate(self, path: AnyPath, size: int) -> None:
        """Make a file that long."""
        self._change(path, Changes(size=size), True)

    def set_xattr(self, path: AnyPath, name: bytes, value: bytes, flags: int = 0, *, follow: bool = True) -> None:
        """Set an extended attribute."""
        self._out.set_xattr(resolve(self.fs, path, follow=follow), name, value, flags)

    def remove_xattr(self, path: AnyPath, name: bytes, *, follow: bool = True) -> None:
        """Remove an extended attribute."""
        self._out.remove_xattr(resolve(self.fs, path, follow=follow), name)

    def sync(self) -> None:
        """Make all that was done durable. Blocks."""
        self._out.sync()

    def _change(self, path: AnyPath, changes: Changes, follow: bool) -> None:
        self._out.set_attributes(resolve(self.fs, path, follow=follow), changes)

    def _create(
        self, path: AnyPath, kind: Kind, mode: int, *, target: bytes = b"", device: tuple[int, int] = (0, 0)
    ) -> int:
        parent, name = resolve_parent(self.fs, path)
        return self._out.create(parent, name, kind, mode & 0o7777, 0, 0, target=target, device=device)

    def _ino_to_write(self, path: AnyPath, kind: str) -> int:
        """The file to open for writing, made or emptied as the mode says."""
        if kind == "r":
            return resolve(self.fs, path)
        if (raw := os.fsencode(path)).endswith(b"/"):  # the kernel makes no file of such a name, nor opens one
            if above := raw.rstrip(b"/"):
                resolve_parent(self.fs, above)
            fail(errno.EISDIR, raw)
        if kind == "x":
            return self._create(path, Kind.REGULAR, 0o644)
        parent, name, ino = resolve_new(self.fs, path)
        if not ino:
            return self._out.create(parent, name, Kind.REGULAR, 0o644, 0, 0)
        if kind == "w" and self.fs.attributes(ino).kind is Kind.REGULAR:
            self._out.set_attributes(ino, Changes(size=0))
        return ino

    def _remove(self, parent: int, name: bytes) -> None:
        """Remove an entry: a directory once nothing is in it any more."""
        todo = [(parent, name)]
        while todo:
            parent, name = todo[-1]
            ino = self.fs.lookup(parent, name)
            if self.fs.attributes(ino).kind is not Kind.DIRECTORY:
                self._out.unlink(parent, name)
            elif below := [(ino, entry.name) for entry in self.fs.entries(ino)]:
                todo += below
                continue
            else:
                self._out.rmdir(parent, name)
            todo.pop()


def _check_content(found: Attributes, path: AnyPath) -> None:
    """Refuse to open what has no content: EISDIR, or ENXIO for devices, FIFOs and sockets."""
    if found.kind is not Kind.REGULAR:
        fail(errno.EISDIR if found.kind is Kind.DIRECTORY else errno.ENXIO, os.fsencode(path))
