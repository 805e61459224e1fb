"""Splitting, recipes and rebuilding in memory, and tars made block by block.

Shares no code with the subject beyond its public API: headers are built here from the POSIX table, not from the
parser's.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from blake3 import blake3

from pagepool.image import (
    LITERAL,
    OBJECT,
    SLICE,
    EncodedChunk,
    LayerSplitter,
    Limits,
    Member,
    Op,
    RecipeWriter,
    decode_chunk,
    iter_members,
    stored_pieces,
)

# Small, so that hostile sparse maps cannot make the tests allocate what they claim.
LIMITS = Limits(max_member_size=1 << 24, max_layer_size=1 << 26, max_members=10_000, max_header_size=1 << 18)


@dataclass
class Ingest:
    """A sink that does what the service does, in memory, and checks the order of the calls."""

    writer: RecipeWriter = field(default_factory=lambda: RecipeWriter(level=1))
    objects: dict[bytes, bytes] = field(default_factory=dict)
    chunks: list[EncodedChunk] = field(default_factory=list)
    members: list[Member] = field(default_factory=list)
    stream: bytearray = field(default_factory=bytearray)
    current: Member | None = None
    stored: bytearray = field(default_factory=bytearray)
    problem: str = ""

    def literal(self, data: memoryview, /) -> None:
        assert self.current is None
        assert 0 < len(data) <= 1 << 20
        self.stream += data
        self.writer.append_literal(data)
        self.drain()

    def begin(self, member: Member, /) -> None:
        assert self.current is None
        assert member.size > 0
        assert member is self.members[-1]
        self.current = member
        self.stored.clear()

    def begin_unannounced(self, member: Member, /) -> None:
        """As `begin`, where nobody is told of members."""
        assert self.current is None
        assert member.size > 0
        self.current = member
        self.stored.clear()

    def data(self, view: memoryview, /) -> None:
        assert self.current is not None
        assert len(view) > 0
        self.stream += view
        self.stored += view

    def end(self) -> None:
        member = self.current
        assert member is not None
        assert len(self.stored) <= member.stored_size
        self.current = None
        if member.segments is None:
            self.writer.append_object(self.keep(bytes(self.stored)), len(self.stored))
        else:
            self._end_sparse(member)
        self.drain()

    def _end_sparse(self, member: Member) -> None:
        assert member.segments is not None
        content = bytearray(member.size)
        pieces = list(stored_pieces(member.segments, 0, len(self.stored)))
        position = 0
        for offset, size in pieces:
            content[offset : offset + size] = self.stored[position : position + size]
            position += size
        assert position == len(self.stored)
        digest = self.keep(bytes(content))
        for offset, size in pieces:
            self.writer.append_slice(digest, offset, size)
        if not member.stored_size:
            self.writer.append_slice(digest, 0, 0)

    def keep(self, content: bytes) -> bytes:
        digest = blake3(content).digest()
        self.objects[digest] = content
        return digest

    def drain(self) -> None:
        while (chunk := self.writer.take_chunk()) is not None:
            self.chunks.append(chunk)

    @property
    def decoded(self) -> list[Sequence[Op]]:
        return [decode_chunk(chunk.payload) for chunk in self.chunks]

    @property
    def files(self) -> dict[bytes, bytes]:
        """Content of every regular member, by path, through the recipe."""
        contents = {}
        for member, ops in iter_members(self.decoded, LIMITS, strict=False):
            assert all(op.kind != LITERAL and op.data == ops[0].data for op in ops)
            if member.kind.value == "regular":
                contents[member.path] = self.objects[bytes(ops[0].data)] if ops else b""
        return contents


def ingest(tar: bytes, sizes: Iterable[int] = (1 << 20,), limits: Limits = LIMITS) -> Ingest:
    """Split a tar that comes in chunks of the given sizes (repeated), and check what must always hold."""
    sink = Ingest()
    splitter = LayerSplitter(sink, limits, sink.members.append)
    position = 0
    for size in itertools.cycle(sizes):
        if position >= len(tar):
            break
        splitter.feed(memoryview(tar)[position : position + size])
        position += size
    splitter.close()
    sink.writer.finish()
    sink.drain()
    sink.problem = splitter.problem
    assert sink.current is None
    assert bytes(sink.stream) == tar
    assert rebuild(sink) == tar
    found = list(iter_members(sink.decoded, limits, strict=False))
    assert [member for member, _ in found] == sink.members
    assert sink.problem or found == list(iter_members(sink.decoded))
    for member, ops in found:
        check_data(sink, member, ops)
    check_quick_way(sink, splitter, tar, sizes, limits)
    return sink


def check_quick_way(
    sink: Ingest, splitter: LayerSplitter, tar: bytes, sizes: Iterable[int], limits: Limits, small: int = 4096
) -> None:
    """What `on_file` takes is what the sink would have taken, and the recipe is the same."""
    quick = Ingest()

    def on_file(literal: memoryview, data: memoryview) -> None:
        assert quick.current is None
        assert 512 <= len(literal) <= 1 << 20
        assert 0 < len(data) <= small
        quick.stream += literal
        quick.stream += data
        quick.writer.append_file(literal, quick.keep(bytes(data)), len(data))
        quick.drain()

    quick.begin = quick.begin_unannounced  # type: ignore[method-assign]
    other = LayerSplitter(quick, limits, on_file=on_file, small=small)
    position = 0
    for size in itertools.cycle(sizes):
        if position >= len(tar):
            break
        other.feed(tar[position : position + size])
        position += size
    other.close()
    quick.writer.finish()
    quick.drain()
    assert bytes(quick.stream) == tar
    assert quick.objects == sink.objects
    assert [op for ops in quick.decoded for op in ops] == [op for ops in sink.decoded for op in ops]
    assert [chunk.plain_start for chunk in quick.chunks] == [chunk.plain_start for chunk in sink.chunks]
    assert other.problem == splitter.problem
    assert (other.members, other.logical_size) == (splitter.members, splitter.logical_size)


def rebuild(sink: Ingest) -> bytes:
    """The tar, out of the recipe and the objects."""
    out = bytearray()
    for chunk, ops in zip(sink.chunks, sink.decoded, strict=True):
        assert chunk.plain_start == len(out)
        for op in ops:
            if op.kind == LITERAL:
                out += op.data
                continue
            content = sink.objects[bytes(op.data)]
            if op.kind == OBJECT:
                assert op.size == len(content)
            out += content[op.offset : op.offset + op.size]
        assert len(out) == chunk.plain_start + chunk.plain_size
    return bytes(out)


def check_data(sink: Ingest, member: Member, ops: Sequence[Op]) -> None:
    """What stands beside a member is its file data, all of it unless the stream was cut."""
    if member.kind.value != "regular" or not member.size:
        assert not ops
        return
    assert all(op.kind == (OBJECT if member.segments is None else SLICE) for op in ops)
    total = sum(op.size for op in ops)
    assert total == member.stored_size or sink.problem
    if total == member.stored_size:
        assert len(sink.objects[bytes(ops[0].data)]) == member.size


def make_header(
    name: bytes = b"file",
    size: int | bytes = 0,
    flag: bytes = b"0",
    *,
    mode: int | bytes = 0o644,
    uid: int | bytes = 0,
    gid: int | bytes = 0,
    mtime: int | bytes = 0,
    link: bytes = b"",
    magic: bytes = b"ustar\x0000",
    uname: bytes = b"",
    gname: bytes = b"",
    major: int | bytes = 0,
    minor: int | bytes = 0,
    tail: bytes = b"",
    signed: bool = False,
) -> bytes:
    """One header block, by the table of POSIX.1-1988. A number may be given as the raw field."""

    def number(value: int | bytes, width: int) -> bytes:
        return value.ljust(width, b"\0") if isinstance(value, bytes) else b"%0*o\0" % (width - 1, value)

    block = bytearray(512)
    fields: list[tuple[int, bytes]] = [
        (0, name), (100, number(mode, 8)), (108, number(uid, 8)), (116, number(gid, 8)), (124, number(size, 12)),
        (136, number(mtime, 12)), (148, b" " * 8), (156, flag), (157, link), (257, magic), (265, uname), (297, gname),
        (329, number(major, 8)), (337, number(minor, 8)), (345, tail),
    ]  # fmt: skip
    for start, value in fields:
        block[start : start + len(value)] = value
    total = sum(byte - 256 if signed and byte > 127 else byte for byte in block)
    block[148:156] = b"%06o\0 " % total
    assert len(block) == 512
    return bytes(block)


def pad(data: bytes) -> bytes:
    """Data with the NULs that fill its last block."""
    return data + bytes(-len(data) % 512)


def make_file(name: bytes, data: bytes, **fields: object) -> bytes:
    """A regular member."""
    return make_header(name, len(data), **fields) + pad(data)  # type: ignore[arg-type]


def make_extension(flag: bytes, body: bytes) -> bytes:
    """An extended header of any kind."""
    return make_header(b"././@X", len(body), flag) + pad(body)


def make_records(records: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The body of a PAX header."""
    out = b""
    for key, value in records:
        rest = b" " + key + b"=" + value + b"\n"
        size = len(rest) + 1
        while len(b"%d" % size) + len(rest) != size:
            size += 1
        out += b"%d" % size + rest
    return out


def make_pax(**records: bytes) -> bytes:
    """A PAX header; ``__`` in a key stands for a dot."""
    return make_extension(
        b"x", make_records((key.replace("__", ".").encode(), value) for key, value in records.items())
    )


END = bytes(1024)
