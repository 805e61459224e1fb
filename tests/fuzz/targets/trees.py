"""Trees: the files that services send, their dumps, the images that are made of them, and the extents stream."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pagepool.digest import blake3_raw
from pagepool.errors import CorruptError, ImageInvalidError, InvalidError, LimitError
from pagepool.extents import EXTENT_SIZE, Role, encode_frame
from pagepool.extents.wire import (
    MAX_PLAIN,
    EndRecord,
    FailureRecord,
    encode_end,
    encode_failure,
    encode_frame_head,
    encode_wanted,
    parse_wanted,
)
from pagepool.image import TreeFile, encode_tree
from pagepool.image.treedump import build_tree, dump_tree
from pagepool.transport.extents import _Errand
from pagepool.transport.retry import RetryPolicy
from tests.fuzz.target import Reader, Target, cut
from tests.image.erofs import make_image
from tests.image.test_treefile import make_tree, runs_of
from tests.image.test_treefile_damage import try_all

_GOLDEN = Path(__file__).parents[2] / "golden"
_DATA = (b"hello", b"world" * 5000, b"x" * EXTENT_SIZE, b"abc")
_MOST_NODES = 300


def _tree(data: bytes) -> None:
    """A tree file that a service sent: every question is answered or CorruptError. What can be dumped comes back."""
    try_all(data)
    lines = list(dump_tree(TreeFile(data)))
    # A dump has neither unused bytes nor counts nor an order: what was damaged in these becomes right, once.
    with suppress(ImageInvalidError, LimitError):
        again = build_tree(lines)
        assert build_tree(dump_tree(TreeFile(again))) == again


def _erofs(data: bytes) -> None:
    """What a tree file's EROFS image is made of: bounded by the file, or refused."""
    tree = TreeFile(data)
    total = 0
    for index in range(tree.object_count):
        total += tree.object(index).size
    if total > 1 << 20 or tree.node_count > _MOST_NODES:
        return
    image, _ = make_image(tree)
    assert len(image) < 1 << 24


def _dump(data: bytes) -> None:
    """A dump becomes a tree file, or an error that names the line."""
    raw = build_tree(data.decode("latin-1").splitlines())
    lines = list(dump_tree(TreeFile(raw)))
    assert build_tree(lines) == raw
    try_all(raw)


def _extents(data: bytes) -> None:
    """What a client takes out of a stream is what it asked for, by its name, however the stream is cut."""
    how = Reader(data)
    size = (1, 7, 300, 1 << 16)[how.byte() & 3]
    errand = _Errand([blake3_raw(one) for one in _DATA], RetryPolicy(), "test")
    errand.begin()
    for piece in cut(how.rest(), size):
        for digest, view in errand.feed(piece):
            assert blake3_raw(view) == digest
            assert len(view) <= MAX_PLAIN
    errand.close()
    errand.finish()


def _wanted(data: bytes) -> None:
    found = parse_wanted(data)
    assert parse_wanted(encode_wanted(found)) == found


def _trees() -> Iterator[bytes]:
    yield (_GOLDEN / "tree-v1.tree").read_bytes()
    for seed in (1, 2):
        yield encode_tree(make_tree(seed, 8), runs_of)


def _dumps() -> Iterator[bytes]:
    yield (_GOLDEN / "tree-v1.dump").read_bytes()
    yield "\n".join(dump_tree(TreeFile(encode_tree(make_tree(3, 8), runs_of)))).encode()


def _streams() -> Iterator[bytes]:
    end, records = EndRecord(), b""
    for contents in ((_DATA[0], _DATA[3]), (_DATA[1],), (_DATA[2],)):
        frame = encode_frame([(blake3_raw(one), one) for one in contents], Role.FILES).payload
        records += encode_frame_head(len(frame)) + frame
        end = end.with_frame(len(contents), sum(map(len, contents)))
    yield b"\2" + records + encode_end(end)
    yield b"\1" + records + encode_failure(FailureRecord(True, b"\1" * 32, "bit röt")) + encode_end(end.with_failure())


TARGETS = (
    Target("tree", _tree, (CorruptError,), _trees),
    Target("erofs", _erofs, (CorruptError, LimitError, ImageInvalidError), _trees),
    Target(
        "dump", _dump, (ImageInvalidError, LimitError, CorruptError), _dumps, (b"\\x00", b" link=", b" 0:0 ", b"-0.5")
    ),
    Target("extents", _extents, (CorruptError,), _streams, (b"\1\0\0\0", b"\4\0\0\0\x14", b"\x28\xb5\x2f\xfd")),
    Target("wanted", _wanted, (InvalidError, LimitError), lambda: (bytes(range(64)), b"")),
)
