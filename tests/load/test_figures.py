"""Histograms, Zipf's law, mixes, measures: each beside what it stands for, computed the long way."""

from __future__ import annotations

import json
from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagepool.load.histogram import Histogram
from pagepool.load.measures import Measures, Mismatch
from pagepool.load.mix import Mix, MixInvalidError, parse_mix
from pagepool.load.zipf import Scatter, Zipf

_PERCENTILES = (1, 50, 90, 99, 99.9, 100)


def _exact(values: list[int], percent: float) -> int:
    """The nearest rank."""
    rank = max(1, -(-len(values) * percent // 100))
    return sorted(values)[int(rank) - 1]


@given(st.lists(st.integers(0, 1 << 41), min_size=1, max_size=300))
def test_percentiles_are_right_to_a_thirtieth(values: list[int]) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    for percent in _PERCENTILES:
        exact = _exact(values, percent)
        assert abs(histogram.percentile(percent) - exact) <= exact / 32
    assert (histogram.count, histogram.total_ns) == (len(values), sum(values))
    assert (histogram.least_ns, histogram.most_ns) == (min(values), max(values))


@given(st.lists(st.integers(0, 1 << 50), max_size=50), st.lists(st.integers(0, 1 << 50), max_size=50))
def test_two_histograms_together_are_one_of_all(first: list[int], second: list[int]) -> None:
    one, other, both = Histogram(), Histogram(), Histogram()
    for histogram, values in ((one, first), (other, second), (both, first + second)):
        for value in values:
            histogram.add(value)
    one.merge(Histogram.from_json(json.loads(json.dumps(other.to_json()))))
    assert one.to_json() == both.to_json()


@pytest.mark.parametrize(
    "change", [{"count": 2}, {"buckets": [[99999, 1]]}, {"buckets": [[0, -1]]}, {"buckets": 3}, {"buckets": [["x", 1]]}]
)
def test_a_histogram_that_contradicts_itself_is_refused(change: dict[str, object]) -> None:
    histogram = Histogram()
    histogram.add(5)
    with pytest.raises((ValueError, TypeError)):
        Histogram.from_json(histogram.to_json() | change)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 1.0000001, 1.7, 9.0])
@pytest.mark.parametrize("count", [1, 2, 50])
def test_ranks_are_drawn_by_zipfs_law(count: int, exponent: float) -> None:
    draws = 20_000
    zipf = Zipf(count, exponent, Random(7))
    found = Counter(zipf.draw() for _ in range(draws))
    weights = [(rank + 1) ** -exponent for rank in range(count)]
    assert set(found) <= set(range(count))
    for rank, weight in enumerate(weights):
        expected = draws * weight / sum(weights)
        assert abs(found[rank] - expected) <= 5 * expected**0.5 + 5, rank


@given(st.integers(1, 3000), st.integers())
def test_every_rank_has_a_place_of_its_own(count: int, seed: int) -> None:
    scatter = Scatter(count, seed)
    assert sorted(scatter.place(rank) for rank in range(count)) == list(range(count))
    assert Scatter(count, seed).place(count - 1) == scatter.place(count - 1)


def test_a_mix_names_what_is_done() -> None:
    assert parse_mix("", Mix()) == Mix()
    assert parse_mix(" read=2, start = 0.5 ", Mix()) == Mix(0.5, 2.0, 0.0, 0.0)
    assert parse_mix("push=1,read=0", Mix()).weights() == {"push": 1.0}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("sleep=1", "there is no 'sleep'"),
        ("read=1,read=2", "read twice"),
        ("read", "read needs a number"),
        ("read=x", "read needs a number"),
        ("read=-1", "read needs a number"),
        ("read=nan", "read needs a number"),
        ("read=inf", "read needs a number"),
        ("read=0,push=0", "nothing is done"),
    ],
)
def test_a_bad_mix_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(MixInvalidError, match=reason):
        parse_mix(text, Mix())


def test_measures_are_added_up_and_survive_json() -> None:
    first, second = Measures(), Measures()
    first.add("read", 1000, 4096, 0)
    first.add("read", 3000, 4096, 1)
    second.add("read", 2000, 100, 1)
    second.fail("push", ValueError("no"), 2)
    second.mismatch(Mismatch("app:1", "etc/x", 4096, "aa", "bb", "read", 2))
    second.hits, second.misses, second.checked_pages = 3, 1, 4
    first.merge(Measures.from_json(json.loads(json.dumps(second.to_json()))))
    assert (first.count, first.bytes, first.errors, first.mismatches) == (3, 8292, 1, 1)
    assert first.operations["read"].series == {0: [1, 4096, 0, 1000], 1: [2, 4196, 0, 3000]}
    assert first.operations["push"].series == {2: [0, 0, 1, 0]}
    assert first.failures == [("push", "ValueError: no")]
    assert str(first.wrong[0]) == "client 2, read: app:1:/etc/x at 4096: expected aa, found bb"
    assert (first.hits, first.misses, first.checked_pages) == (3, 1, 4)


def test_of_many_errors_the_first_are_kept_and_all_are_counted() -> None:
    measures = Measures()
    for number in range(1000):
        measures.fail("read", OSError(5, str(number)), 0)
        measures.mismatch(Mismatch("a", "b", number, "", "", "read"))
    assert (measures.errors, measures.mismatches, measures.kinds) == (1000, 1000, {"OSError": 1000})
    assert len(measures.failures) == len(measures.wrong) < 100
    measures.merge(Measures.from_json(measures.to_json()))
    assert (measures.mismatches, len({one.offset for one in measures.wrong})) == (2000, len(measures.wrong))
