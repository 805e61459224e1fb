"""Layers: tars, compressed streams, and the recipes that tars become."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterable, Iterator
from pathlib import Path

import zstandard

from pagepool.errors import CorruptError, ImageInvalidError, LayerInvalidError, LimitError
from pagepool.image import TreeFile, TreeMerger, decode_chunk, encode_tree, iter_members
from pagepool.image.treedump import build_tree, dump_tree
from pagepool.layout.inflate import inflate as inflate_client
from pagepool_service.inflate import InflateLimits, inflate
from tests.fuzz.target import Reader, Target, cut
from tests.image.erofs import make_image
from tests.image.harness import (
    END,
    LIMITS,
    ingest,
    make_extension,
    make_file,
    make_header,
    make_pax,
    make_records,
)
from tests.image.stacks import STACKS
from tests.image.test_sparse import make_00, make_01, make_10, make_old_gnu
from tests.image.test_treefile import runs_of

_SIZES = ([1 << 20], [512], [1, 511, 7], [4096, 13])
_LIMITS = InflateLimits(plain_size=4 << 20, ratio=100, ratio_from=1 << 20)
_GOLDEN = Path(__file__).parents[2] / "golden"


def _with_sums(tar: bytes) -> bytes:
    """The same with right checksums in whatever may be a header, so that what is wrong is found further in."""
    fixed = bytearray(tar)
    for at in range(0, len(fixed) - 511, 512):
        block = fixed[at : at + 512]
        if block[257:262] == b"ustar":
            block[148:156] = b" " * 8
            fixed[at + 148 : at + 156] = b"%06o\0 " % sum(block)
    return bytes(fixed)


def _tar(data: bytes) -> None:
    """Whatever it is, it is split, made a recipe of, and comes out of that as it was: see `ingest`."""
    how = Reader(data)
    options, tar = how.byte(), how.rest()
    ingest(_with_sums(tar) if options & 1 else tar, _SIZES[options >> 1 & 3])


def _image(data: bytes) -> None:
    """What can be merged becomes a tree file, a dump, and an EROFS image; and the dump the same tree file."""
    merger = TreeMerger(max_nodes=2000)
    for tar in data.split(b"\n--layer--\n")[:4]:
        found = ingest(_with_sums(tar))
        if found.problem:
            return
        merger.apply_layer(iter_members(found.decoded, LIMITS))
    raw = encode_tree(merger.finish(), runs_of)
    tree = TreeFile(raw)
    assert build_tree(dump_tree(tree)) == raw
    if sum(tree.object(index).size for index in range(tree.object_count)) < 1 << 22:
        make_image(tree)


def _compressed(data: bytes) -> None:
    """Service and client say the same of a stream, or refuse it; and neither gives more than the limit."""
    ours = _read(lambda: inflate(cut(data, 700), _LIMITS)[1])
    theirs = _read(lambda: inflate_client(cut(data, 900), "test"))
    assert ours is None or len(ours) <= _LIMITS.plain_size
    assert ours is None or theirs is None or theirs.startswith(ours) or ours == theirs


def _read(opened: object) -> bytes | None:
    """What comes out, up to 8 MiB; None if it is refused."""
    assert callable(opened)
    found = bytearray()
    try:
        for piece in opened():
            found += piece
            if len(found) > 8 << 20:
                break
    except LayerInvalidError:
        return None
    return bytes(found)


def _recipe(data: bytes) -> None:
    for op in decode_chunk(data):
        assert op.size >= 0


def _members() -> Iterator[bytes]:
    yield make_header(b"d/", 0, b"5") + make_file(b"d/a", b"a" * 700)
    yield make_extension(b"L", b"long/" * 30 + b"\0") + make_file(b"x", b"1")
    yield make_extension(b"K", b"to/" * 50 + b"\0") + make_header(b"l", 0, b"2")
    yield make_pax(path=b"p" * 120, size=b"600", mtime=b"1.5", uid=b"5000000") + make_header(b"y") + b"y" * 1024
    yield make_pax(SCHILY__xattr__user__a=b"v", LIBARCHIVE__xattr__user__b=b"dg==") + make_file(b"z", b"1")
    yield make_old_gnu(b"s0", 9000, [(place * 512, 100) for place in range(9)], b"s" * 900)
    yield make_00(b"s1", 9000, [(0, 512), (8192, 512)], b"s" * 1024)
    yield make_01(b"s2", 9000, [(512, 100)], b"s" * 100)
    yield make_10(b"s3", 9000, [(0, 512), (8192, 8)], b"s" * 520)
    yield make_header(b"h", 100, b"1", link=b"d/a") + make_header(b"c", 0, b"3", major=1, minor=3)
    yield make_extension(b"g", make_records([(b"comment", b"c")])) + make_file(b"d/.wh.b", b"")
    yield make_file(b"v7", b"old", magic=bytes(8)) + make_file(b"big", b"1", uid=b"\x80\0\0\0\0\x1e\x84\x80")


def _tars() -> Iterator[bytes]:
    for number, members in enumerate(_members()):
        yield bytes((number,)) + members + END


def _images() -> Iterable[bytes]:
    members = list(_members())
    yield members[0] + members[1] + members[9] + END
    yield members[8] + END
    for name in ("base", *list(STACKS)[2::7]):
        layers = b"\n--layer--\n".join(tar.removesuffix(END) for tar in STACKS[name])
        if len(layers) < 12 << 10:
            yield layers


def _streams() -> Iterator[bytes]:
    plain = make_file(b"a", b"some text " * 60)
    yield plain[:600]
    yield gzip.compress(plain, mtime=0)
    yield gzip.compress(plain, mtime=0) + gzip.compress(b"more", mtime=0)
    named = io.BytesIO()
    with gzip.GzipFile("name", "wb", fileobj=named, mtime=1) as file:
        file.write(plain)
    yield named.getvalue()
    yield zstandard.compress(plain)
    yield zstandard.ZstdCompressor(write_checksum=True, write_content_size=False).compress(plain) + zstandard.compress(
        b"x"
    )
    yield b"\x50\x2a\x4d\x18\x04\x00\x00\x00skip" + zstandard.compress(plain)
    yield gzip.compress(bytes(1 << 20), mtime=0)


def _recipes() -> Iterator[bytes]:
    yield (_GOLDEN / "recipe-v1.chunk").read_bytes()
    for members in _members():
        for chunk in ingest(members).chunks[:1]:
            yield chunk.payload


TARGETS = (
    Target(
        "tar",
        _tar,
        (),
        _tars,
        (b"ustar\x0000", b"ustar  \0", b"GNU.sparse.map=", b"././@LongLink", b"SCHILY.xattr.user.a="),
    ),
    Target(
        "image",
        _image,
        (LayerInvalidError, LimitError, ImageInvalidError),
        _images,
        (b"\n--layer--\n", b"../", b".wh.", b".wh..wh..opq", b"ustar\x0000"),
    ),
    Target(
        "compressed",
        _compressed,
        (LayerInvalidError,),
        _streams,
        (b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18"),
    ),
    Target("recipe", _recipe, (CorruptError,), _recipes, (b"\x28\xb5\x2f\xfd",)),
)
