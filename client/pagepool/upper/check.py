"""Whether an upper that was written before may be mounted over its image again.

The kernel believes what an upper says. Whoever could write to one outside of a mount could have it say that a file's
content is that of any object in the pool, so that a container reads images that its owner may not; that a file is the
same as one outside of the upper; or what no version of the kernel writes, and a later one may understand.

What the kernel itself writes into an upper of ours is allowed, and nothing else:

- A redirect leads to something of this image, of the same kind: a path in the image, or a name beside it. Names of
  objects are for the metadata layer alone: in an upper the kernel neither writes nor follows them.
- A file with nothing but metadata has a file of the image below it, of the same size.
- A directory that was moved away is not seen at its old place any more.
- ``origin`` names an inode of the metadata layer, which gives its number and nothing else (data layers are not asked);
  ``impure``, ``nlink``, ``protattr`` and ``uuid`` are about the upper alone.
- A file's names are all in the upper. Whiteouts share an inode with each other, and with the work directory.
- Devices would be those of the host: only whiteouts, unless the caller mounts without devices.

Nobody but root may be able to exchange the upper, or a directory above it, after the check.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from pagepool.errors import DeniedError
from pagepool.image.member import Kind, show_name
from pagepool.linux import why_no_trusted_attributes
from pagepool.upper.lower import follow, resolve_lower
from pagepool.upper.scan import METACOPY, OPAQUE, PREFIX, REDIRECT, WHITEOUT, scan_upper, show

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pagepool.image.treefile import TreeFile
    from pagepool.upper.lower import Place
    from pagepool.upper.scan import UpperNode

_ANYWHERE: Final = frozenset((b"origin", b"nlink", b"protattr"))
_ALLOWED: Final[Mapping[Kind, frozenset[bytes]]] = {
    Kind.DIRECTORY: frozenset((OPAQUE, REDIRECT, b"impure")),
    Kind.REGULAR: frozenset((METACOPY, REDIRECT, WHITEOUT)),
}
_OF_ROOT: Final = frozenset((b"origin", b"impure", b"uuid"))
_METACOPY_HEADER: Final = 4


def check_upper(upper: Path, tree: TreeFile, *, devices: bool = False) -> UpperNode:
    """Raise unless an upper holds only what the kernel has written over this image. Reads all of its metadata.

    Args:
        upper: a directory that nobody changes: not mounted, and below directories that only root can write to. After
            a crash a file in it may have a further name in the work directory: make that anew before (`make_work`).
        tree: of the image.
        devices: allow device nodes; for mounts where they are no devices (`nodev`).

    Returns:
        what is in it, with `lower` and `counterpart` set.

    Raises:
        DeniedError: it holds something else; names the path, and the value.
        OSError: it is no directory, or cannot be read.
    """
    _check_place(upper)
    return read_upper(upper, tree, devices=devices)


def read_upper(upper: Path, tree: TreeFile, *, devices: bool = False) -> UpperNode:
    """Do as `check_upper`, wherever the upper is: for those who read what is in it, and do not mount it.

    Raises:
        DeniedError: as `check_upper`; or this is not root, who alone sees the kernel's marks.
        OSError: as `check_upper`.
    """
    if reason := why_no_trusted_attributes():
        raise DeniedError(f"{upper} cannot be read: {reason}")
    root = scan_upper(upper)
    resolve_lower(root, tree)
    _Check(upper, root, tree, devices).run()
    return root


def _check_place(upper: Path) -> None:
    """Raise if others than root could exchange a directory on the way."""
    if upper.is_symlink():
        raise DeniedError(f"{upper} is a symbolic link")
    above = {*upper.absolute().parents, *upper.resolve().parents}
    for directory in sorted(above):
        found = directory.stat()
        if found.st_uid not in (0, os.geteuid()):
            raise DeniedError(f"{upper} cannot be trusted: user {found.st_uid} owns {directory}")
        if found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX:
            raise DeniedError(f"{upper} cannot be trusted: others may write to {directory}")


class _Check:
    """The check of one upper."""

    def __init__(self, upper: Path, root: UpperNode, tree: TreeFile, devices: bool) -> None:
        self._upper = upper
        self._root = root
        self._tree = tree
        self._devices = devices
        nodes = list(root.walk())
        self._names = Counter(node.identity for node in nodes)
        self._merged = {node.lower: node for node in nodes if node.kind is Kind.DIRECTORY and node.lower}

    def run(self) -> None:
        """Raise at the first name that may not be there."""
        stack = [self._root]
        self._check_inode(self._root)
        self._check_marks(self._root, _OF_ROOT)
        while stack:
            parent = stack.pop()
            for _, node in sorted(parent.children.items()):
                self._check_inode(node)
                if node.kind is not Kind.CHAR or not node.is_whiteout:
                    self._check_marks(node, _ANYWHERE | _ALLOWED.get(node.kind, frozenset()))
                    self._check_redirect(node, parent)
                    self._check_metacopy(node)
                if node.kind is Kind.DIRECTORY:
                    stack.append(node)

    def _check_inode(self, node: UpperNode) -> None:
        status = node.status
        if status.st_dev != self._root.status.st_dev:
            self._refuse(node, "is on another file system")
        if node.kind in (Kind.CHAR, Kind.BLOCK) and not node.is_whiteout and not self._devices:
            device = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
            self._refuse(node, f"is a {node.kind.value} device {device}")
        names = self._names[node.identity]
        if node.kind is not Kind.DIRECTORY and status.st_nlink != names and not node.is_whiteout:
            self._refuse(node, f"has {status.st_nlink} names, of which {names} are in the upper")

    def _check_marks(self, node: UpperNode, allowed: frozenset[bytes]) -> None:
        for name, value in node.marks.items():
            if name not in allowed:
                self._refuse_mark(node, name, "the kernel writes no such mark there")
            if name == OPAQUE and value not in (b"y", b"x"):
                self._refuse_mark(node, name, "it is y or x")
            if name == WHITEOUT and node.status.st_size:
                self._refuse_mark(node, name, "a whiteout has no content")

    def _check_redirect(self, node: UpperNode, parent: UpperNode) -> None:
        redirect = node.marks.get(REDIRECT)
        # The kernel leaves it on a file that has got its content, and never looks at it again; nor if it is opaque.
        if redirect is None or node.is_opaque or (node.kind is Kind.REGULAR and not node.is_metacopy):
            return
        if not _is_path(redirect):
            self._refuse_mark(node, REDIRECT, "it is a path from the root, or a name")
        found = follow(node, parent.lower, self._tree)
        if not found.number:
            self._refuse_mark(node, REDIRECT, "it names nothing of the image")
        if self._tree.kind(found.number) is not node.kind:
            self._refuse_mark(node, REDIRECT, f"what it names in the image is no {node.kind.value}")
        if node.kind is Kind.DIRECTORY and found.number != node.counterpart:
            self._check_moved(node, found)

    def _check_moved(self, node: UpperNode, place: Place) -> None:
        """Raise if a directory of the image that was moved is seen at another place, too."""
        if (other := self._merged[node.lower]) is not node:
            self._refuse_mark(node, REDIRECT, f"{show(self._upper, other)} is the same directory")
        directory, name = place.directory, place.name
        # Up to a directory that is in the upper: what is not hidden there is seen.
        while (holder := self._merged.get(directory)) is None:
            number, directory = directory, self._tree.parent(directory)
            name = next(name for name, found in self._tree.entries(directory) if found == number)
        if name not in holder.children:
            self._refuse_mark(node, REDIRECT, "the directory is still at its old place, too")

    def _check_metacopy(self, node: UpperNode) -> None:
        value = node.marks.get(METACOPY)
        if value is None:
            return
        if value and (len(value) < _METACOPY_HEADER or value[0] or value[1] != len(value)):
            self._refuse_mark(node, METACOPY, "it is of no version that is known")
        if not node.lower:
            self._refuse_mark(node, METACOPY, "the image has no file there, whose content this could have")
        here, there = node.status.st_size, self._tree.node(node.lower).size
        if here != there:
            self._refuse_mark(node, METACOPY, f"it has {here} bytes, and its content in the image {there}")

    def _refuse_mark(self, node: UpperNode, name: bytes, reason: str) -> NoReturn:
        shown = show_name(PREFIX + name), show_name(node.marks[name])
        self._refuse(node, f"has {shown[0]}={shown[1]!r}: {reason}")

    def _refuse(self, node: UpperNode, reason: str) -> NoReturn:
        raise DeniedError(f"{show(self._upper, node)} {reason}")


def _is_path(redirect: bytes) -> bool:
    parts = redirect[1:].split(b"/") if redirect.startswith(b"/") else [redirect]
    return not any(part in (b"", b".", b"..") or b"/" in part or b"\0" in part for part in parts)
