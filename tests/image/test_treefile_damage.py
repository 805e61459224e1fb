"""Tree files with wrong bytes: whatever is asked of one, the answer comes, or CorruptError; never anything else."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from pagepool.digest import blake3_raw
from pagepool.errors import CorruptError, DigestMismatchError, LimitError
from pagepool.extents import EXTENT_SIZE
from pagepool.image import Kind, Node, Tree, TreeFile, encode_tree
from pagepool.image.treefile import ENTRY, HEADER, NODE, OBJECT, ROOT, TreeNode
from tests.image.test_treefile import ask_once, read_everything, runs_of

GOLDEN = Path(__file__).parent.parent / "golden"
RAW = (GOLDEN / "tree-v1.tree").read_bytes()


def go_down(found: TreeFile) -> None:
    """Everything below the root, as a program that copies a tree would go. Ends if no directory leads back."""
    stack = [ROOT]
    steps = 0
    while stack:
        number = stack.pop()
        for _, child in found.entries(number):
            steps += 1
            assert steps < 10_000
            if found.node(child).kind is Kind.DIRECTORY:
                stack.append(child)


def try_all(raw: bytes) -> None:
    """Open it, ask for all there is, and go down."""
    try:
        found = TreeFile(raw)
    except CorruptError:
        return
    read_everything(found)
    ask_once(lambda _: go_down(found), 0)


@pytest.mark.parametrize("value", [0x00, 0x01, 0x7F, 0x80, 0xFF])
def test_every_byte(value: int) -> None:
    """Each byte replaced; and with a digest given, each replacement that changes something is told."""
    digest = blake3_raw(RAW)
    for place in range(len(RAW)):
        damaged = bytearray(RAW)
        damaged[place] = value
        try_all(bytes(damaged))
        if damaged != RAW:
            with pytest.raises((DigestMismatchError, CorruptError)):
                TreeFile(bytes(damaged), digest)


def test_every_bit() -> None:
    """Each bit turned over."""
    for place in range(len(RAW)):
        for bit in range(8):
            damaged = bytearray(RAW)
            damaged[place] ^= 1 << bit
            try_all(bytes(damaged))


def test_every_length() -> None:
    """Cut off anywhere, or with something behind it, it is not taken."""
    for size in range(len(RAW)):
        with pytest.raises(CorruptError):
            TreeFile(RAW[:size])
    with pytest.raises(CorruptError, match="its header says"):
        TreeFile(RAW + b"\0")


def patched(place: int, data: bytes) -> TreeFile:
    """A tree of a directory ``d`` with a file ``f`` of two extents, its nodes 1 to 3, with these bytes in it."""
    file = Node(Kind.REGULAR, 0o644, size=EXTENT_SIZE + 1, object=blake3_raw(b"f"))
    below = Node(Kind.DIRECTORY, 0o755, children={b"f": file})
    raw = bytearray(encode_tree(Tree(Node(Kind.DIRECTORY, 0o755, children={b"d": below})), runs_of))
    raw[place : place + len(data)] = data
    return TreeFile(bytes(raw))


def _of_node(number: int, offset: int) -> int:
    return HEADER.size + (number - 1) * NODE.size + offset


_ENTRIES_AT = HEADER.size + 3 * NODE.size
_OBJECT_AT = _ENTRIES_AT + 2 * ENTRY.size
_U32_MOST = b"\xff\xff\xff\xff"


@pytest.mark.parametrize("number", [1, 2])
def test_no_way_leads_back(number: int) -> None:
    """A directory below itself, or below what it holds."""
    found = patched(_ENTRIES_AT + ENTRY.size + 4, struct.pack("<I", number))
    with pytest.raises(CorruptError, match="comes before it"):
        list(found.entries(2))
    with pytest.raises(CorruptError, match="comes before it"):
        found.child(2, b"f")


@pytest.mark.parametrize(
    ("place", "data", "reason"),
    [
        (_of_node(3, 32), struct.pack("<Q", 5), "another size"),
        (_of_node(3, 40), _U32_MOST, "not there"),
        (_of_node(3, 40), bytes(4), "not there"),
        (_OBJECT_AT + 32, struct.pack("<Q", EXTENT_SIZE + 2), "another size"),
    ],
)
def test_content_of_another_size(place: int, data: bytes, reason: str) -> None:
    """Nobody is told that a file is longer than what there is to read."""
    with pytest.raises(CorruptError, match=reason):
        patched(place, data).node(3)


@pytest.mark.parametrize(
    ("place", "data", "reason"),
    [
        (_OBJECT_AT + 32, struct.pack("<Q", 2 * EXTENT_SIZE + 1), "contradict"),
        (_OBJECT_AT + 32, struct.pack("<Q", EXTENT_SIZE), "contradict"),
        (_OBJECT_AT + 40, _U32_MOST, "not there"),
        (_OBJECT_AT + 44, bytes(4), "no extents"),
        (_OBJECT_AT + OBJECT.size + 4, _U32_MOST, "no extent"),
    ],
)
def test_objects_that_cannot_be(place: int, data: bytes, reason: str) -> None:
    """Runs outside of the file, or of another length than the object."""
    with pytest.raises(CorruptError, match=reason):
        patched(place, data).object(0)


def test_holes_of_an_object_that_cannot_be() -> None:
    """Asked for alone, as a listing with sizes does, they are of runs that are there."""
    file = Node(Kind.REGULAR, 0o644, size=3 * EXTENT_SIZE, object=blake3_raw(b"f"))
    root = Node(Kind.DIRECTORY, 0o755, children={b"f": file})
    raw = bytearray(encode_tree(Tree(root), runs_of))
    assert TreeFile(bytes(raw)).holes(0) == [(1, 2)]
    place = HEADER.size + 2 * NODE.size + ENTRY.size + 40
    for data in (_U32_MOST, struct.pack("<I", 1)):
        raw[place : place + 4] = data
        with pytest.raises(CorruptError, match="not there"):
            TreeFile(bytes(raw)).holes(0)


def test_an_unknown_version_or_file() -> None:
    """They are told apart."""
    with pytest.raises(CorruptError, match="of version 2"):
        patched(8, b"\x02")
    with pytest.raises(CorruptError, match="no tree file"):
        patched(0, b"ELF")


def test_a_closed_file_is_an_error_of_ours() -> None:
    """Not one of struct."""
    found = TreeFile(RAW)
    view = found.extents
    found.close()
    questions = (found.node, found.xattrs, found.object, found.object_key, lambda number: list(found.entries(number)))
    for ask in questions:
        with pytest.raises(CorruptError, match="closed"):
            ask(ROOT)
    assert len(view) % 32 == 0
    assert isinstance(TreeFile(RAW).node(ROOT), TreeNode)


def test_what_the_format_cannot_say() -> None:
    """Names of extended attributes are counted in 16 bits; no system takes longer ones than 255 bytes."""
    root = Node(Kind.DIRECTORY, 0o755, children={}, xattrs={b"user." + b"x" * 65_530: b""})
    assert TreeFile(encode_tree(Tree(root), runs_of)).xattrs(ROOT) == root.xattrs
    root = Node(Kind.DIRECTORY, 0o755, children={}, xattrs={b"user." + b"x" * 65_531: b""})
    with pytest.raises(LimitError, match="extended attribute"):
        encode_tree(Tree(root), runs_of)
