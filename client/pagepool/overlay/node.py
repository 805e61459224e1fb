"""An inode of an overlay, in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pagepool.image.member import NO_XATTRS, Kind
from pagepool.overlay.blockmap import BlockMap
from pagepool.vfs.interface import Attributes

if TYPE_CHECKING:
    from collections.abc import Mapping


class Node:
    """An inode that is new, or was changed.

    Attributes:
        based: whether the image has it; what is not said here is the image's.
        parent: of a directory, where it is.
        xattrs: never changed in place; None as long as they are the image's.
        entries: of a directory, see the module.
        blocks: of a regular file.
    """

    __slots__ = (
        *("ino", "kind", "mode", "uid", "gid", "size", "nlink", "atime_ns", "mtime_ns", "ctime_ns"),
        *("device", "target", "based", "parent", "xattrs", "entries", "blocks", "version"),
    )

    ino: int
    kind: Kind
    mode: int
    uid: int
    gid: int
    size: int
    nlink: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    device: tuple[int, int]
    target: bytes
    based: bool
    parent: int
    xattrs: Mapping[bytes, bytes] | None
    entries: dict[bytes, int]
    blocks: BlockMap

    def __init__(self, attributes: Attributes, *, based: bool, parent: int, target: bytes) -> None:
        self.ino, self.kind, self.mode, self.uid, self.gid, self.size, self.nlink = attributes[:7]
        self.atime_ns, self.mtime_ns, self.ctime_ns = attributes[7:10]
        self.device = attributes[10:12]
        self.target = target
        self.based = based
        self.parent = parent
        self.xattrs = None if based else NO_XATTRS
        self.version = 0
        if self.kind is Kind.DIRECTORY:
            self.entries = {}
        elif self.kind is Kind.REGULAR:
            self.blocks = BlockMap(self.size if based else 0)

    def attributes(self) -> Attributes:
        """What ``stat`` shows."""
        blocks = 0
        if self.kind is Kind.REGULAR:
            table = self.blocks
            blocks = (table.private + table.base_blocks - table.shadowed) * 8
        return Attributes(
            *(self.ino, self.kind, self.mode, self.uid, self.gid, self.size, self.nlink),
            *(self.atime_ns, self.mtime_ns, self.ctime_ns, *self.device, blocks),
        )
