"""What a target is, and a reader that takes an input apart into the arguments of what is fuzzed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

LONGEST = 16 << 10
"""Bytes of the largest input: parsers that need more to fail are given it by their targets."""


@dataclass(frozen=True, slots=True)
class Target:
    """One parser, or several that read the same.

    Args:
        name: also of its directories below `corpus` and `regressions`.
        run: takes an input. What it raises beyond `errors` is a finding; so is an assertion about what it was given
            back, or more than `__main__`'s bounds of time and memory.
        errors: what the parser says that it raises.
        seeds: inputs that get past its first checks.
        words: pieces of the format, which mutation puts in.
    """

    name: str
    run: Callable[[bytes], None]
    errors: tuple[type[Exception], ...]
    seeds: Callable[[], Iterable[bytes]]
    words: tuple[bytes, ...] = ()

    def try_one(self, data: bytes) -> None:
        """Run it; what is documented is no error."""
        try:
            self.run(data)
        except self.errors:
            return


class Reader:
    """Takes bytes off the front of an input. What is not there is zeros."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def byte(self) -> int:
        """The next byte."""
        return self.take(1)[0]

    def number(self, size: int) -> int:
        """The next number of so many bytes, the least significant first."""
        return int.from_bytes(self.take(size), "little")

    def take(self, size: int) -> bytes:
        """The next bytes, exactly so many."""
        found = self._data[self._at : self._at + size]
        self._at += size
        return found.ljust(size, b"\0")

    def block(self) -> bytes:
        """As many of the bytes that follow as the next two say."""
        size = self.number(2)
        found = self._data[self._at : self._at + size]
        self._at += len(found)
        return found

    def blocks(self, most: int = 64) -> Iterator[bytes]:
        """Such blocks to the end."""
        for _ in range(most):
            if self._at >= len(self._data):
                return
            yield self.block()

    def rest(self) -> bytes:
        """All that is left."""
        found = self._data[self._at :]
        self._at = len(self._data)
        return found


def blocks(*parts: bytes) -> bytes:
    """An input that `Reader.blocks` takes apart into these."""
    return b"".join(len(part).to_bytes(2, "little") + part for part in parts)


def cut(data: bytes, size: int) -> Iterator[bytes]:
    """The same in pieces of so many bytes."""
    return (data[at : at + size] for at in range(0, len(data), size))
