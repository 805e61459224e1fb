"""The upper directory of an overlay of the kernel, as it lies on the disk: everything but contents, read once.

Follows Documentation/filesystems/overlayfs.rst of Linux 6.18: whiteouts are character devices 0/0, or empty files with
the mark `whiteout`; the kernel's marks are attributes ``trusted.overlay.NAME``; an attribute of a program's own that
begins so has ``trusted.overlay.overlay.`` there instead.

No symlink is followed, and nothing is opened but directories. Needs root, which alone sees ``trusted.`` attributes.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import closing
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import TYPE_CHECKING, Final

from pagepool.image.member import Kind, show_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

PREFIX: Final = b"trusted.overlay."
ESCAPED: Final = b"trusted.overlay.overlay."
OPAQUE, REDIRECT, METACOPY, WHITEOUT = b"opaque", b"redirect", b"metacopy", b"whiteout"

KINDS: Final = {
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFREG: Kind.REGULAR,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFCHR: Kind.CHAR,
    stat.S_IFBLK: Kind.BLOCK,
    stat.S_IFIFO: Kind.FIFO,
    stat.S_IFSOCK: Kind.SOCKET,
}
_OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_ATTRIBUTES: Final = (errno.EOPNOTSUPP, errno.EPERM)
_KEPT_OPEN: Final = 32
"""Directories above the one that is being read: a program can make more of them than a node may have files open."""


@dataclass(slots=True, eq=False)
class UpperNode:
    """One name in an upper.

    Args:
        path: below the upper, ``b""`` for itself.
        kind: what it is there; a whiteout is a `Kind.CHAR` or `Kind.REGULAR`.
        status: as lstat(2) has it.
        marks: the kernel's attributes, without their prefix.
        xattrs: all others, as programs in the overlay see them.
        target: of a symlink.
        children: of a directory.
        lower: the number of the image's node that the kernel merges it with (a directory), or takes the content from
            (a file of which only the metadata was copied); 0: none. Set by `resolve_lower`.
        counterpart: the number of the image's node that would be seen here if it were not; 0: none. Set with it.
    """

    path: bytes
    kind: Kind
    status: os.stat_result
    marks: Mapping[bytes, bytes]
    xattrs: Mapping[bytes, bytes]
    target: bytes = b""
    children: dict[bytes, UpperNode] = field(default_factory=dict)
    lower: int = 0
    counterpart: int = 0

    @property
    def identity(self) -> tuple[int, int]:
        """What names of one file have in common."""
        return self.status.st_dev, self.status.st_ino

    @property
    def is_whiteout(self) -> bool:
        """Whether it removes what the image has of this name."""
        if self.kind is Kind.CHAR:
            return self.status.st_rdev == 0
        return self.kind is Kind.REGULAR and WHITEOUT in self.marks and not self.status.st_size

    @property
    def is_metacopy(self) -> bool:
        """Whether its content is the image's."""
        return self.kind is Kind.REGULAR and METACOPY in self.marks

    @property
    def is_opaque(self) -> bool:
        """Whether a directory hides what the image has of this name."""
        return self.marks.get(OPAQUE) == b"y"

    def walk(self) -> Iterator[UpperNode]:
        """Itself and all below, a directory before what is in it, by name."""
        stack = [self]
        while stack:
            node = stack.pop()
            yield node
            stack += [child for _, child in sorted(node.children.items(), reverse=True)]


def is_same(one: UpperNode, other: UpperNode) -> bool:
    """Whether two scans of an upper show the same, as far as the times of its files tell: those of what is written
    through a mapping of a file may come later."""
    for here, there in zip_longest(one.walk(), other.walk()):
        if here is None or there is None or _state(here) != _state(there):
            return False
    return True


def _state(node: UpperNode) -> tuple[object, ...]:
    status = node.status
    changed = (status.st_mode, status.st_ino, status.st_nlink, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return (node.path, *changed, node.marks, node.xattrs, node.target)


@dataclass(slots=True)
class _Open:
    """A directory that is being read; its descriptor is -1 while what is far below it is read."""

    descriptor: int
    node: UpperNode
    left: list[bytes]

    def close(self) -> None:
        """Close it, if it is open."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor = -1


def scan_upper(upper: Path) -> UpperNode:
    """Read all of an upper. Nobody may change it meanwhile.

    Returns:
        its root.

    Raises:
        NotADirectoryError: it is none, or a symlink.
        OSError: it cannot be read; or it changed.
    """
    descriptor = os.open(upper, _OPEN_DIRECTORY)
    stack = [_enter(descriptor, b"", os.fsencode(f"/proc/self/fd/{descriptor}"))]
    root = stack[0].node
    try:
        while stack:
            here = stack[-1]
            if not here.left:
                _leave(stack)
                continue
            name = here.left.pop()
            path = here.node.path + b"/" + name if here.node.path else name
            at = b"/proc/self/fd/%d/%s" % (here.descriptor, name)
            status = os.stat(name, dir_fd=here.descriptor, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                stack.append(_enter(os.open(name, _OPEN_DIRECTORY, dir_fd=here.descriptor), path, at))
                here.node.children[name] = stack[-1].node
                if len(stack) > _KEPT_OPEN:
                    stack[-1 - _KEPT_OPEN].close()
            else:
                here.node.children[name] = _read_node(path, status, at)
    finally:
        for one in stack:
            one.close()
    return root


def _leave(stack: list[_Open]) -> None:
    """Go back to the directory that the innermost is in, opened again if need be.

    Raises:
        OSError: it is in another one by now.
    """
    with closing(stack.pop()) as here:
        if stack and stack[-1].descriptor < 0:
            above = stack[-1]
            above.descriptor = os.open("..", _OPEN_DIRECTORY, dir_fd=here.descriptor)
            found = os.fstat(above.descriptor)
            if (found.st_dev, found.st_ino) != above.node.identity:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), here.node.path)


def _enter(descriptor: int, path: bytes, at: bytes) -> _Open:
    try:
        marks, xattrs = split_attributes(_attributes(at, follow=not path))
        node = UpperNode(path, Kind.DIRECTORY, os.fstat(descriptor), marks, xattrs)
        return _Open(descriptor, node, [os.fsencode(name) for name in os.listdir(descriptor)])
    except BaseException:
        os.close(descriptor)
        raise


def _read_node(path: bytes, status: os.stat_result, at: bytes) -> UpperNode:
    kind = KINDS[stat.S_IFMT(status.st_mode)]
    marks, xattrs = split_attributes(_attributes(at))
    target = os.readlink(at) if kind is Kind.SYMLINK else b""  # noqa: PTH115 (bytes)
    return UpperNode(path, kind, status, marks, xattrs, target)


def _attributes(at: bytes, *, follow: bool = False) -> dict[bytes, bytes]:
    try:
        names = os.listxattr(at, follow_symlinks=follow)
        return {os.fsencode(name): os.getxattr(at, name, follow_symlinks=follow) for name in names}
    except OSError as error:
        if error.errno in _NO_ATTRIBUTES:
            return {}
        raise


def split_attributes(xattrs: Mapping[bytes, bytes]) -> tuple[dict[bytes, bytes], dict[bytes, bytes]]:
    """The kernel's marks, and what programs see."""
    marks: dict[bytes, bytes] = {}
    seen: dict[bytes, bytes] = {}
    for name, value in xattrs.items():
        if name.startswith(ESCAPED):
            seen[PREFIX + name.removeprefix(ESCAPED)] = value
        elif name.startswith(PREFIX):
            marks[name.removeprefix(PREFIX)] = value
        else:
            seen[name] = value
    return marks, seen


def show(upper: Path, node: UpperNode) -> str:
    """A path in an upper, for people."""
    return f"{upper}/{show_name(node.path)}" if node.path else str(upper)
