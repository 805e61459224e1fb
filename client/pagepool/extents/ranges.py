"""Which extents of an object are meant, as text: ``0-3,7`` is the first four and the eighth. Pure."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from pagepool.errors import InvalidError, LimitError

if TYPE_CHECKING:
    from collections.abc import Iterable

_RANGE: Final = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", re.ASCII)


def format_ranges(numbers: Iterable[int]) -> str:
    """The text of some extents, in any order; none make an empty one."""
    ordered = sorted(set(numbers))
    if not ordered:
        return ""
    ends = [one for one, other in pairwise(ordered) if other != one + 1] + ordered[-1:]
    starts = ordered[:1] + [other for one, other in pairwise(ordered) if other != one + 1]
    return ",".join(
        f"{first}" if first == last else f"{first}-{last}" for first, last in zip(starts, ends, strict=True)
    )


def parse_ranges(text: str, count: int, most: int) -> tuple[int, ...]:
    """The extents that a text means, in order.

    Args:
        count: of the object's extents.
        most: how many may be meant.

    Raises:
        InvalidError: it is no such text, out of order, or of extents that the object does not have.
        LimitError: they are more than `most`.
    """
    found: list[int] = []
    for part in text.split(",") if text else ():
        match = _RANGE.fullmatch(part)
        if match is None:
            raise InvalidError(text[:80], "is no list of extents")
        first = int(match[1])
        last = first if match[2] is None else int(match[2])
        if last < first or last >= count or (found and first <= found[-1]):
            raise InvalidError(text[:80], f"is out of order, or beyond the {count} extents of the object")
        if len(found) + last - first >= most:
            raise LimitError("number of extents", len(found) + last - first + 1, most)
        found += range(first, last + 1)
    return tuple(found)
