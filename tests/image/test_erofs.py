"""Writing EROFS images: the same bytes for the same tree, as the page of the format says, and clear errors."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from blake3 import blake3

from pagepool.errors import CorruptError, LimitError
from pagepool.image import Kind, Node, Tree, TreeFile, encode_tree
from pagepool.image.erofs import INLINE_MAX, node_number, write_erofs
from pagepool.image.erofs.format import crc32c, encode_device, xxh32
from tests.image.erofs import content_of, make_image, reader
from tests.image.test_treefile import make_tree, runs_of
from tests.image.test_treefile_golden import golden_tree

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

GOLDEN = Path(__file__).parent.parent / "golden"


def tree_file(tree: Tree) -> TreeFile:
    """A tree as a tree file."""
    return TreeFile(encode_tree(tree, runs_of))


def single(node: Node) -> TreeFile:
    """A tree of one node, below the root."""
    return tree_file(Tree(Node(Kind.DIRECTORY, 0o755, children={b"it": node})))


def test_version_1_is_what_is_written() -> None:
    """The same tree becomes the same bytes for ever: nodes compare an image's digest."""
    image, _ = make_image(tree_file(golden_tree()), 4096)
    assert image == (GOLDEN / "erofs-v1.img").read_bytes()


def test_same_tree_same_bytes() -> None:
    """Whatever the order in which contents come."""
    tree = tree_file(make_tree(7, 300))
    out = io.BytesIO()

    def read(indices: Sequence[int]) -> Iterator[tuple[int, memoryview]]:
        for index in indices:
            info = tree.object(index)
            yield index, memoryview(content_of(info.digest, info.size))

    info = write_erofs(tree, read, out)
    assert (out.getvalue(), info) == make_image(tree, INLINE_MAX)


def test_info_counts_what_is_inlined() -> None:
    """Files, not objects; none that is empty."""
    tree = tree_file(golden_tree())
    _, info = make_image(tree, 5)
    assert (info.inlined, info.inlined_bytes, info.nodes) == (2, 10, tree.node_count)
    assert make_image(tree, 4)[1].inlined == 0


def test_content_is_asked_for_once_for_each_object() -> None:
    """And only what is inlined."""
    tree = tree_file(golden_tree())
    asked: list[int] = []

    def read(indices: Sequence[int]) -> Iterator[tuple[int, bytes]]:
        asked.extend(indices)
        return iter(reader(tree)(indices))

    write_erofs(tree, read, io.BytesIO(), inline_max=4096)
    assert [tree.object(index).size for index in asked] == [5]


@pytest.mark.parametrize("content", [None, b"", b"123456"])
def test_wrong_contents_are_an_error_that_names_the_object(content: bytes | None) -> None:
    """One that does not come, or comes with another size; nothing is written then."""
    tree = tree_file(golden_tree())
    out = io.BytesIO()
    with pytest.raises(CorruptError, match=blake3(b"small").hexdigest()):
        write_erofs(tree, lambda asked: () if content is None else [(asked[0], content)], out, inline_max=4096)
    assert not out.getvalue()


def test_an_object_that_was_not_asked_for_is_an_error() -> None:
    """As any content that has no place."""
    tree = tree_file(golden_tree())
    large = max(range(tree.object_count), key=lambda index: tree.object(index).size)
    with pytest.raises(CorruptError):
        write_erofs(tree, lambda _: [(large, b"")], io.BytesIO(), inline_max=4096)


def test_a_closed_tree_is_an_error() -> None:
    """Not an empty image."""
    tree = tree_file(golden_tree())
    tree.close()
    with pytest.raises(CorruptError):
        make_image(tree)


@pytest.mark.parametrize(
    "node",
    [
        Node(Kind.SYMLINK, 0o777, size=4096, target=b"a" * 4096),
        Node(Kind.REGULAR, 0o644, xattrs={b"user.a": b"a" * 65_536}),
        Node(Kind.REGULAR, 0o644, xattrs={f"user.{n}".encode(): b"%d" % n * 30_000 for n in range(10)}),
    ],
    ids=["target", "value", "values"],
)
def test_what_erofs_cannot_say_is_an_error(node: Node) -> None:
    """And not another tree."""
    with pytest.raises(LimitError):
        make_image(single(node))


def test_node_numbers_come_back() -> None:
    """Out of the image alone; xino's bits do not matter, and what is outside is an error."""
    tree = tree_file(golden_tree())
    image, _ = make_image(tree)
    (root,) = struct.unpack_from("<H", image, 1024 + 14)
    assert node_number(image, root) == node_number(memoryview(image), root | 3 << 61) == 1
    for ino in (0, len(image) // 32, 1 << 31):
        with pytest.raises(CorruptError):
            node_number(image, ino)


def test_check_sums() -> None:
    """Against published values."""
    assert crc32c(b"123456789") ^ 0xFFFFFFFF == 0xE3069283
    assert [xxh32(text, 0) for text in (b"", b"a", b"abc")] == [0x02CC5D05, 0x550D7456, 0x32D153FF]
    assert xxh32(b"Nobody inspects the spammish repetition", 0) == 0xE2293B2F
    assert encode_device(4095, 1_048_575) == 0xFFFFFFFF
