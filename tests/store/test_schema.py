"""What is encoded is read back; keys sort as their numbers do; bytes that no encoder wrote are CorruptError."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagepool.digest import Digest
from pagepool.errors import CorruptError
from pagepool.extents import EXTENT_SIZE, FrameHead
from pagepool_service.store.catalogue import StoredManifest, Tag
from pagepool_service.store.schema import (
    BlobRecord,
    ContentKind,
    Job,
    JobKind,
    LayerRecord,
    LayerState,
    Location,
    ObjectRecord,
    encode_object,
    parse_recipe_key,
    recipe_key,
    u64,
)

U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
RAW = st.binary(min_size=32, max_size=32)
DIGESTS = st.one_of(
    st.builds(Digest, st.sampled_from(["sha256", "blake3"]), RAW),
    st.builds(Digest, st.just("sha512"), st.binary(min_size=64, max_size=64)),
)
LOCATIONS = st.builds(Location, U64, U32, U32)
LAYERS = st.builds(LayerRecord, U64, U64, U64, U64)
BLOBS = st.builds(
    BlobRecord,
    st.sampled_from(ContentKind),
    st.sampled_from(LayerState),
    U64,
    U64,
    RAW,
    st.one_of(st.none(), DIGESTS),
    st.text(max_size=100),
    st.binary(max_size=60),
)
JOBS = st.builds(Job, st.sampled_from(JobKind), U64, DIGESTS, st.integers(0, 255), st.integers(0, 255), U64)


@given(LOCATIONS)
def test_a_location_comes_back(location: Location) -> None:
    assert Location.decode(location.encode()) == location
    assert len(location.encode()) == 16


@given(LAYERS)
def test_a_layer_comes_back(layer: LayerRecord) -> None:
    assert LayerRecord.decode(layer.encode()) == layer


@given(BLOBS)
def test_a_blob_comes_back(blob: BlobRecord) -> None:
    assert BlobRecord.decode(memoryview(blob.encode()), "name") == blob


@given(BLOBS, st.text(min_size=4000, max_size=5000))
def test_a_long_reason_is_cut_and_the_rest_stays(blob: BlobRecord, reason: str) -> None:
    long = BlobRecord(blob.content, blob.state, blob.size, 0, blob.object, blob.diff_id, reason, blob.encoder)
    back = BlobRecord.decode(memoryview(long.encode()), "name")
    assert back.encoder == blob.encoder
    assert back.diff_id == blob.diff_id
    assert back.reason[:900] == reason[:900]


@given(JOBS)
def test_a_job_comes_back(job: Job) -> None:
    assert Job.decode(job.key, memoryview(job.encode())) == job


@given(
    st.lists(st.sampled_from([bytes(32), b"1" * 32, b"2" * 32]), min_size=2, max_size=50), st.integers(0, EXTENT_SIZE)
)
def test_an_objects_extents_come_back(extents: list[bytes], short: int) -> None:
    size = len(extents) * EXTENT_SIZE - min(short, EXTENT_SIZE - 1)
    record = ObjectRecord.decode(memoryview(encode_object(size, extents)), "name")
    assert record.size == size
    assert [digest for _, digest in record.extents()] == extents
    assert [offset for offset, _ in record.extents()] == [number * EXTENT_SIZE for number in range(len(extents))]
    for start in (0, 1, EXTENT_SIZE - 1, EXTENT_SIZE, size - 1):
        first = start // EXTENT_SIZE
        assert list(record.extents(start)) == list(record.extents())[first:]


def test_a_hole_is_one_run_however_long() -> None:
    extents = [b"0" * 32] * 1_000_000
    encoded = encode_object(len(extents) * EXTENT_SIZE, extents)
    assert len(encoded) == 8 + 36


@given(U64, U64, U64, U64)
def test_recipe_keys_sort_by_recipe_and_start(recipe: int, start: int, other: int, other_start: int) -> None:
    assert parse_recipe_key(recipe_key(recipe, start)) == (recipe, start)
    keys = recipe_key(recipe, start) < recipe_key(other, other_start)
    assert keys == ((recipe, start) < (other, other_start))


@given(U64, U64)
def test_numbers_sort_as_keys(one: int, two: int) -> None:
    assert (u64(one) < u64(two)) == (one < two)


@given(JOBS, JOBS)
def test_jobs_sort_by_kind_and_then_number(one: Job, two: Job) -> None:
    assert (one.key < two.key) == ((one.kind, one.number) < (two.kind, two.number))


@given(DIGESTS)
def test_a_digest_comes_back_from_its_key(digest: Digest) -> None:
    assert Digest.from_key(digest.key) == digest


DECODERS: dict[str, Callable[[bytes], Any]] = {
    "location": Location.decode,
    "layer": LayerRecord.decode,
    "blob": lambda payload: BlobRecord.decode(memoryview(payload), "name"),
    "object": lambda payload: ObjectRecord.decode(memoryview(payload), "name"),
    "job": lambda payload: Job.decode(Job(JobKind.INGEST, 1, Digest.of(b"")).key, memoryview(payload)),
    "job key": lambda payload: Job.decode(payload, memoryview(Job(JobKind.INGEST, 1, Digest.of(b"")).encode())),
    "tag": lambda payload: Tag.decode(b"repository\0tag", memoryview(payload)),
    "manifest": lambda payload: StoredManifest.decode(Digest.of(b""), memoryview(payload)),
    "frame head": lambda payload: FrameHead.decode(memoryview(payload), "1"),
}
VALID = {
    "location": Location(1, 2, 3).encode(),
    "layer": LayerRecord(1, 2, 3, 4).encode(),
    "blob": BlobRecord(ContentKind.OBJECT, LayerState.READY, 1, 2, bytes(32), Digest.of(b""), "why", b"{}").encode(),
    "object": encode_object(2 * EXTENT_SIZE, [bytes(32)] * 2),
    "job": Job(JobKind.INGEST, 1, Digest.of(b"")).encode(),
    "job key": Job(JobKind.INGEST, 1, Digest.of(b"")).key,
    "tag": Tag(Digest.of(b""), 1).encode(),
    "manifest": StoredManifest(Digest.of(b""), "application/json", 1, b"{}").encode(),
    "frame head": b"\1\0\0\0" + (5).to_bytes(4, "big") + (1).to_bytes(4, "big") + bytes(32) + (5).to_bytes(4, "big"),
}


@pytest.mark.parametrize("kind", DECODERS)
@given(payload=st.binary(max_size=200))
def test_any_bytes_are_decoded_or_corrupt(kind: str, payload: bytes) -> None:
    try:
        DECODERS[kind](payload)
    except CorruptError:
        return


@pytest.mark.parametrize("kind", VALID)
@given(draw=st.data())
def test_a_changed_record_is_decoded_or_corrupt(kind: str, draw: st.DataObject) -> None:
    valid = VALID[kind]
    DECODERS[kind](valid)
    changed = bytearray(valid)
    changed[draw.draw(st.integers(0, len(valid) - 1))] = draw.draw(st.integers(0, 255))
    cut = bytes(changed[: draw.draw(st.integers(0, len(valid)))])
    for payload in (bytes(changed), cut, cut + b"more"):
        try:
            DECODERS[kind](payload)
        except CorruptError:
            continue
