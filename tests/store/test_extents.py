"""Extents and frames: each stored once, found again, checked, and forgotten when damaged."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from blake3 import blake3

from pagepool.errors import CorruptError
from pagepool.extents import EXTENT_SIZE, EncodedFrame, Frame, Role, encode_frame
from pagepool_service.store.environment import Table, checksum
from pagepool_service.store.extents import ExtentStore, FrameCache
from pagepool_service.store.schema import Location, u64
from pagepool_service.store.store import Store
from pagepool_service.store.totals import Totals
from tests.faults import flip_record, records, replace_record
from tests.store.helpers import noise, text

if TYPE_CHECKING:
    from pathlib import Path


def name(content: bytes) -> bytes:
    return blake3(content).digest()


def frame_of(*contents: bytes, role: Role = Role.FILES) -> EncodedFrame:
    return encode_frame([(name(content), content) for content in contents], role)


def put(store: Store, *frames: EncodedFrame) -> None:
    with store.env.write() as txn:
        store.extents.put_frames(txn, frames)


def get(store: Store, content: bytes) -> bytes:
    """Read an extent without what earlier reads left in memory."""
    with store.env.read() as txn:
        return bytes(ExtentStore().extent(txn, name(content)))


CONTENTS = [b"a", text(4000), noise(5000), text(EXTENT_SIZE, 2), noise(EXTENT_SIZE, 2), bytes(EXTENT_SIZE)]


@pytest.mark.parametrize("role", Role)
def test_extents_come_back_from_their_frames(store: Store, role: Role) -> None:
    put(store, frame_of(*CONTENTS[:3], role=role), frame_of(*CONTENTS[3:], role=role))
    for content in CONTENTS:
        assert get(store, content) == content
    totals = _totals(store)
    assert (totals.frames, totals.extents) == (2, 6)
    plain = sum(map(len, CONTENTS))
    assert (totals.files_plain, totals.opaque_plain) == ((plain, 0) if role is Role.FILES else (0, plain))


def test_a_stored_extent_is_not_stored_again(store: Store) -> None:
    put(store, frame_of(b"one", b"two"))
    put(store, frame_of(b"two", b"three"), frame_of(b"one", b"two"))
    with store.env.read() as txn:
        first = store.extents.find(txn, name(b"two"))
    assert first is not None
    assert first.frame == 1
    assert _totals(store).extents == _live(store) == 3
    for content in (b"one", b"two", b"three"):
        assert get(store, content) == content


def test_frame_numbers_grow_and_are_never_used_again(store: Store) -> None:
    put(store, frame_of(b"one"))
    put(store, frame_of(b"two"), frame_of(b"three"))
    with store.env.read() as txn:
        assert [int.from_bytes(key, "big") for key, _ in txn.scan(Table.FRAMES)] == [1, 2, 3]
    with store.env.write() as txn:
        txn.delete(Table.FRAMES, u64(3))
    put(store, frame_of(b"four"))
    with store.env.read() as txn:
        assert [int.from_bytes(key, "big") for key, _ in txn.scan(Table.FRAMES)] == [1, 2, 4]


def test_what_is_not_there_is_corrupt_and_named(store: Store) -> None:
    with store.env.read() as txn:
        assert store.extents.find(txn, name(b"none")) is None
        for read in (store.extents.extent, store.extents.object_by_name):
            with pytest.raises(CorruptError, match=name(b"none").hex()):
                read(txn, name(b"none"))
        with pytest.raises(CorruptError, match="frame 17"):
            store.extents.frame(txn, 17)


def test_an_index_that_points_to_another_place_is_found(data: Path) -> None:
    with Store.open(data) as store:
        put(store, frame_of(b"one", b"two"))
    for wrong in (Location(1, 3, 3), Location(1, 0, 2), Location(9, 0, 3), Location(1, 1 << 31, 3)):
        key, payload = name(b"one"), wrong.encode()
        replace_record(data, Table.EXTENTS, key, payload + checksum(Table.EXTENTS, key, payload))
        with Store.open(data) as store, pytest.raises(CorruptError):
            get(store, b"one")


@pytest.mark.parametrize("content", [text(100_000), noise(100_000)], ids=["zstd", "raw"])
@pytest.mark.parametrize("at", [0, 12, 50, 60_000, -20, -1])
def test_a_flipped_byte_of_a_frame_is_never_served(data: Path, content: bytes, at: int) -> None:
    with Store.open(data) as store:
        put(store, frame_of(content))
    flip_record(data, records(data, Table.FRAMES)[0], at % 30_000 if at > 1000 else at)
    with Store.open(data) as store, pytest.raises(CorruptError) as caught:
        get(store, content)
    assert (caught.value.kind, caught.value.name) == ("frame", "1")


@pytest.mark.parametrize("at", [0, 10, -1])
def test_a_flipped_byte_of_the_index_names_the_extent(data: Path, at: int) -> None:
    with Store.open(data) as store:
        put(store, frame_of(b"one"))
    flip_record(data, records(data, Table.EXTENTS)[0], at)
    with Store.open(data) as store, pytest.raises(CorruptError) as caught:
        get(store, b"one")
    assert (caught.value.kind, caught.value.name) == ("extent", name(b"one").hex())


def test_a_frame_with_a_head_that_lies_is_corrupt(data: Path) -> None:
    """A record whose checksum is right and whose bytes no encoder wrote."""
    with Store.open(data) as store:
        put(store, frame_of(text(5000)))
    good = records(data, Table.FRAMES)[0]
    payload = good.value[:-8]
    for changed in (payload[:7] + b"\xff" + payload[8:], payload[:-40], b"", payload[:11], b"\7" + payload[1:]):
        replace_record(data, Table.FRAMES, good.key, changed + checksum(Table.FRAMES, good.key, changed))
        with Store.open(data) as store, pytest.raises(CorruptError, match="frame 1"):
            get(store, text(5000))


# -- damage is forgotten -------------------------------------------------------------------------------------


def test_a_damaged_frame_is_forgotten_and_stored_anew(data: Path) -> None:
    lost, kept = [text(20_000, number) for number in range(5)], text(100)
    with Store.open(data) as store:
        put(store, frame_of(*lost), frame_of(kept))
    flip_record(data, records(data, Table.FRAMES)[0], 1000)
    with Store.open(data) as store:
        with pytest.raises(CorruptError) as caught:
            get(store, lost[0])
        assert store.extents.forget_damaged(store.env, caught.value) == 5
        assert get(store, kept) == kept
        put(store, frame_of(*lost))
        for content in lost:
            assert get(store, content) == content


def test_a_damaged_index_record_is_forgotten_and_stored_anew(data: Path) -> None:
    with Store.open(data) as store:
        put(store, frame_of(b"one", b"two"))
    record = next(record for record in records(data, Table.EXTENTS) if record.key == name(b"one"))
    flip_record(data, record, 3)
    with Store.open(data) as store:
        with pytest.raises(CorruptError) as caught:
            get(store, b"one")
        assert store.extents.forget_damaged(store.env, caught.value) == 1
        put(store, frame_of(b"one"))
        assert get(store, b"one") == b"one"
        assert get(store, b"two") == b"two"


def test_what_is_sound_is_not_forgotten(store: Store) -> None:
    """An error may be of another copy of the bytes: a spool file says `extent`, and the stored extent is fine."""
    put(store, frame_of(b"one", b"two"))
    for error in (CorruptError("extent", name(b"one").hex(), "in a file"), CorruptError("frame", "1", "seen once")):
        assert store.extents.forget_damaged(store.env, error) == 0
    assert get(store, b"one") == b"one"
    assert get(store, b"two") == b"two"


# -- objects -------------------------------------------------------------------------------------------------


def test_an_object_has_the_size_that_was_asked_for(store: Store) -> None:
    digest = name(b"object")
    with store.env.write() as txn:
        store.extents.put_object(txn, digest, 3 * EXTENT_SIZE, [b"1" * 32] * 3)
    with store.env.read() as txn:
        assert store.extents.object_record(txn, digest, 3 * EXTENT_SIZE).runs == ((3, b"1" * 32),)
        assert store.extents.object_by_name(txn, digest).size == 3 * EXTENT_SIZE
        with pytest.raises(CorruptError, match="was expected"):
            store.extents.object_record(txn, digest, 2 * EXTENT_SIZE)
        with pytest.raises(CorruptError, match="not there"):
            store.extents.object_record(txn, name(b"other"), 2 * EXTENT_SIZE)
        assert store.extents.object_record(txn, digest, 0).runs == ()
        assert store.extents.object_record(txn, digest, EXTENT_SIZE).runs == ((1, digest),)


def test_the_extents_of_an_object_must_make_up_its_size(data: Path) -> None:
    Store.open(data).close()
    payload = (3 * EXTENT_SIZE).to_bytes(8, "big") + (2).to_bytes(4, "big") + b"1" * 32
    replace_record(data, Table.OBJECTS, b"k" * 32, payload + checksum(Table.OBJECTS, b"k" * 32, payload))
    with Store.open(data) as store, store.env.read() as txn, pytest.raises(CorruptError, match="contradicts"):
        store.extents.object_by_name(txn, b"k" * 32)


# -- the cache -----------------------------------------------------------------------------------------------


def test_the_cache_keeps_the_latest_up_to_its_limit() -> None:
    cache = FrameCache(3 * (100 + 300))  # each takes its bytes, and an index of one extent
    frames = [Frame.decode(number, memoryview(frame_of(noise(100, number)).payload)) for number in range(6)]
    for frame in frames[:3]:
        cache.put(frame)
    assert cache.get(0) is frames[0]
    cache.put(frames[3])
    assert [cache.get(number) is not None for number in range(4)] == [True, False, True, True]
    cache = FrameCache(3 * (100 + 300))  # each takes its bytes, and an index of one extent
    for frame in frames:
        cache.put(frame)
        cache.put(frame)
    kept = [number for number in range(6) if cache.get(number) is not None]
    assert kept == [3, 4, 5]


def test_a_frame_larger_than_the_cache_is_kept_alone() -> None:
    cache = FrameCache(10)
    frame = Frame.decode(1, memoryview(frame_of(noise(100)).payload))
    cache.put(frame)
    assert cache.get(1) is frame


def _totals(store: Store) -> Totals:
    with store.env.read() as txn:
        return Totals.load(txn)


def _live(store: Store) -> int:
    with store.env.read() as txn:
        return txn.count(Table.EXTENTS)
