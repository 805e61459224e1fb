"""The block map against a dict, and the slots against a set: any order of calls."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from pagepool.overlay.blockmap import HOLE, BlockMap
from pagepool.overlay.slots import SlotAllocator
from pagepool.vfs import PAGE_SIZE

_BLOCKS = st.one_of(st.integers(0, 12), st.integers(1020, 1030), st.sampled_from((2047, 2048, 10**6, 2**50)))
_COUNTS = st.one_of(st.integers(1, 9), st.sampled_from((1023, 1024, 1025, 2100)))
_CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("put"), _BLOCKS, _COUNTS),
        st.tuples(st.just("drop"), _BLOCKS, _COUNTS),
        st.tuples(st.just("truncate"), _BLOCKS, st.integers(0, PAGE_SIZE - 1)),
    ),
    max_size=12,
)


def slots_of(runs: list[tuple[int, int]]) -> list[int]:
    """Every slot of some runs."""
    return [start + place for start, count in runs for place in range(count)]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(base_end=st.sampled_from((0, 1, 5 * PAGE_SIZE, 1024 * PAGE_SIZE + 9, 1600 * PAGE_SIZE)), changes=_CHANGES)
def test_a_block_map_is_a_dict(base_end: int, changes: list[tuple[str, int, int]]) -> None:
    table, model, end, slot = BlockMap(base_end), dict[int, int](), base_end, 0
    for kind, block, count in changes:
        if kind == "put":
            expected = [model[at] for at in range(block, block + count) if model.get(at, HOLE) != HOLE]
            freed = table.put(block, slot, count)
            model.update((block + place, slot + place) for place in range(count))
            slot += count + 1
        elif kind == "drop":
            expected = [model.pop(at) for at in range(block, block + count) if at in model]
            freed = table.drop(block, block + count)
            model.update((at, HOLE) for at in range(block, min(block + count, -(-end // PAGE_SIZE))))
        else:
            size = block * PAGE_SIZE + count
            expected = [model.pop(at) for at in sorted(model) if at * PAGE_SIZE >= size]
            freed = table.truncate(size)
            end = min(end, size)
        assert sorted(slots_of(freed)) == sorted(found for found in expected if found != HOLE)
        compare(table, model, end)


def compare(table: BlockMap, model: dict[int, int], end: int) -> None:
    """The map holds what the model does, and counts it right."""
    assert table.base_end == end
    last = max(model, default=0) + 3
    shown: dict[int, int] = {}
    expected_at = 0
    for block, count, entry in table.runs(0, last):
        assert block == expected_at
        expected_at = block + count
        if entry == HOLE:
            shown.update((block + place, HOLE) for place in range(count))
        elif entry:
            shown.update((block + place, entry - 1 + place) for place in range(count))
    assert expected_at == last
    assert shown == model
    for block in (0, 1, 1023, 1024, *model):
        entry = table.get(block)
        assert (entry if entry in (0, HOLE) else entry - 1) == model.get(block, 0)
    private = [found for found in model.values() if found != HOLE]
    assert table.private == len(private)
    assert sorted(slots_of(table.slots())) == sorted(private)
    assert table.shadowed == sum(block * PAGE_SIZE < end for block in model)
    before = table.private, table.shadowed
    table.recount()
    assert (table.private, table.shadowed) == before


@settings(max_examples=150, deadline=None, derandomize=True)
@given(calls=st.lists(st.tuples(st.booleans(), st.integers(1, 40), st.integers(0, 10**6)), max_size=60))
def test_slots_are_handed_out_once(calls: list[tuple[bool, int, int]]) -> None:
    """Taken slots are free, given ones can be taken again, and the end is no higher than it must be."""
    slots, used = SlotAllocator(), list[int]()
    for take, count, seed in calls:
        if take or not used:
            taken = slots_of(slots.take(count))
            assert len(set(taken)) == count
            assert not set(taken) & set(used)
            used += taken
        else:
            start = used[seed % len(used)]
            run = 1
            while run < count and start + run in used:
                run += 1
            first, size = slots.give(start, run)
            assert first <= start < start + run <= first + size
            used = [slot for slot in used if not start <= slot < start + run]
        free = slots_of(slots.runs())
        assert sorted([*used, *free]) == list(range(slots.end))
        assert slots.free_count == len(free)
        assert slots.end == max(used, default=-1) + 1
