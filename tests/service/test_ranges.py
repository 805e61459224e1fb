"""Conditions and ranges of requests, where what asks means harm. What they mean is tested with objects and blobs."""

from __future__ import annotations

import pytest

from pagepool_service.routes.ranges import matches, parse_ranges


@pytest.mark.parametrize("start", ["", "1", "-", "1-", '""'])
def test_blanks_are_gone_through_once(start: str) -> None:
    """Else a header of 64 KiB would hold up a worker for a minute, and these for a quarter of an hour."""
    text = f"{start}{' ' * (1 << 18)}x"
    assert parse_ranges(f"bytes={text}", 10) is None
    assert not matches(text, '"tag"', weak=True)
    assert matches(text + '"tag"', '"tag"', weak=False)
