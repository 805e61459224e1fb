"""A tree file of version 1 as it once was, read by docs/format/tree.md alone; and trees of real layers."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from blake3 import blake3

from pagepool.image import Kind, Node, Tree, TreeFile, TreeMerger, encode_tree, iter_members
from tests.image.harness import ingest
from tests.image.stacks import STACKS
from tests.image.test_treefile import assert_equal, runs_of

if TYPE_CHECKING:
    from collections.abc import Sequence

GOLDEN = Path(__file__).parent.parent / "golden"
_KINDS = ("directory", "regular", "symlink", "char", "block", "fifo")


def golden_tree() -> Tree:
    """One of each kind, a hard link, shared and different xattrs, objects of one and of many extents, odd times."""
    small, large = blake3(b"small").digest(), blake3(b"large").digest()
    capability = {b"security.capability": bytes(range(20)), b"user.note": b""}
    tool = Node(Kind.REGULAR, 0o4755, size=5, object=small, xattrs=capability, mtime_ns=1_700_000_000_123_456_789)
    children = {
        b"bin": Node(Kind.DIRECTORY, 0o1777, uid=1000, gid=4_294_967_294, children={b"tool": tool, b"again": tool}),
        b"big": Node(Kind.REGULAR, 0o600, size=10 * 131_072 + 7, object=large, xattrs=dict(capability), mtime_ns=-1),
        b"same": Node(Kind.REGULAR, 0o444, size=5, object=small),
        b"empty": Node(Kind.REGULAR, 0o644),
        b"link": Node(Kind.SYMLINK, 0o777, size=8, target=b"bin/tool"),
        b"null": Node(Kind.CHAR, 0o666, devmajor=1, devminor=3),
        b"loop\xff": Node(Kind.BLOCK, 0o660, devmajor=4095, devminor=1_048_575),
        b"pipe": Node(Kind.FIFO, 0, xattrs={b"user.other": b"\0\xff"}),
    }
    return Tree(Node(Kind.DIRECTORY, 0o755, children=children))


def read_by_the_page(raw: bytes) -> str:
    """What a tree file says, read with nothing of the reader: one line for each record."""
    magic, version = struct.unpack_from("<8sI", raw)
    assert (magic, version) == (b"PPTREE\r\n", 1)
    nodes, entries, objects, runs, extents = struct.unpack_from("<5I", raw, 12)
    xattrs, strings, total = struct.unpack_from("<3Q", raw, 32)
    starts = [56]
    for count, size in ((nodes, 52), (entries, 10), (objects, 48), (runs, 8), (extents, 32), (xattrs, 1), (strings, 1)):
        starts.append(starts[-1] + count * size)
    assert starts[-1] == len(raw)
    text = raw[starts[6] :]
    lines = [f"{total} bytes in objects"]
    for number in range(nodes):
        fields = struct.unpack_from("<BBHIIIqIIQIII", raw, starts[0] + number * 52)
        kind, zero, mode, links, uid, gid, seconds, ns, place, size, first, second, parent = fields
        assert zero == 0
        more = _read_xattrs(raw, starts[5] + place - 1) if place else ""
        if _KINDS[kind] == "symlink":
            more += f" -> {text[first : first + second]!r}"
        lines.append(
            f"node {number + 1} {_KINDS[kind]} {mode:04o} {links} {uid}:{gid} {seconds}.{ns:09d} {size} "
            f"{first} {second} in {parent}{more}"
        )
    for start in range(starts[1], starts[2], 10):
        offset, number, size = struct.unpack_from("<IIH", raw, start)
        lines.append(f"entry {text[offset : offset + size]!r} {number}")
    for start in range(starts[2], starts[3], 48):
        digest, size, first, count = struct.unpack_from("<32sQII", raw, start)
        lines.append(f"object {digest.hex()} {size} {first} {count}")
    lines += [f"run {struct.unpack_from('<II', raw, start)}" for start in range(starts[3], starts[4], 8)]
    lines += [f"extent {raw[start : start + 32].hex()}" for start in range(starts[4], starts[5], 32)]
    return "\n".join(lines) + "\n"


def _read_xattrs(raw: bytes, at: int) -> str:
    (count,) = struct.unpack_from("<I", raw, at)
    at += 4
    found = ""
    for _ in range(count):
        name, value = struct.unpack_from("<HI", raw, at)
        at += 6
        found += f" {raw[at : at + name]!r}={raw[at + name : at + name + value]!r}"
        at += name + value
    return found


def test_version_1_is_what_is_written() -> None:
    """The same tree becomes the same bytes for ever: digests of trees are kept by clients."""
    assert encode_tree(golden_tree(), runs_of) == (GOLDEN / "tree-v1.tree").read_bytes()


def test_version_1_is_read_by_its_page() -> None:
    """The page says all that is needed to read it."""
    raw = (GOLDEN / "tree-v1.tree").read_bytes()
    assert read_by_the_page(raw) == (GOLDEN / "tree-v1.txt").read_text()
    assert_equal(TreeFile(raw), golden_tree())


@pytest.mark.parametrize("layers", STACKS.values(), ids=STACKS.keys())
def test_stacks_of_layers(layers: Sequence[bytes]) -> None:
    """Whatever layers bring and merging makes of it comes back."""
    merger = TreeMerger()
    for tar in layers:
        merger.apply_layer(iter_members(ingest(tar).decoded))
    tree = merger.finish()
    assert_equal(TreeFile(encode_tree(tree, runs_of)), tree)


@pytest.mark.parametrize("name", sorted(path.stem for path in (GOLDEN / "tars").glob("[!s]*.tar")))
def test_layers_of_real_writers(name: str) -> None:
    """With sparse files, long names, extended attributes: every file with data has an object of its size."""
    merger = TreeMerger()
    sink = ingest((GOLDEN / "tars" / f"{name}.tar").read_bytes())
    merger.apply_layer(iter_members(sink.decoded))
    tree = merger.finish()
    found = TreeFile(encode_tree(tree, runs_of))
    assert_equal(found, tree)
    for index in range(found.object_count):
        info = found.object(index)
        assert info.size == len(sink.objects[info.digest])
