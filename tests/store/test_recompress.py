"""Frames compressed again in their places: smaller, and nobody else sees a difference."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
from blake3 import blake3

from pagepool.errors import CorruptError
from pagepool.extents import EXTENT_SIZE, Frame, Role, encode_frame, recompress_frame
from pagepool_service.store.environment import Table
from pagepool_service.store.fsck import check_store
from pagepool_service.store.recompress import Recompressor, count_waiting
from pagepool_service.store.schema import u64
from pagepool_service.store.statistics import collect_totals
from pagepool_service.store.store import Store
from pagepool_service.store.totals import Totals
from tests.faults import flip_record, records
from tests.store.helpers import gzipped, ingest_all, make_tar, noise, push, read, text

if TYPE_CHECKING:
    from pathlib import Path

FILES = {f"usr/lib/{number}": text(60_000 + number, number) for number in range(40)} | {"noise": noise(300_000)}


def push_layer(store: Store) -> tuple[bytes, bytes]:
    """A plain layer, which is rebuilt from frames, and a gzip one that shares half of it."""
    plain = make_tar(FILES)
    other = gzipped(make_tar(dict(list(FILES.items())[::2]) | {"more": text(500_000, "more")}))
    push(store, plain)
    push(store, other)
    ingest_all(store)
    return plain, other


def run(store: Store) -> int:
    """Go through all of it. Returns the number of steps."""
    recompressor = Recompressor(store.env)
    return sum(1 for _ in itertools.takewhile(bool, iter(recompressor.step, None)))


def totals(store: Store) -> Totals:
    with store.env.read() as txn:
        return Totals.load(txn)


def put_frame(store: Store, *contents: bytes) -> int:
    """Store a frame. Returns its number."""
    frame = encode_frame([(blake3(content).digest(), content) for content in contents], Role.FILES)
    with store.env.write() as txn:
        number = Totals.load(txn).next_frame
        store.extents.put_frames(txn, [frame])
    return number


def stored(store: Store, number: int) -> bytes:
    with store.env.read() as txn:
        payload = txn.get(Table.FRAMES, u64(number))
        assert payload is not None
        return bytes(payload)


def test_less_is_stored_and_nothing_else_changes(data: Path) -> None:
    """The same frames with the same extents; index, objects and recipes as they were; totals right; blobs come back."""
    with Store.open(data) as store:
        pushed = push_layer(store)
        before = totals(store)
    changing = (Table.FRAMES, Table.META, Table.LINKS)  # a link is renewed when its blob is pushed again
    others = {table: records(data, table) for table in Table if table not in changing}
    heads = {record.key: Frame.decode(1, memoryview(record.value)[:-8]).index for record in records(data, Table.FRAMES)}
    with Store.open(data) as store:
        assert run(store)
        after = totals(store)
        for blob in pushed:
            assert read(store, push(store, blob)) == blob
        ingest_all(store)
        assert collect_totals(store)["frames_waiting"] == 0
    assert after.files_stored < 0.95 * before.files_stored
    assert (after.frames, after.extents, after.files_plain) == (before.frames, before.extents, before.files_plain)
    assert after.opaque_stored == before.opaque_stored
    assert {table: records(data, table) for table in others} == others
    again = {record.key: Frame.decode(1, memoryview(record.value)[:-8]).index for record in records(data, Table.FRAMES)}
    assert again == heads
    report = check_store(data)
    assert not report.problems
    assert not report.notes  # the totals were compared


def test_each_frame_is_looked_at_once(store: Store) -> None:
    """What came later is, and only that; one that does not get smaller is not tried again either."""
    first, second = put_frame(store, text(200_000)), put_frame(store, noise(200_000))
    looked: list[int] = []

    def compress(number: int, payload: bytes) -> bytes | None:
        looked.append(number)
        return recompress_frame(number, payload)

    recompressor = Recompressor(store.env, compress)
    assert recompressor.step()
    assert not recompressor.step()
    third = put_frame(store, text(200_000, "third"))
    with store.env.read() as txn:
        assert count_waiting(txn) == 1
    assert Recompressor(store.env, compress).step()
    assert not recompressor.step()
    assert looked == [first, second, third]


def test_stopped_it_leaves_everything_as_it_was(data: Path) -> None:
    """At any moment; and goes on from there."""
    with Store.open(data) as store:
        for seed in range(3):
            put_frame(store, text(50_000, seed))
    before = {table: records(data, table) for table in Table}
    for after in range(10):
        asked = itertools.count()
        with Store.open(data) as store:
            moved = Recompressor(store.env).step(lambda: next(asked) >= after)  # noqa: B023
        if moved:
            break
        assert {table: records(data, table) for table in Table} == before
    else:
        pytest.fail("it was never done")
    with Store.open(data) as store:
        run(store)
    assert not check_store(data).problems


@pytest.mark.parametrize("at", [1, 5000], ids=["role", "content"])
def test_a_damaged_frame_is_passed_over(data: Path, at: int) -> None:
    """As it is: the damage is still found where it is, whether a digest would tell of it or the checksum alone does.

    The others are compressed.
    """
    with Store.open(data) as store:
        numbers = [put_frame(store, text(200_000, seed)) for seed in range(3)]
    flip_record(data, records(data, Table.FRAMES)[1], at)
    damaged = records(data, Table.FRAMES)[1]
    sizes = [len(record.value) for record in records(data, Table.FRAMES)]
    with Store.open(data) as store:
        run(store)
        with store.env.read() as txn:
            assert count_waiting(txn) == 0
    after = records(data, Table.FRAMES)
    assert after[1] == damaged
    assert [len(record.value) < size for record, size in zip(after, sizes, strict=True)] == [True, False, True]
    assert [(problem.kind, problem.name) for problem in check_store(data).problems] == [("frame", str(numbers[1]))]


def test_a_frame_that_went_meanwhile_stays_away(store: Store) -> None:
    """Collection may take one away, or write another record, while it is compressed."""
    gone, changed, stays = (put_frame(store, text(100_000, seed)) for seed in range(3))
    other = encode_frame([(blake3(b"other").digest(), b"other")], Role.FILES).payload

    def compress(number: int, payload: bytes) -> bytes | None:
        with store.env.write() as txn:
            if number == gone:
                txn.delete(Table.FRAMES, u64(gone))
            elif number == changed:
                txn.put(Table.FRAMES, u64(changed), other)
        return recompress_frame(number, payload)

    size = len(stored(store, stays))
    assert Recompressor(store.env, compress).step()
    with store.env.read() as txn:
        assert not txn.has(Table.FRAMES, u64(gone))
    assert stored(store, changed) == other
    assert len(stored(store, stays)) < size


def test_a_damaged_position_starts_over(data: Path) -> None:
    """It costs time, and nothing else."""
    with Store.open(data) as store:
        put_frame(store, text(200_000))
        run(store)
    before = records(data, Table.FRAMES)
    position = next(record for record in records(data, Table.META) if record.key == b"recompressed")
    flip_record(data, position, 3)
    with Store.open(data) as store:
        assert run(store) == 1
    assert records(data, Table.FRAMES) == before
    assert not check_store(data).problems


def test_what_is_not_what_its_head_says_is_not_compressed() -> None:
    """A frame whose checksum is right and whose extent has another name."""
    content = text(100_000)
    frame = encode_frame([(blake3(b"another").digest(), content)], Role.FILES)
    with pytest.raises(CorruptError, match="extent"):
        recompress_frame(7, frame.payload)


@pytest.mark.parametrize("role", Role)
def test_no_frame_that_zstd_does_not_help(role: Role) -> None:
    """Nor one of a blob that is known to be compressed; one of files is tried, though the push found it no use."""
    content = noise(EXTENT_SIZE)
    assert recompress_frame(7, encode_frame([(blake3(content).digest(), content)], role).payload) is None
    content = text(EXTENT_SIZE)
    frame = encode_frame([(blake3(content).digest(), content)], role, compress=False)
    fresh = recompress_frame(7, frame.payload)
    if role is Role.OPAQUE:
        assert fresh is None
    else:
        assert fresh is not None
        assert Frame.decode(7, memoryview(fresh)).plain == content
        assert len(fresh) < len(content)
