"""Reading JSON that a stranger wrote: strict, and never with an exception of Python's own.

`load_object` turns bytes into an `Object`; its methods fetch fields with the type they must have, or raise
the error chosen by the caller, with the path of the bad field (``layers[3].size``). A field that is null
counts as absent, because Go programs write null for empty lists; a field nobody asks for is ignored, as the
specifications ask.

Refused although `json.loads` would take them: duplicate names in one object (two readers could see two
different documents under one digest), NaN and infinities, invalid UTF-8 and lone surrogates in text that is
used.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from pagepool.digest import Digest
from pagepool.errors import InvalidError, ManifestInvalidError, PagepoolError

MakeError = Callable[[str, str], PagepoolError]
"""Makes the error for a bad field, given its path and the reason: an InvalidError class, say."""

MAX_SIZE = (1 << 63) - 1
"""The largest size that a descriptor can say: other implementations use a signed 64-bit integer."""

_SHOWN = 80


@dataclass(frozen=True, slots=True)
class Object:
    """A JSON object, the path it was found at, and what makes the errors about it."""

    fields: Mapping[str, Any]
    path: str
    error: MakeError = field(default=ManifestInvalidError)

    def has(self, name: str) -> bool:
        """Tell whether a field is there and not null."""
        return self.fields.get(name) is not None

    def string(self, name: str) -> str:
        """Return a text field; absent is an error."""
        return self._text(self._required(name), self._at(name))

    def optional_string(self, name: str, default: str = "") -> str:
        """Return a text field, or `default` if absent."""
        return self.string(name) if self.has(name) else default

    def integer(self, name: str, low: int = 0, high: int = MAX_SIZE) -> int:
        """Return an integer field within [low, high]; absent is an error."""
        value = self._required(name)
        if type(value) is not int:
            self.refuse(name, f"{_show(value)} is not an integer")
        if not low <= value <= high:
            self.refuse(name, f"{_show(value)} is not between {low} and {high}")
        return int(value)

    def digest(self, name: str) -> Digest:
        """Return a digest field; absent is an error."""
        return self._digest(self.string(name), self._at(name))

    def object(self, name: str) -> Object:
        """Return a field that is an object; absent is an error."""
        return self._child(self._required(name), self._at(name))

    def objects(self, name: str) -> Iterator[Object]:
        """Iterate over a field that is a list of objects; null is an empty list, absent is an error."""
        if name not in self.fields:
            self.refuse(name, "is missing")
        for index, value in enumerate(self._list(name)):
            yield self._child(value, f"{self._at(name)}[{index}]")

    def strings(self, name: str) -> tuple[str, ...]:
        """Return a field that is a list of texts; absent is empty."""
        return tuple(self._text(value, f"{self._at(name)}[{i}]") for i, value in enumerate(self._list(name)))

    def digests(self, name: str) -> tuple[Digest, ...]:
        """Return a field that is a list of digests; absent is empty."""
        return tuple(self._digest(text, f"{self._at(name)}[{i}]") for i, text in enumerate(self.strings(name)))

    def string_map(self, name: str) -> dict[str, str]:
        """Return a field that is an object of texts, such as annotations; absent is empty."""
        if not self.has(name):
            return {}
        inner = self.object(name)
        for key in inner.fields:
            self._text(key, f"{inner.path}: a name")
        return {key: inner._text(value, inner._at(key)) for key, value in inner.fields.items()}

    def keys(self, name: str) -> tuple[str, ...]:
        """Return the names in a field that is an object used as a set (``ExposedPorts``), sorted."""
        return tuple(sorted(self.object(name).fields)) if self.has(name) else ()

    def refuse(self, name: str, reason: str) -> NoReturn:
        """Raise the object's error, about the field `name`."""
        raise self.error(self._at(name), reason)

    def _at(self, name: str) -> str:
        shown = _shorten(name)
        return f"{self.path}.{shown}" if self.path else shown

    def _required(self, name: str) -> Any:
        value = self.fields.get(name)
        if value is None:
            self.refuse(name, "is missing" if name not in self.fields else "is null")
        return value

    def _list(self, name: str) -> list[Any]:
        value = self.fields.get(name)
        if value is None:
            return []
        if not isinstance(value, list):
            self.refuse(name, f"{_show(value)} is not a list")
        return value

    def _child(self, value: Any, path: str) -> Object:
        if not isinstance(value, dict):
            raise self.error(path, f"{_show(value)} is not an object")
        return Object(value, path, self.error)

    def _text(self, value: Any, path: str) -> str:
        if not isinstance(value, str):
            raise self.error(path, f"{_show(value)} is not a string")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise self.error(path, f"{_show(value)} holds half of a surrogate pair") from None
        return value

    def _digest(self, text: str, path: str) -> Digest:
        try:
            return Digest.parse(text)
        except InvalidError:
            raise self.error(path, f"{_show(text)} is not a digest of a supported algorithm") from None


def load_object(data: bytes, what: str, error: MakeError = ManifestInvalidError) -> Object:
    """Parse the bytes of a document that is an object.

    Args:
        data: UTF-8 without a byte order mark. The caller has limited its size.
        what: what the document is called in complaints about it as a whole.
        error: makes what is raised.

    Raises:
        error: not JSON, not an object, or one of the things this module refuses.
    """
    value = _load(data, what, error)
    if not isinstance(value, dict):
        raise error(what, f"{_show(value)} is not an object")
    return Object(value, "", error)


def load_objects(data: bytes, what: str, error: MakeError = ManifestInvalidError) -> list[Object]:
    """As `load_object`, for a document that is a list of objects."""
    value = _load(data, what, error)
    if not isinstance(value, list):
        raise error(what, f"{_show(value)} is not a list")
    return list(Object({what: value}, "", error).objects(what))


def _load(data: bytes, what: str, error: MakeError) -> Any:
    def refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for position, name in enumerate(names) if name in names[:position])
            raise error(what, f"the name {_show(twice)} comes twice in one object")
        return fields

    def refuse_constant(text: str) -> NoReturn:
        raise error(what, f"{text} is not JSON")

    try:
        # bytes() first: str() of other buffers is not their text.
        text = bytes(data).decode("utf-8")
        return json.loads(text, object_pairs_hook=refuse_duplicates, parse_constant=refuse_constant)
    except UnicodeDecodeError as bad:
        raise error(what, f"byte {bad.start} is not UTF-8") from None
    except ValueError as bad:  # JSONDecodeError, or an integer of more digits than Python converts
        raise error(what, f"not JSON: {_shorten(str(bad))}") from None
    except RecursionError:
        raise error(what, "nested too deeply") from None


def _show(value: Any) -> str:
    """A value as it may appear in a message: one short line, whatever was sent."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    if type(value) is int and value.bit_length() > 256:
        # repr() of such a number can exceed Python's limit of digits, and raise.
        return f"an integer of {value.bit_length()} bits"
    return _shorten(repr(value))


def _shorten(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
