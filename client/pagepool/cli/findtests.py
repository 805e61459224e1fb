"""The conditions of ``pagepool find``, as ``find`` of GNU has them: parsed once, asked of every entry.

Pure functions.
"""

from __future__ import annotations

import fnmatch
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from pagepool.errors import InvalidError
from pagepool.image import Kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from pagepool.vfs import Attributes

    Condition = Callable[[str, Attributes], bool]
    """Asked of a path and its attributes."""

TYPES: Final = {
    "f": Kind.REGULAR,
    "d": Kind.DIRECTORY,
    "l": Kind.SYMLINK,
    "c": Kind.CHAR,
    "b": Kind.BLOCK,
    "p": Kind.FIFO,
    "s": Kind.SOCKET,
}
_UNITS: Final = {"": 512, "b": 512, "c": 1, "w": 2, "k": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_SIZE: Final = re.compile(r"([+-]?)([0-9]{1,18})([bcwkMG]?)")
_NUMBER: Final = re.compile(r"([+-]?)([0-9]{1,18})")
_MODE: Final = re.compile(r"([-/]?)([0-7]{1,4})")
_MOMENT: Final = re.compile(r"@(-?[0-9]{1,12})(?:\.([0-9]{1,9}))?")


class ConditionInvalidError(InvalidError):
    """A condition that cannot be understood."""

    what = "condition"


def by_name(pattern: str, *, fold: bool = False) -> Condition:
    """Whether the last component matches a shell pattern."""
    matches = _matcher(pattern, fold=fold)
    return lambda path, _: matches(path.rstrip("/").rpartition("/")[2] or "/")


def by_path(pattern: str) -> Condition:
    """Whether the whole path matches a shell pattern; ``*`` matches slashes, too."""
    matches = _matcher(pattern, fold=False)
    return lambda path, _: matches(path)


def by_type(letters: str) -> Condition:
    """Whether it is of one of some types: ``f``, ``d``, ``l``, ``c``, ``b``, ``p``, ``s``, with commas between."""
    wanted = letters.split(",")
    if not wanted or not set(wanted) <= TYPES.keys():
        raise ConditionInvalidError(letters, f"a type is one of {', '.join(TYPES)}")
    kinds = frozenset(TYPES[letter] for letter in wanted)
    return lambda _, found: found.kind in kinds


def by_size(text: str) -> Condition:
    """Whether it has that size, rounded up to the unit: ``10k``, ``+1M`` (more), ``-4096c`` (less)."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ConditionInvalidError(text, "a size is [+|-]NUMBER and one of c, k, M, G (512 bytes without)")
    unit = _UNITS[match[3]]
    return _compare(match[1], int(match[2]), lambda found: -(-found.size // unit))


def by_number(text: str, read: Callable[[Attributes], int]) -> Condition:
    """Whether a number is that one, more (``+N``) or less (``-N``)."""
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise ConditionInvalidError(text, "it is [+|-]NUMBER")
    return _compare(match[1], int(match[2]), read)


def by_mode(text: str) -> Condition:
    """Whether the permission bits are these (``644``), have all of these (``-111``), or any of these (``/6000``)."""
    match = _MODE.fullmatch(text)
    if match is None:
        raise ConditionInvalidError(text, "a mode is [-|/] and up to four octal digits")
    bits = int(match[2], 8)
    if match[1] == "-":
        return lambda _, found: found.mode & bits == bits
    if match[1] == "/":
        return lambda _, found: bool(found.mode & bits) or not bits
    return lambda _, found: found.mode == bits


def is_newer(moment_ns: int) -> Condition:
    """Whether its content changed after a moment."""
    return lambda _, found: found.mtime_ns > moment_ns


def parse_moment(text: str) -> int:
    """A moment in nanoseconds since 1970: ``2024-05-06``, ``2024-05-06T07:08:09+02:00``, or ``@SECONDS``. In UTC,
    unless it says otherwise."""
    if match := _MOMENT.fullmatch(text):
        fraction = int((match[2] or "").ljust(9, "0"))
        return int(match[1]) * 10**9 + (-fraction if match[1].startswith("-") else fraction)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConditionInvalidError(text, "a moment is an ISO date and time, or @SECONDS") from None
    delta = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - datetime(1970, 1, 1, tzinfo=UTC)
    return (delta.days * 86400 + delta.seconds) * 10**9 + delta.microseconds * 1000


def _matcher(pattern: str, *, fold: bool) -> Callable[[str], bool]:
    compiled = re.compile(fnmatch.translate(pattern), re.IGNORECASE if fold else 0)
    return lambda text: compiled.match(text) is not None


def _compare(sign: str, number: int, read: Callable[[Attributes], int]) -> Condition:
    if sign == "+":
        return lambda _, found: read(found) > number
    if sign == "-":
        return lambda _, found: read(found) < number
    return lambda _, found: read(found) == number
