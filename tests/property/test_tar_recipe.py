"""Recipes: any operations come back, and no payload does worse than `CorruptError`."""

from __future__ import annotations

import contextlib

from hypothesis import given, settings
from hypothesis import strategies as st

from pagepool.errors import CorruptError
from pagepool.image import LITERAL, OBJECT, SLICE, EncodedChunk, Op, RecipeWriter, decode_chunk
from tests.image.harness import make_header

DIGESTS = st.sampled_from([bytes([value]) * 32 for value in range(6)])
SIZES = st.one_of(st.integers(1, 1000), st.integers(1, 1 << 40))
HEADERS = st.builds(
    lambda size, before, uid: before + make_header(b"name", size, uid=uid),
    st.integers(0, 3),
    st.binary(max_size=20),
    st.integers(0, 9),
)
OPS = st.lists(
    st.one_of(
        st.one_of(st.binary(min_size=1, max_size=700), HEADERS).map(lambda data: Op(LITERAL, data, 0, len(data))),
        st.builds(lambda digest, size: Op(OBJECT, digest, 0, size), DIGESTS, st.one_of(st.integers(1, 3), SIZES)),
        st.builds(lambda digest, at, size: Op(SLICE, digest, at, size), DIGESTS, SIZES, st.one_of(st.just(0), SIZES)),
    ),
    max_size=40,
)


def write(ops: list[Op]) -> list[EncodedChunk]:
    writer = RecipeWriter(level=1)
    chunks = []
    for op in ops:
        if op.kind == LITERAL:
            writer.append_literal(op.data)
        elif op.kind == OBJECT:
            writer.append_object(bytes(op.data), op.size)
        else:
            writer.append_slice(bytes(op.data), op.offset, op.size)
        while (chunk := writer.take_chunk()) is not None:
            chunks.append(chunk)
    writer.finish()
    while (chunk := writer.take_chunk()) is not None:
        chunks.append(chunk)
    return chunks


def join(ops: list[Op]) -> list[Op]:
    """The same operations, with neighbouring literals made one."""
    joined: list[Op] = []
    for op in ops:
        if op.kind == LITERAL and joined and joined[-1].kind == LITERAL:
            data = bytes(joined[-1].data) + bytes(op.data)
            joined[-1] = Op(LITERAL, data, 0, len(data))
        else:
            joined.append(op)
    return joined


@given(OPS)
def test_operations_come_back(ops: list[Op]) -> None:
    found: list[Op] = []
    position = 0
    for chunk in write(ops):
        decoded = list(decode_chunk(chunk.payload))
        assert chunk.plain_start == position
        assert chunk.plain_size == sum(op.size for op in decoded)
        position += chunk.plain_size
        found += decoded
    assert join(found) == join(ops)


@given(OPS.filter(bool), st.data())
@settings(max_examples=300, deadline=None)
def test_damaged_payloads(ops: list[Op], data: st.DataObject) -> None:
    payload = bytearray(write(ops)[0].payload)
    for _ in range(data.draw(st.integers(1, 3))):
        # Most often in the part that is not compressed, or in the first bytes of the frame.
        place = data.draw(st.one_of(st.integers(0, min(40, len(payload) - 1)), st.integers(0, len(payload) - 1)))
        payload[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.just(len(payload)), st.integers(0, len(payload))))
    try:
        found = decode_chunk(bytes(payload[:cut]))
    except CorruptError:
        return
    assert all(op.kind in (LITERAL, OBJECT, SLICE) and op.offset >= 0 and op.size >= 0 for op in found)


@given(st.binary(max_size=200))
def test_random_payloads(payload: bytes) -> None:
    with contextlib.suppress(CorruptError):
        decode_chunk(payload)
