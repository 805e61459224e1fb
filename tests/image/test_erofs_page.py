"""EROFS images read by docs/format/erofs.md alone, where no kernel has to: every tree comes back out of its image."""

from __future__ import annotations

import stat
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from pagepool.image import Kind, TreeFile, encode_tree
from tests.image.erofs import content_of, make_image
from tests.image.stacks import STACKS
from tests.image.test_erofs_kernel import corner_tree, random_tree, stacked
from tests.image.test_treefile import runs_of
from tests.image.test_treefile_golden import golden_tree

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pagepool.image import Tree

_PREFIXES = {
    1: b"user.",
    2: b"system.posix_acl_access",
    3: b"system.posix_acl_default",
    4: b"trusted.",
    6: b"security.",
}
_TYPES = {
    1: stat.S_IFREG,
    2: stat.S_IFDIR,
    3: stat.S_IFCHR,
    4: stat.S_IFBLK,
    5: stat.S_IFIFO,
    7: stat.S_IFLNK,
}


@dataclass
class Inode:
    """What an image says of one."""

    number: int
    mode: int
    uid: int
    gid: int
    links: int
    mtime_ns: int
    size: int
    device: int
    xattrs: dict[bytes, bytes]
    data: bytes | None  # None: holes


class Page:
    """An image, read as the page says."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        fields = struct.unpack_from("<IIIBBHQqIIII16s16sI", raw, 1024)
        magic, crc, compatible, bits, zero, self.root, self.inodes = fields[:7]
        self.built = fields[7] * 10**9 + fields[8]
        blocks, first, self.shared_at, self.uuid, name, incompatible = fields[9:]
        assert (magic, compatible, bits, zero, first, incompatible) == (0xE0F5E1E2, 7, 12, 0, 0, 4)
        assert (name, blocks * 4096) == (b"pagepool".ljust(16, b"\0"), len(raw))
        assert crc == _crc32c(raw[1024:1028] + bytes(4) + raw[1032:4096])
        assert not any(raw[:1024] + raw[1024 + 84 : 1152])

    def inode(self, nid: int) -> Inode:
        """Read one."""
        at = nid * 32
        layout, count, mode = struct.unpack_from("<HHH", self.raw, at)
        detail, number = struct.unpack_from("<II", self.raw, at + 16)
        if layout & 1:
            size, uid, gid = (
                *struct.unpack_from("<Q", self.raw, at + 8),
                *struct.unpack_from("<II", self.raw, at + 24),
            )
            seconds, ns, links = struct.unpack_from("<qII", self.raw, at + 32)
            mtime_ns, core = seconds * 10**9 + ns, 64
        else:
            links, size = struct.unpack_from("<HI", self.raw, at + 6)
            uid, gid = struct.unpack_from("<HH", self.raw, at + 24)
            mtime_ns, core = self.built, 32
        assert at % 4096 + core <= 4096
        end = at + core + (12 + (count - 1) * 4 if count else 0)
        xattrs = self._xattrs(at + core, end) if count else {}
        device = detail if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) else 0
        data = b"" if device else self._data(layout >> 1, detail, size, end)
        return Inode(number, mode, uid, gid, links, mtime_ns, size, device, xattrs, data)

    def _data(self, layout: int, detail: int, size: int, end: int) -> bytes | None:
        if layout == 4:
            assert size <= 4096 << detail
            assert detail == 0 or size > 4096 << (detail - 1)
            assert self.raw[end : end + 4] == b"\xff" * 4
            return None
        full = size - size % 4096 if layout == 2 else size
        found = self.raw[detail * 4096 : detail * 4096 + full] if full else b""
        if layout == 2:
            assert 0 < size - full <= 2048
            assert end // 4096 == (end + size - full - 1) // 4096
            found += self.raw[end : end + size - full]
        return found

    def _xattrs(self, at: int, end: int) -> dict[bytes, bytes]:
        absent, shared = struct.unpack_from("<IB7x", self.raw, at)
        at += 12
        places = [self.shared_at * 4096 + 4 * place for place in struct.unpack_from(f"<{shared}I", self.raw, at)]
        found = dict(self._xattr(place)[0] for place in places)
        at += 4 * shared
        while at < end:
            (name, value), at = self._xattr(at)
            assert name not in found
            found[name] = value
        assert at == end
        assert absent.bit_count() >= 32 - len(found)
        return found

    def _xattr(self, at: int) -> tuple[tuple[bytes, bytes], int]:
        length, index, size = struct.unpack_from("<BBH", self.raw, at)
        name = _PREFIXES[index] + self.raw[at + 4 : at + 4 + length]
        value = self.raw[at + 4 + length : at + 4 + length + size]
        return (name, value), at + (4 + length + size + 3) // 4 * 4

    def entries(self, directory: Inode) -> list[tuple[bytes, int, int]]:
        """(name, number of the inode, type) in a directory, in order."""
        assert directory.data is not None
        found = []
        for start in range(0, len(directory.data), 4096):
            block = directory.data[start : start + 4096]
            count = struct.unpack_from("<QH", block)[1] // 12
            heads = [struct.unpack_from("<QHB", block, 12 * place) for place in range(count)]
            ends = [head[1] for head in heads[1:]] + [len(block)]
            found += [
                (block[at:end].rstrip(b"\0"), nid, kind) for (nid, at, kind), end in zip(heads, ends, strict=True)
            ]
        assert found == sorted(found, key=lambda entry: entry[0])
        return found


def _crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc


def check(tree: TreeFile, raw: bytes, inline_max: int) -> None:
    """Everything the image says is what the tree says; nothing is left out but what the page says."""
    page = Page(raw)
    assert page.uuid == tree.digest[:16]
    seen: dict[int, int] = {}
    waiting = [(page.root, 1, 1)]
    while waiting:
        nid, number, parent = waiting.pop()
        if seen.setdefault(number, nid) != nid:
            pytest.fail(f"node {number} is two inodes")
        inode = page.inode(nid)
        _compare(tree, number, inode, inline_max)
        if not stat.S_ISDIR(inode.mode):
            continue
        found = {name: (child, kind) for name, child, kind in page.entries(inode)}
        assert found.pop(b".") == (nid, 2)
        assert found.pop(b"..") == (seen[parent], 2)
        expected = {name: child for name, child in tree.entries(number) if not _is_whiteout(tree, child)}
        assert found.keys() == expected.keys()
        for name, (child, kind) in found.items():
            assert _TYPES[kind] == stat.S_IFMT(page.inode(child).mode)
            waiting.append((child, expected[name], number))
    assert len(seen) == page.inodes


def _is_whiteout(tree: TreeFile, number: int) -> bool:
    node = tree.node(number)
    return node.kind is Kind.CHAR and not node.devmajor and not node.devminor


def _compare(tree: TreeFile, number: int, inode: Inode, inline_max: int) -> None:
    node = tree.node(number)
    assert (inode.number, stat.S_IMODE(inode.mode), inode.uid, inode.gid) == (number, node.mode, node.uid, node.gid)
    assert (inode.links, inode.mtime_ns) == (node.nlink, node.mtime_ns)
    own = {name for name in inode.xattrs if not name.startswith(b"trusted.overlay.")}
    assert own <= tree.xattrs(number).keys()
    assert all(inode.xattrs[name] == tree.xattrs(number)[name] for name in own)
    for name, value in tree.xattrs(number).items():
        if name.startswith(b"trusted.overlay."):
            assert inode.xattrs[b"trusted.overlay." + name.removeprefix(b"trusted.")] == value
    redirect = inode.xattrs.get(b"trusted.overlay.redirect")
    if node.kind is Kind.SYMLINK:
        assert inode.data == node.target
    if node.kind is not Kind.REGULAR or node.size <= inline_max:
        assert redirect is None
    if node.kind is Kind.REGULAR:
        assert inode.size == node.size
        digest = tree.object(node.object).digest if node.size else b""
        if node.size <= inline_max:
            assert inode.data == content_of(digest, node.size) if node.size else inode.data == b""
        else:
            assert inode.data is None
            assert inode.xattrs[b"trusted.overlay.metacopy"] == b""
            assert redirect == f"/{digest.hex()[:2]}/{digest.hex()[2:]}".encode()
    elif node.kind in (Kind.CHAR, Kind.BLOCK):
        major, minor = inode.device >> 8 & 0xFFF, inode.device & 0xFF | inode.device >> 12 & 0xFFF00
        assert (major, minor) == (node.devmajor, node.devminor)


@pytest.mark.parametrize("inline_max", [0, 512, 5000, 20_000])
@pytest.mark.parametrize("seed", range(3))
def test_random_trees(seed: int, inline_max: int) -> None:
    _check(random_tree(seed), inline_max)


@pytest.mark.parametrize("inline_max", [0, 512, 5000, 20_000])
@pytest.mark.parametrize("tree", [golden_tree, corner_tree], ids=["golden", "corners"])
def test_chosen_trees(tree: object, inline_max: int) -> None:
    assert callable(tree)
    _check(tree(), inline_max)


@pytest.mark.parametrize("layers", STACKS.values(), ids=STACKS.keys())
def test_stacks_of_layers(layers: Sequence[bytes]) -> None:
    _check(stacked(layers), 512)


def _check(tree: Tree, inline_max: int) -> None:
    file = TreeFile(encode_tree(tree, runs_of))
    raw, _ = make_image(file, inline_max)
    check(file, raw, inline_max)
