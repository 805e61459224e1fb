"""Files of images, and of overlays over them, for everything that opens files with fsspec.

    fsspec.open("pagepool://127.0.0.1:5000/app:1/etc/os-release")
    fsspec.filesystem("pagepool", url="http://127.0.0.1:5000", image="app:1").ls("/etc")

A URL is ``pagepool://HOST[:PORT]/NAME:TAG/PATH`` (or ``NAME@DIGEST``). The name of the image ends with the first
component that has a tag or a digest, or at ``!``: ``pagepool://HOST/NAME!/PATH`` is the tag "latest". Without a host
(``pagepool:///PATH``, or just a path) the storage options say which image it is.

Paths are absolute in the image. Symlinks are followed inside of it. In listings a symlink to a file is a file, and one
to a directory a *link*, so that nothing is walked twice; asked for by its own name it is what it leads to.

Images are read-only. With the storage option `upper`, the directory of an overlay, files can be changed: what was
written survives the process, and is seen by nobody else. There are no transactions.

File systems are cached by fsspec, and open until they are closed or the program ends. Thread-safe.

fsspec makes a file system for each thread, and one more for the same options in another order; an overlay can be open
once. So those of a process that have an overlay in common share it: it is closed with the last of them.
"""

from __future__ import annotations

import errno
import os
import weakref
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any, ClassVar, Final

from fsspec.spec import AbstractFileSystem
from fsspec.utils import stringify_path

from pagepool.errors import ReferenceInvalidError
from pagepool.image import Kind
from pagepool.library import Client
from pagepool.library.client import DEFAULT_URL
from pagepool.oci import Platform, Reference
from pagepool.transport import Credentials, is_loopback
from pagepool.transport.http import parse_base
from pagepool.vfs import MutableRootfs, Rootfs, fail

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

    from pagepool.digest import Digest
    from pagepool.vfs import Attributes

_PROTOCOL: Final = "pagepool"
_PREFIX: Final = f"{_PROTOCOL}://"


@dataclass(slots=True)
class _Opened:
    """An image or an overlay that is open, for as many file systems as `users` says."""

    root: Rootfs
    tree: Digest
    stack: ExitStack
    users: int = 0


class _Overlays:
    """The overlays that file systems of this process have open, by what says which; None stands for what is not shared.

    A child that was forked begins without any: those of its parent are closed in it.
    """

    def __init__(self) -> None:
        self._forget()
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self._lock = RLock()  # a file system may be collected, and so give back, while this thread takes
        self._opened: dict[Hashable, _Opened] = {}

    def take(self, key: Hashable, open_root: Callable[[], _Opened]) -> _Opened:
        """What is open already, or is opened now."""
        if key is None:
            return open_root()
        with self._lock:
            opened = self._opened.get(key)
            if opened is None:
                opened = self._opened[key] = open_root()
            opened.users += 1
            return opened

    def give_back(self, key: Hashable, opened: _Opened) -> None:
        """One user less; the last one closes it, before anybody can open it again."""
        if key is None:
            opened.stack.close()
            return
        with self._lock:
            opened.users -= 1
            if not opened.users:
                if self._opened.get(key) is opened:
                    del self._opened[key]
                opened.stack.close()


_overlays: Final = _Overlays()


class PagepoolFileSystem(AbstractFileSystem):  # type: ignore[misc] # fsspec has no types
    """The files of one image, or of an overlay over it.

    Args:
        image: ``NAME[:TAG][@DIGEST]``. In a URL, it is part of it.
        url: of the service. In a URL, ``http://`` and its host if that is this machine, else ``https://``.
        upper: directory of an overlay, made if it is not there; without it the image is read-only.
        auto_mkdir: make directories that are missing above whatever is written, as an object store does without them.
        platform: of an index, which image: ``linux/arm64``.
        username: who we are.
        password: who we are.
        options: those of `pagepool.Client` (`directory`, `budget`, `shared`, `verify`, `timeout_s`), and fsspec's own.

    Raises:
        PagepoolError: there is no such image, or the service cannot be reached.
    """

    protocol = _PROTOCOL
    root_marker = "/"
    _client_options: ClassVar = frozenset(("directory", "budget", "shared", "verify", "timeout_s"))

    def __init__(
        self,
        image: str = "",
        url: str = DEFAULT_URL,
        *,
        upper: str | os.PathLike[str] | None = None,
        auto_mkdir: bool = False,
        platform: str = "",
        username: str = "",
        password: str = "",
        **options: Any,
    ) -> None:
        ours = {name: options.pop(name) for name in self._client_options & options.keys()}
        super().__init__(**options)
        if not image:
            raise ReferenceInvalidError(image, f"a URL ({_PREFIX}HOST/NAME:TAG/PATH) or the option image says it")
        if "directory" in ours:
            ours["directory"] = Path(ours["directory"])
        self.image = image
        self.url = url
        self.auto_mkdir = auto_mkdir

        def open_root() -> _Opened:
            with ExitStack() as stack:
                client = stack.enter_context(Client(url, credentials=Credentials(username, password), **ours))
                found = client.image(image, platform=Platform.parse(platform) if platform else None)
                root = found.open() if upper is None else found.overlay(Path(upper))
                stack.enter_context(root)
                return _Opened(root, found.tree, stack.pop_all())

        key = None
        if upper is not None:
            key = (url, image, platform, username, password, Path(upper).resolve(), *sorted(ours.items()))
        opened = _overlays.take(key, open_root)
        self.root: Rootfs = opened.root
        self.tree = opened.tree
        self._finish = weakref.finalize(self, _overlays.give_back, key, opened)

    def close(self) -> None:
        """Let go of everything; who asks fsspec again gets another one. Done by itself when the program ends."""
        self._cache.pop(self._fs_token_, None)
        self._finish()

    # -- URLs --------------------------------------------------------------------------------------------------

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(one) for one in path]
        text = stringify_path(path)
        if text.startswith(_PREFIX):
            text = split_url(text)[2]
        return "/" + text.removeprefix(f"{_PROTOCOL}:").strip("/")

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, str]:
        host, image, _ = split_url(path) if path.startswith(_PREFIX) else ("", "", path)
        return {"url": service_url(host), "image": image} if host else {}

    def unstrip_protocol(self, name: str) -> str:
        """The URL of a path; with it the file is found again without options."""
        reference = replace(Reference.parse(self.image), host=None)
        end = "" if reference.tag or reference.digest else "!"
        host = parse_base(self.url).netloc.decode("ascii")
        return f"{_PREFIX}{host}/{reference}{end}{self._strip_protocol(name)}"

    # -- what is there -----------------------------------------------------------------------------------------

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """What there is to know of a path; of a symlink what it leads to, and that it is one."""
        path = self._strip_protocol(path)
        return self._describe(path, self.root.lstat(path), follow=True)

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """The entries of a directory, or the file itself."""
        path = self._strip_protocol(path)
        if self.root.is_dir(path):
            found = [self._describe(entry.path, entry.attributes) for entry in self.root.scandir(path)]
        else:
            found = [self.info(path)]
        return found if detail else [one["name"] for one in found]

    def exists(self, path: str, **_: Any) -> bool:
        """Whether a path leads somewhere."""
        return self.root.exists(self._strip_protocol(path))

    def lexists(self, path: str, **_: Any) -> bool:
        """The same, of a symlink itself."""
        return self.root.lexists(self._strip_protocol(path))

    def isdir(self, path: str) -> bool:
        """Whether a path leads to a directory."""
        return self.root.is_dir(self._strip_protocol(path))

    def isfile(self, path: str) -> bool:
        """Whether a path leads to a regular file."""
        return self.root.is_file(self._strip_protocol(path))

    def modified(self, path: str) -> datetime:
        """When a file's content changed."""
        return datetime.fromtimestamp(self.info(path)["mtime"], UTC)

    def created(self, path: str) -> datetime:
        """The same: an image does not say when a file was made."""
        return self.modified(path)

    def ukey(self, path: str) -> str:
        """A text that changes when the file does."""
        path = self._strip_protocol(path)
        found = self.root.stat(path)
        private = f"-{found.mtime_ns}-{found.ctime_ns}-{found.size}" if self._out else ""
        return f"{self.tree}-{found.ino}{private}"

    # -- content -----------------------------------------------------------------------------------------------

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        """Bytes `[start, end)` of a file; negative numbers count from its end."""
        with self.root.open(self._strip_protocol(path), "rb", buffering=0) as file:
            low, high, _step = slice(start, end).indices(file.size)
            return file.pread(max(0, high - low), low)

    def _open(self, path: str, mode: str = "rb", autocommit: bool = True, **_: Any) -> Any:
        if not autocommit:
            raise NotImplementedError("files of images have no transactions")
        if mode[:1] != "r":
            self._prepare(path)
        return self.root.open(path, mode)

    # -- changes -----------------------------------------------------------------------------------------------

    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:
        """Make a directory. EEXIST if it is there."""
        self._writable(path).mkdir(self._strip_protocol(path), parents=create_parents)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Make a directory and all above it."""
        self._writable(path).mkdir(self._strip_protocol(path), parents=True, exist_ok=exist_ok)

    def rmdir(self, path: str) -> None:
        """Remove an empty directory."""
        self._writable(path).rmdir(self._strip_protocol(path))

    def rm_file(self, path: str) -> None:
        """Remove a name of anything but a directory."""
        self._writable(path).unlink(self._strip_protocol(path))

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        """Remove files; directories if they are empty, or with `recursive`. Symlinks are removed themselves."""
        if maxdepth is not None:
            raise NotImplementedError("rm removes all of a directory")
        for one in self._expanded(path):
            root = self._writable(one)
            if root.is_dir(one) and not root.is_symlink(one):
                (root.rmtree if recursive else root.rmdir)(one)
            else:
                root.unlink(one)

    def mv(self, path1: str, path2: str, recursive: bool = False, maxdepth: int | None = None, **_: Any) -> None:  # noqa: ARG002 - fsspec's signature
        """Rename, in one step; into a directory that is there."""
        target = self._into(path1, path2)
        self._prepare(target)
        self._writable(path2).rename(self._strip_protocol(path1), target)

    def cp_file(self, path1: str, path2: str, **_: Any) -> None:
        """Copy a file's content, or make the directory."""
        root, source, target = self._writable(path2), self._strip_protocol(path1), self._strip_protocol(path2)
        if root.is_dir(source):
            root.mkdir(target, parents=True, exist_ok=True)
            return
        self._prepare(target)
        with root.open(source, "rb") as file, root.open(target, "wb") as out:
            while data := file.read(self.blocksize):
                out.write(data)

    def touch(self, path: str, truncate: bool = True, **_: Any) -> None:
        """Make an empty file; empty one that is there, or with `truncate` false set its times to now."""
        root, path = self._writable(path), self._strip_protocol(path)
        if truncate or not root.exists(path):
            self._prepare(path)
            root.write_bytes(path, b"")
        else:
            now = int(datetime.now(UTC).timestamp() * 10**9)
            root.utime(path, now, now)

    # -- parts -------------------------------------------------------------------------------------------------

    @property
    def _out(self) -> MutableRootfs | None:
        return self.root if isinstance(self.root, MutableRootfs) else None

    def _writable(self, path: str) -> MutableRootfs:
        return self._out or fail(errno.EROFS, os.fsencode(self._strip_protocol(path)))

    def _prepare(self, target: str) -> None:
        """Make the directories above what will be written, if that is asked for."""
        if self.auto_mkdir and self._out is not None:
            self._out.mkdir(self._parent(target), parents=True, exist_ok=True)

    def _into(self, source: str, target: str) -> str:
        source, target = self._strip_protocol(source), self._strip_protocol(target)
        return f"{target.rstrip('/')}/{source.rpartition('/')[2]}" if self.root.is_dir(target) else target

    def _expanded(self, path: Any) -> Iterator[str]:
        """Paths as they are, where there is something; else what they match."""
        for one in path if isinstance(path, list | tuple) else [path]:
            stripped = self._strip_protocol(one)
            if self.root.lexists(stripped):
                yield stripped
            else:
                yield from self.expand_path(stripped)

    def _describe(self, path: str, found: Attributes, *, follow: bool = False) -> dict[str, Any]:
        """An entry as fsspec's local file system has it.

        Args:
            found: of the path itself.
            follow: whether a symlink to a directory is one.
        """
        more: dict[str, Any] = {"islink": found.kind is Kind.SYMLINK}
        kind = found.kind
        if found.kind is Kind.SYMLINK:
            more["destination"] = self.root.readlink(path)
            if self.root.exists(path):
                found = self.root.stat(path)
                kind = found.kind if follow or found.kind is not Kind.DIRECTORY else kind
        return {
            "name": path,
            "size": found.size,
            "type": _TYPES.get(kind, "other"),
            "mode": found.st_mode,
            "uid": found.uid,
            "gid": found.gid,
            "mtime": found.mtime_ns / 10**9,
            "ino": found.ino,
            "nlink": found.nlink,
            **more,
        }


_TYPES: Final = {Kind.DIRECTORY: "directory", Kind.REGULAR: "file", Kind.SYMLINK: "link"}


def split_url(url: str) -> tuple[str, str, str]:
    """Host, image and path of a ``pagepool://`` URL; host and image may be empty.

    Raises:
        ReferenceInvalidError: it has a host, and no image that can be told from the path.
    """
    host, _, rest = url.removeprefix(_PREFIX).partition("/")
    if not host:
        return "", "", f"/{rest}"
    name, mark, path = rest.partition("!")
    if mark and (not path or path.startswith("/")):
        return host, name, path or "/"
    parts = rest.split("/")
    for count, part in enumerate(parts, 1):
        if ":" in part or "@" in part:
            return host, "/".join(parts[:count]), "/" + "/".join(parts[count:])
    raise ReferenceInvalidError(url, f"it has to be {_PREFIX}HOST/NAME:TAG/PATH, or {_PREFIX}HOST/NAME!/PATH")


def service_url(host: str) -> str:
    """The address of a service by its host: without encryption on this machine only."""
    bare = parse_base(f"http://{host}").host
    return f"{'http' if is_loopback(bare) else 'https'}://{host}"
