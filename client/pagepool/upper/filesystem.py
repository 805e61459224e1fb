"""What a mount over an image showed, as a file system: the image, and the upper that the kernel wrote. Read-only.

Nothing is mounted. Contents that are not in the upper come from the image, and are fetched if need be: of files that
were not changed, or of which only metadata was.

Numbers are those of the image where it is the same inode, higher ones for what is new. The same are a directory that
was merged, also if it was moved, and a file that stands where it was in the image, if both have one name only: the
kernel gives a changed file of several names an inode of its own (``index=off``), and so does this.

Thread-safe. The upper is read once, when this is made; whoever changes it afterwards gets wrong bytes, or an error.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING, Final

from pagepool.image.member import Kind
from pagepool.upper.scan import UpperNode, is_same, scan_upper
from pagepool.vfs import ROOT, Attributes, Entry, fail

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from pagepool.vfs import TreeFileSystem, Usage

_LOOK_AT: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class UpperFileSystem:
    """An upper over its image; implements `FileSystem`, and `overlay.Touched` for diffs.

    Args:
        upper: the directory.
        root: what is in it, as `check_upper` gives it: with `lower` and `counterpart`.
        base: the image; closed by the caller.
    """

    def __init__(self, upper: Path, root: UpperNode, base: TreeFileSystem) -> None:
        self.base = base
        self._upper = upper
        self._lock = Lock()
        self._file: tuple[int, int] = (0, -1)
        """The number and the descriptor of the file that was read last."""
        self._nodes: dict[int, UpperNode] = {}
        self._names: dict[int, dict[bytes, int]] = {}
        """Of directories in the upper, the number of each name; 0 where it is a whiteout."""
        self._parents: dict[int, int] = {ROOT: ROOT}
        self._links: dict[int, int] = {}
        self._number(root)

    def _number(self, root: UpperNode) -> None:
        identities: dict[tuple[int, int], int] = {}
        following = self.base.tree.node_count + 1
        self._nodes[ROOT] = root
        stack = [(ROOT, root)]
        while stack:
            parent, directory = stack.pop()
            names = self._names[parent] = {}
            for name, node in sorted(directory.children.items()):
                if node.is_whiteout:
                    names[name] = 0
                    continue
                number = self._same(node) or identities.get(node.identity, 0)
                if not number:
                    number, following = following, following + 1
                names[name] = number
                identities[node.identity] = number
                self._nodes.setdefault(number, node)
                self._links[number] = self._links.get(number, 0) + 1
                if node.kind is Kind.DIRECTORY:
                    self._parents[number] = parent
                    stack.append((number, node))

    def _same(self, node: UpperNode) -> int:
        """The number in the image of the inode that this is, 0 if it is another."""
        if node.kind is Kind.DIRECTORY:
            found = node.lower
        elif node.counterpart and node.status.st_nlink == 1:
            other = self.base.node(node.counterpart)
            found = node.counterpart if other.kind is node.kind and other.nlink == 1 else 0
        else:
            found = 0
        return 0 if found in self._nodes else found

    @cached_property
    def _gone(self) -> Counter[int]:
        """Of the image's files with several names, how many of those are not seen any more."""
        gone: Counter[int] = Counter()
        hidden: list[int] = []
        for number in self._names:
            for node in self._nodes[number].children.values():
                if not (below := node.counterpart) or below in self._nodes:
                    continue  # the image has no such name; or the inode is seen, here or where it was moved
                if self.base.tree.kind(below) is Kind.DIRECTORY:
                    hidden.append(below)
                else:
                    gone[below] += 1
        while hidden:
            for entry in self.base.entries(hidden.pop()):
                if entry.kind is not Kind.DIRECTORY:
                    gone[entry.ino] += 1
                elif entry.ino not in self._nodes:
                    hidden.append(entry.ino)
        return gone

    def is_current(self) -> bool:
        """Whether the upper is still what was read when this was made: see `is_same`. Reads all of its metadata."""
        try:
            return is_same(self._nodes[ROOT], scan_upper(self._upper))
        except OSError:  # names come and go
            return False

    # -- Touched

    def touched(self) -> list[int]:
        """See `overlay.Touched`: what the upper has."""
        return [number for number in self._nodes if number <= self.base.tree.node_count]

    def has_own_content(self, ino: int) -> bool:
        """See `overlay.Touched`: not if only the metadata was copied."""
        node = self._nodes[ino]
        return not (node.is_metacopy and node.lower == ino)

    # -- FileSystem

    @property
    def read_only(self) -> bool:
        """It is."""
        return True

    def lookup(self, parent: int, name: bytes) -> int:
        """See `FileSystem`."""
        names = self._names.get(parent)
        if names is None:
            return self.base.lookup(parent, name) if parent not in self._nodes else fail(errno.ENOTDIR, name)
        if (found := names.get(name)) is not None:
            return found or fail(errno.ENOENT, name)
        lower = self._nodes[parent].lower
        return self.base.lookup(lower, name) if lower else fail(errno.ENOENT, name)

    def attributes(self, ino: int) -> Attributes:
        """See `FileSystem`."""
        node = self._nodes.get(ino)
        if node is None:
            found = self.base.attributes(ino)
            several = found.nlink > 1 and found.kind is not Kind.DIRECTORY
            return found._replace(nlink=found.nlink - self._gone[ino]) if several else found
        status = node.status
        links = self._links.get(ino, 1)
        if node.kind is Kind.DIRECTORY:
            links = 2 + sum(entry.kind is Kind.DIRECTORY for entry in self.entries(ino))
        device = node.kind in (Kind.CHAR, Kind.BLOCK)
        return Attributes(
            *(ino, node.kind, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid),
            *(0 if node.kind not in (Kind.REGULAR, Kind.SYMLINK) else status.st_size, links),
            *(status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns),
            *(os.major(status.st_rdev) if device else 0, os.minor(status.st_rdev) if device else 0),
            self.base.attributes(node.lower).blocks if node.is_metacopy else status.st_blocks,
        )

    def parent(self, directory: int) -> int:
        """See `FileSystem`."""
        if directory in self._parents:
            return self._parents[directory]
        return self.base.parent(directory) if directory not in self._nodes else fail(errno.ENOTDIR, directory)

    def readlink(self, ino: int) -> bytes:
        """See `FileSystem`."""
        node = self._nodes.get(ino)
        if node is None:
            return self.base.readlink(ino)
        return node.target if node.kind is Kind.SYMLINK else fail(errno.EINVAL, ino)

    def entries(self, directory: int) -> Iterator[Entry]:
        """See `FileSystem`."""
        if directory in self._names:
            return iter(self._merge(directory))
        if directory not in self._nodes:
            return self.base.entries(directory)
        return fail(errno.ENOTDIR, directory)

    def _merge(self, directory: int) -> list[Entry]:
        names, lower = self._names[directory], self._nodes[directory].lower
        found = [Entry(name, number, self._nodes[number].kind) for name, number in names.items() if number]
        if lower:
            found += (entry for entry in self.base.entries(lower) if entry.name not in names)
        return sorted(found, key=lambda entry: entry.name)

    def xattrs(self, ino: int) -> Mapping[bytes, bytes]:
        """See `FileSystem`: those that programs see."""
        node = self._nodes.get(ino)
        return self.base.xattrs(ino) if node is None else node.xattrs

    def read(self, ino: int, offset: int, size: int) -> memoryview:
        """See `FileSystem`."""
        node = self._regular(ino)
        if node is None or node.is_metacopy:
            return self.base.read(ino if node is None else node.lower, offset, size)
        if offset < 0 or size < 0:
            fail(errno.EINVAL, ino)
        with self._lock:
            return memoryview(_read_all(self._open(ino, node), offset, size))

    def seek(self, ino: int, offset: int, whence: int) -> int:
        """See `FileSystem`."""
        node = self._regular(ino)
        if node is None or node.is_metacopy:
            return self.base.seek(ino if node is None else node.lower, offset, whence)
        if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            fail(errno.EINVAL, ino)
        with self._lock:
            return os.lseek(self._open(ino, node), offset, whence)

    def usage(self) -> Usage:
        """See `FileSystem`: the image's."""
        return self.base.usage()

    def hold(self, ino: int) -> None:
        """See `FileSystem`. Nothing goes away here."""

    def release(self, ino: int, count: int = 1) -> None:
        """See `FileSystem`."""

    def close(self) -> None:
        """See `FileSystem`. The image stays open."""
        with self._lock:
            _, descriptor = self._file
            if descriptor >= 0:
                os.close(descriptor)
            self._file = (0, -1)

    def _regular(self, ino: int) -> UpperNode | None:
        """The node of a regular file in the upper; None if it is the image's, which says what it is."""
        node = self._nodes.get(ino)
        if node is not None and node.kind is not Kind.REGULAR:
            fail(errno.EISDIR if node.kind is Kind.DIRECTORY else errno.EINVAL, ino)
        return node

    def _open(self, ino: int, node: UpperNode) -> int:
        """The descriptor of a file in the upper, kept until the next is opened."""
        number, descriptor = self._file
        if number == ino:
            return descriptor
        # A container that runs may have put something else there, or a link on the way: a device does something when it
        # is opened, and is no device of the container's out here.
        found = os.open(self._upper / os.fsdecode(node.path), _LOOK_AT)
        try:
            status = os.fstat(found)
            if not stat.S_ISREG(status.st_mode) or (status.st_dev, status.st_ino) != node.identity:
                fail(errno.ESTALE, node.path)
            opened = os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(found)
        if descriptor >= 0:
            os.close(descriptor)
        self._file = (ino, opened)
        return opened


def _read_all(descriptor: int, offset: int, size: int) -> bytes:
    """Read as much as there is: one pread may stop early."""
    pieces: list[bytes] = []
    while size and (piece := os.pread(descriptor, size, offset)):
        pieces.append(piece)
        offset += len(piece)
        size -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
