"""What part of some content a request asks for: conditions and ranges, as RFC 9110 has them (sections 13 and 14).

Pure: headers in, a plan of the answer out. The content has a strong ETag and no date, so conditions on dates are left
aside. Ranges that overlap, or lie closer together than the head of a part takes, are sent as one; more than
`MOST_RANGES` are refused, as section 14.2 allows. A `Range` that cannot be read is ignored. Blobs are another matter,
since other people's clients read them: `separate_ranges`.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pagepool.errors import RangeInvalidError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MOST_RANGES = 256
MOST_SEPARATE_RANGES = 1024
"""Of a blob. As many as podman asks for at once when it pulls a part of a layer (zstd:chunked)."""
_LONGEST_NUMBER = 19  # digits
_APART = 80  # bytes that the head of a part takes, about
_UNIT = re.compile(r"\s*bytes\s*=", re.IGNORECASE)
# Blanks before what may be nothing are never given back ("*+"), and none are before a tag, which is searched for: else
# a header that is full of them would be gone through once for each.
_RANGE = re.compile(r"[ \t]*+([0-9]*)[ \t]*-[ \t]*+([0-9]*)[ \t]*")
_TAG = re.compile(r'(W/)?("[^"]*")[ \t]*(?:,|$)')

CONDITIONS = frozenset((b"range", b"if-range", b"if-none-match", b"if-match"))
"""The headers that decide; without any of them the answer is all of the content."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What to answer.

    Args:
        status: 200, 206, 304 or 412.
        parts: bytes `[start, end)` of the content, in the order to send them; none for 304 and 412.
        boundary: between several parts; "" if there is one.
    """

    status: int
    parts: tuple[tuple[int, int], ...] = ()
    boundary: str = field(default="")


def plan_answer(headers: Mapping[bytes, bytes], method: str, etag: str, size: int) -> Answer:
    """Decide what to answer.

    Args:
        headers: those of `CONDITIONS` that came; several of a name joined by commas.
        method: GET or HEAD, which has no ranges.
        etag: of the content, strong, with its quotes.
        size: of the content, bytes.

    Raises:
        RangeInvalidError: no range can be satisfied, or they are too many.
    """
    whole = Answer(200, ((0, size),))
    if not headers:
        return whole
    text = {name.decode(): value.decode("latin-1") for name, value in headers.items()}
    if "if-match" in text and not matches(text["if-match"], etag, weak=False):
        return Answer(412)
    if "if-none-match" in text and matches(text["if-none-match"], etag, weak=True):
        return Answer(304)
    if method != "GET" or "range" not in text or text.get("if-range", etag).strip() != etag:
        return whole
    ranges = parse_ranges(text["range"], size)
    if ranges is None:
        return whole
    parts = merge_ranges(ranges)
    return Answer(206, parts, new_boundary() if len(parts) > 1 else "")


def matches(text: str, etag: str, *, weak: bool) -> bool:
    """Whether a list of entity tags has one (RFC 9110, section 8.8.3.2).

    Args:
        weak: compare weakly: a weak tag of the same text is as good.
    """
    if text.strip() == "*":
        return True
    return any(tag == etag and (weak or not mark) for mark, tag in _TAG.findall(text))


def parse_ranges(text: str, size: int, most: int = MOST_RANGES) -> list[tuple[int, int]] | None:
    """The ranges `[start, end)` that can be satisfied, as they were asked for; None for a header to ignore.

    Raises:
        RangeInvalidError: none can be satisfied, one ends before it begins, or they are more than `most`.
    """
    unit = _UNIT.match(text)
    if unit is None:
        return None
    found: list[tuple[int, int]] = []
    specs = [spec for spec in text[unit.end() :].split(",") if spec.strip()]
    if not specs:
        return None
    for spec in specs:
        match = _RANGE.fullmatch(spec)
        if match is None or max(len(match[1]), len(match[2])) > _LONGEST_NUMBER or match[1] + match[2] == "":
            return None
        start, end = _bounds(match[1], match[2], size)
        if start < end:
            found.append((start, end))
        elif match[1] and match[2] and int(match[2]) < int(match[1]):
            raise RangeInvalidError(spec.strip(), "it ends before it begins")
    if len(specs) > most:
        raise RangeInvalidError(f"{len(specs)} ranges", f"at most {most} are answered")
    if not found:
        raise RangeInvalidError(text[:64], f"the content has {size} bytes")
    return found


def separate_ranges(text: str, size: int) -> list[tuple[int, int]] | None:
    """The ranges of a blob, each as it was asked for; None for all of it.

    Nothing is merged: podman counts the parts of the answer. So overlaps, and the heads of many small parts, may make
    an answer longer than the blob; then, and where they are too many, all of it is sent, which every client takes (RFC
    9110, section 14.2).

    Raises:
        RangeInvalidError: none can be satisfied, or one ends before it begins.
    """
    if text.count(",") >= MOST_SEPARATE_RANGES:
        return None
    found = parse_ranges(text, size, MOST_SEPARATE_RANGES)
    if found is None or len(found) == 1:
        return found
    return found if sum(end - start + _APART for start, end in found) <= size else None


def _bounds(first: str, last: str, size: int) -> tuple[int, int]:
    if not first:
        return max(0, size - int(last)), size
    return int(first), min(size, int(last) + 1) if last else size


def merge_ranges(ranges: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """The same bytes without overlaps or small gaps, in the order of what was asked for first."""
    merged: list[tuple[int, int, int]] = []  # place of the first that was asked for, start, end
    for start, end, place in sorted((start, end, place) for place, (start, end) in enumerate(ranges)):
        if merged and start <= merged[-1][2] + _APART:
            before = merged.pop()
            merged.append((min(before[0], place), before[1], max(before[2], end)))
        else:
            merged.append((place, start, end))
    return tuple((start, end) for _, start, end in sorted(merged))


def new_boundary() -> str:
    """What goes between parts."""
    return os.urandom(16).hex()


def part_head(boundary: str, media_type: str, start: int, end: int, size: int) -> bytes:
    """What goes before a part of a ``multipart/byteranges`` (RFC 9110, section 14.6)."""
    head = f"\r\n--{boundary}\r\nContent-Type: {media_type}\r\nContent-Range: bytes {start}-{end - 1}/{size}\r\n\r\n"
    return head.encode()


def parts_end(boundary: str) -> bytes:
    """What goes behind the last part."""
    return f"\r\n--{boundary}--\r\n".encode()
