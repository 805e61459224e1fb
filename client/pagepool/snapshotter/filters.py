"""Conditions on snapshots, in containerd's language: ``kind==active,labels."a.b"~=|^x|``.

A filter is selectors with commas between them, all of which must hold. A selector is a path of fields, and an operator
with a value (``==``, ``!=``, ``~=`` for a regular expression), or nothing: then the field must be there. Fields and
values may be quoted as strings of Go are; regular expressions also with ``/`` or ``|``. Of several filters one
must hold.

Source: containerd's package filters.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from pagepool.errors import InvalidError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Field = Callable[[tuple[str, ...]], str | None]
    """What an object has in a field; None if it has none."""

_QUOTED: Final = r'"(?:[^"\\\n]|\\.)*"'
_OTHER: Final = r"/(?:[^/\\\n]|\\.)*/|\|(?:[^|\\\n]|\\.)*\|"
_PART: Final = re.compile(rf"\s*(?:(?P<name>[A-Za-z0-9_]+)|(?P<quoted>{_QUOTED}))")
_OPERATOR: Final = re.compile(r"\s*(?P<operator>[=!~]+)")
_VALUE: Final = re.compile(rf"\s*(?:(?P<quoted>{_QUOTED})|(?P<other>{_OTHER})|(?P<plain>[^\s,\"/|=!~][^\s,]*))")
_OPERATORS: Final = ("==", "!=", "~=")
_ESCAPE: Final = re.compile(
    r"\\(?:x(?P<x>[0-9a-fA-F]{2})|u(?P<u>[0-9a-fA-F]{4})|U(?P<U>[0-9a-fA-F]{8})|(?P<octal>[0-7]{3})|(?P<one>.))"
)
_ESCAPED: Final = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "\\": "\\"}


class FilterInvalidError(InvalidError):
    """A condition that cannot be understood."""

    what = "filter"


class _Selector(NamedTuple):
    path: tuple[str, ...]
    operator: str  # "": the field must be there
    value: str
    pattern: re.Pattern[str] | None

    def matches(self, field: Field) -> bool:
        found = field(self.path)
        if self.operator == "==":
            return found == self.value
        if self.operator == "!=":
            return (found or "") != self.value
        if self.pattern is not None:
            return self.pattern.search(found or "") is not None
        return found is not None


def parse_filters(texts: Iterable[str]) -> Callable[[Field], bool]:
    """What tells whether an object is meant. Without any filter, or by an empty one, each is.

    Raises:
        FilterInvalidError: one of them cannot be understood.
    """
    parsed = [_Parser(text).parse() for text in texts]
    if not parsed:
        return lambda _: True
    return lambda field: any(all(selector.matches(field) for selector in selectors) for selectors in parsed)


class _Parser:
    """Reads one filter."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def parse(self) -> list[_Selector]:
        """Its selectors; none if it is empty."""
        if not self._text:
            return []
        found = [self._selector()]
        while self._take(","):
            found.append(self._selector())
        if self._text[self._at :].strip():
            raise self._error("something is left over")
        return found

    def _selector(self) -> _Selector:
        path = [self._part()]
        while self._take("."):
            path.append(self._part())
        match = _OPERATOR.match(self._text, self._at)
        if match is None:
            return _Selector(tuple(path), "", "", None)
        operator = match["operator"]
        if operator not in _OPERATORS:
            raise self._error(f"{operator} is none of ==, != and ~=")
        self._at = match.end()
        value = self._value(operator)
        return _Selector(tuple(path), operator, value, self._compile(value) if operator == "~=" else None)

    def _part(self) -> str:
        match = _PART.match(self._text, self._at)
        if match is None:
            raise self._error("a field is missing")
        self._at = match.end()
        return match["name"] or self._unquote(match["quoted"])

    def _value(self, operator: str) -> str:
        match = _VALUE.match(self._text, self._at)
        if match is None or (match["other"] is not None and operator != "~="):
            raise self._error("a value is missing")
        self._at = match.end()
        return match["plain"] or self._unquote(match["quoted"] or match["other"])

    def _compile(self, pattern: str) -> re.Pattern[str]:
        try:
            return re.compile(pattern)
        except re.error as error:
            raise self._error(f"{pattern} is no regular expression: {error}") from None

    def _take(self, character: str) -> bool:
        rest = self._text[self._at :]
        stripped = rest.lstrip()
        if not stripped.startswith(character):
            return False
        self._at += len(rest) - len(stripped) + 1
        return True

    def _unquote(self, text: str) -> str:
        quote, inner = text[0], text[1:-1]

        def put(match: re.Match[str]) -> str:
            if digits := match["x"] or match["u"] or match["U"]:
                return chr(int(digits, 16))
            if match["octal"]:
                return chr(int(match["octal"], 8))
            one = match["one"]
            if one == quote or one in _ESCAPED:
                return _ESCAPED.get(one, one)
            if quote != '"':
                return f"\\{one}"  # of the regular expression
            raise self._error(f"\\{one} is no escape sequence")

        try:
            return _ESCAPE.sub(put, inner)
        except (ValueError, OverflowError):
            raise self._error("it has a character that there is none of") from None

    def _error(self, reason: str) -> FilterInvalidError:
        return FilterInvalidError(self._text[:256], f"{reason}, at character {self._at + 1}")
