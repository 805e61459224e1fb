"""A file system in memory, as simple as can be: what an overlay is compared with. It shares no code with it.

Files are `bytes`, directories dicts, and every rule is written down once more, from the manual pages.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pagepool.image import Node as TreeNode
    from tests.support.trees import TreeBuilder


@dataclass(eq=False)
class File:
    """An inode. `holders` counts what keeps it without a name."""

    kind: str
    mode: int
    uid: int
    gid: int
    times: list[int]
    device: tuple[int, int] = (0, 0)
    target: bytes = b""
    data: bytes = b""
    children: dict[bytes, File] = field(default_factory=dict)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    names: int = 0
    up: File | None = None
    ino: int = 0
    holders: int = 0
    linkable: bool = False

    @property
    def nlink(self) -> int:
        """What stat shows."""
        if self.kind != "directory":
            return self.names
        alive = self.up is self or self.names
        return 2 + sum(child.kind == "directory" for child in self.children.values()) if alive else 0

    @property
    def size(self) -> int:
        """What stat shows."""
        return len(self.data) if self.kind == "regular" else len(self.target)


def refuse(number: int) -> None:
    """Fail as an overlay does."""
    raise OSError(number, "")


class Oracle:
    """The file system.

    Args:
        builder: an image, as its nodes.
    """

    def __init__(self, builder: TreeBuilder) -> None:
        self.objects = builder.objects
        self.known: dict[int, File] = {}
        self.root = self._adopt(builder.root, {})
        self.root.up = self.root
        self.last = max(self.known)

    def _adopt(self, node: TreeNode, seen: dict[int, File]) -> File:
        if id(node) in seen:
            return seen[id(node)]
        found = File(node.kind.value, node.mode, node.uid, node.gid, [node.mtime_ns] * 3)
        seen[id(node)] = found
        found.device = node.devmajor, node.devminor
        found.target, found.xattrs, found.ino = node.target, dict(node.xattrs), node.number
        found.data = self.objects[node.object] if node.object else b""
        self.known[found.ino] = found
        for name, child in (node.children or {}).items():
            adopted = self._adopt(child, seen)
            adopted.names += 1
            adopted.up = found
            found.children[name] = adopted
        return found

    def get(self, ino: int) -> File:
        """An inode that exists."""
        found = self.known.get(ino)
        if found is None or not (found.names or found.holders or found is self.root):
            refuse(errno.ESTALE)
        assert found is not None
        return found

    def directory(self, ino: int) -> File:
        """A directory that exists."""
        found = self.get(ino)
        if found.kind != "directory":
            refuse(errno.ENOTDIR)
        return found

    def regular(self, ino: int) -> File:
        """A regular file that exists."""
        found = self.get(ino)
        if found.kind != "regular":
            refuse(errno.EISDIR if found.kind == "directory" else errno.EINVAL)
        return found

    def child(self, parent: int, name: bytes) -> File:
        """An entry that exists."""
        directory = self.directory(parent)
        if len(name) > 255:
            refuse(errno.ENAMETOOLONG)
        if name not in directory.children:
            refuse(errno.ENOENT)
        return directory.children[name]

    def _place(self, parent: int, name: bytes) -> File:
        directory = self.directory(parent)
        if len(name) > 255:
            refuse(errno.ENAMETOOLONG)
        if not directory.nlink:
            refuse(errno.ENOENT)
        return directory

    def create(
        self,
        now: int,
        parent: int,
        name: bytes,
        kind: str,
        mode: int,
        uid: int,
        gid: int,
        target: bytes,
        device: tuple[int, int],
    ) -> int:
        directory = self._place(parent, name)
        if name in directory.children:
            refuse(errno.EEXIST)
        if directory.mode & 0o2000:
            gid = directory.gid
            mode = mode | 0o2000 if kind == "directory" else mode
        self.last += 1
        made = File(kind, mode, uid, gid, [now] * 3, ino=self.last, names=1, up=directory)
        made.target = target if kind == "symlink" else b""
        made.device = device if kind in ("char", "block") else (0, 0)
        self.known[made.ino] = directory.children[name] = made
        directory.times[1:] = [now, now]
        return made.ino

    def create_unnamed(self, now: int, parent: int, mode: int, uid: int, gid: int, linkable: bool) -> int:
        directory = self.directory(parent)
        if not directory.nlink:
            refuse(errno.ENOENT)
        gid = directory.gid if directory.mode & 0o2000 else gid
        self.last += 1
        made = File("regular", mode, uid, gid, [now] * 3, ino=self.last, holders=1, linkable=linkable)
        self.known[made.ino] = made
        return made.ino

    def link(self, now: int, ino: int, parent: int, name: bytes) -> None:
        directory = self._place(parent, name)
        if name in directory.children:
            refuse(errno.EEXIST)
        found = self.get(ino)
        if found.kind == "directory":
            refuse(errno.EPERM)
        if not found.names and not found.linkable:
            refuse(errno.ENOENT)
        found.linkable = False
        found.names += 1
        found.times[2] = now
        directory.children[name] = found
        directory.times[1:] = [now, now]

    def unlink(self, now: int, parent: int, name: bytes) -> None:
        found = self.child(parent, name)
        if found.kind == "directory":
            refuse(errno.EISDIR)
        self._remove(now, parent, name)

    def rmdir(self, now: int, parent: int, name: bytes) -> None:
        found = self.child(parent, name)
        if found.kind != "directory":
            refuse(errno.ENOTDIR)
        if found.children:
            refuse(errno.ENOTEMPTY)
        self._remove(now, parent, name)

    def _remove(self, now: int, parent: int, name: bytes) -> None:
        directory = self.known[parent]
        found = directory.children.pop(name)
        found.names -= 1
        found.times[2] = now
        directory.times[1:] = [now, now]

    def _above(self, directory: File, candidate: File) -> bool:
        while directory is not candidate:
            if directory is self.root:
                return False
            assert directory.up is not None
            directory = directory.up
        return True

    def rename(
        self, now: int, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int, owner: tuple[int, int]
    ) -> None:
        if flags > 5:
            refuse(errno.EINVAL)
        if flags < 4:
            self._rename(now, parent, name, new_parent, new_name, flags)
        elif self._rename(now, parent, name, new_parent, new_name, flags - 4):
            self.create(now, parent, name, "char", 0, *owner, b"", (0, 0))

    def _rename(self, now: int, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> bool:
        """Whether anything was moved."""
        old, new = self.directory(parent), self.directory(new_parent)
        moved = self.child(parent, name)
        self._place(new_parent, new_name)
        there = new.children.get(new_name)
        if flags == 1 and there is not None:
            refuse(errno.EEXIST)
        if flags == 2 and there is None:
            refuse(errno.ENOENT)
        if moved.kind == "directory" and self._above(new, moved):
            refuse(errno.EINVAL)
        if there is not None and there.kind == "directory" and self._above(old, there):
            refuse(errno.EINVAL if flags == 2 else errno.ENOTEMPTY)
        if moved is there:
            return False
        if there is not None and flags != 2:
            self._replace(moved, there)
        del old.children[name]
        new.children[new_name] = moved
        moved.up = new
        if there is not None:
            there.times[2] = now
            if flags == 2:
                old.children[name] = there
                there.up = old
        moved.times[2] = now
        for directory in (old, new):
            directory.times[1:] = [now, now]
        return True

    def _replace(self, moved: File, there: File) -> None:
        if moved.kind == "directory" and there.kind != "directory":
            refuse(errno.ENOTDIR)
        if moved.kind != "directory" and there.kind == "directory":
            refuse(errno.EISDIR)
        if there.children:
            refuse(errno.ENOTEMPTY)
        there.names -= 1

    def _kill(self, found: File) -> None:
        if found.kind != "directory":
            found.mode &= ~0o4000
            if found.mode & 0o010:
                found.mode &= ~0o2000
            found.xattrs.pop(b"security.capability", None)

    def set_attributes(self, now: int, ino: int, given: dict[str, Any]) -> None:
        found = self.get(ino)
        if given.get("size") is not None:
            self.regular(ino)
            if given["size"] < 0:
                refuse(errno.EINVAL)
        before = (found.mode, dict(found.xattrs))
        for name in ("mode", "uid", "gid"):
            if given.get(name) is not None:
                setattr(found, name, given[name])
        size = given.get("size")
        if size is not None:
            found.data = found.data[:size] + bytes(max(0, size - len(found.data)))
            found.times[1] = now
        for place, name in enumerate(("atime_ns", "mtime_ns")):
            if given.get(name) is not None:
                found.times[place] = given[name]
        if given.get("kill_privileges"):
            self._kill(found)
        asked = any(given.get(name) is not None for name in ("mode", "uid", "gid", "size", "atime_ns", "mtime_ns"))
        if asked or (found.mode, found.xattrs) != before:
            found.times[2] = now

    def write(self, now: int, ino: int, offset: int, data: bytes, kill: bool) -> int:
        found = self.regular(ino)
        if data:
            padded = found.data + bytes(max(0, offset - len(found.data)))
            found.data = padded[:offset] + data + padded[offset + len(data) :]
            found.times[1:] = [now, now]
            if kill:
                self._kill(found)
        return len(data)

    def allocate(self, now: int, ino: int, offset: int, size: int, mode: int) -> None:
        found = self.regular(ino)
        end = offset + size
        data = found.data
        if mode in (0, 16) and end > len(data):
            data += bytes(end - len(data))
        if mode in (3, 16, 17) and offset < len(data):
            stop = min(end, len(data))
            data = data[:offset] + bytes(stop - offset) + data[stop:]
        if mode in (3, 16, 17) or len(data) != len(found.data):
            found.times[1:] = [now, now]
        found.data = data

    def _may_have(self, found: File, name: bytes) -> None:
        if name[:5] == b"user." and found.kind not in ("regular", "directory"):
            refuse(errno.EPERM)

    def set_xattr(self, now: int, ino: int, name: bytes, value: bytes, flags: int) -> None:
        found = self.get(ino)
        self._may_have(found, name)
        if flags == 1 and name in found.xattrs:
            refuse(errno.EEXIST)
        if flags == 2 and name not in found.xattrs:
            refuse(errno.ENODATA)
        found.xattrs[name] = value
        found.times[2] = now

    def remove_xattr(self, now: int, ino: int, name: bytes) -> None:
        found = self.get(ino)
        self._may_have(found, name)
        if name not in found.xattrs:
            refuse(errno.ENODATA)
        del found.xattrs[name]
        found.times[2] = now

    def hold(self, ino: int) -> None:
        self.get(ino).holders += 1

    def release(self, ino: int, count: int) -> None:
        self.known[ino].holders -= count

    def crash(self) -> None:
        """Whatever held anything is gone."""
        for found in self.known.values():
            found.holders = 0
