"""Extents as text."""

from __future__ import annotations

import pytest

from pagepool.errors import InvalidError, LimitError
from pagepool.extents import format_ranges, parse_ranges


@pytest.mark.parametrize(
    ("numbers", "text"), [((), ""), ((4,), "4"), ((0, 1, 2, 7), "0-2,7"), ((0, 2, 4, 5, 9), "0,2,4-5,9")]
)
def test_there_and_back(numbers: tuple[int, ...], text: str) -> None:
    assert format_ranges(reversed(numbers)) == text
    assert parse_ranges(text, 10, 10) == numbers


@pytest.mark.parametrize("text", [",", "a", "1-", "-1", "3-1", "1,1", "0-3,2", "10", "0-10", "1 ", "9" * 10, "\u0661"])
def test_what_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidError):
        parse_ranges(text, 10, 10)


def test_as_many_as_are_allowed() -> None:
    assert parse_ranges("0-3,7", 100, 5) == (0, 1, 2, 3, 7)
    for text in ("0-5", "0-3,7,9"):
        with pytest.raises(LimitError):
            parse_ranges(text, 100, 5)
