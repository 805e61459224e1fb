"""Inputs out of inputs: bits, bytes, numbers at their limits, pieces moved, words of the format. The same for a seed.

It is what runs where atheris is not installed, and the fixed mutations of the tests. It looks at nothing that the
target does.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from tests.fuzz.target import LONGEST

_ODD = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, (1 << 63) - 1, (1 << 64) - 1)


class Mutator:
    """Makes inputs.

    Args:
        corpus: what they are made of; at least one.
        words: pieces of the format.
        seed: of the pseudo-random numbers.
    """

    def __init__(self, corpus: Sequence[bytes], words: Sequence[bytes], seed: int) -> None:
        self._corpus = list(corpus)
        self._words = list(words) or [b"\0"]
        self._chance = random.Random(seed)

    def next(self) -> bytes:
        """The next input."""
        data = bytearray(self._chance.choice(self._corpus))
        for _ in range(1 << self._chance.randrange(5)):
            self._chance.choice(_STEPS)(self, data)
        return bytes(data[:LONGEST])

    def _place(self, data: bytearray) -> int:
        return self._chance.randrange(len(data) + 1)

    def _flip(self, data: bytearray) -> None:
        if data:
            data[self._chance.randrange(len(data))] ^= 1 << self._chance.randrange(8)

    def _set(self, data: bytearray) -> None:
        if data:
            data[self._chance.randrange(len(data))] = self._chance.randrange(256)

    def _number(self, data: bytearray) -> None:
        size, at = self._chance.choice((1, 2, 4, 8)), self._place(data)
        value = (self._chance.choice(_ODD) + self._chance.randrange(-1, 2)) % (1 << 8 * size)
        data[at : at + size] = value.to_bytes(size, self._chance.choice(("little", "big")))

    def _remove(self, data: bytearray) -> None:
        at = self._place(data)
        del data[at : at + self._chance.randrange(1, 65)]

    def _insert(self, data: bytearray) -> None:
        at = self._place(data)
        data[at:at] = self._chance.randbytes(self._chance.randrange(1, 17))

    def _repeat(self, data: bytearray) -> None:
        at, size = self._place(data), self._chance.randrange(1, 257)
        data[at:at] = bytes(data[at : at + size]) * self._chance.choice((1, 1, 2, 16))
        del data[LONGEST:]

    def _word(self, data: bytearray) -> None:
        at, word = self._place(data), self._chance.choice(self._words)
        data[at : at + (len(word) if self._chance.random() < 0.5 else 0)] = word

    def _splice(self, data: bytearray) -> None:
        other = self._chance.choice(self._corpus)
        at, start = self._place(data), self._chance.randrange(len(other) + 1)
        data[at:] = other[start:]

    def _digit(self, data: bytearray) -> None:
        places = [at for at, byte in enumerate(data) if 0x30 <= byte <= 0x39]
        if places:
            data[self._chance.choice(places)] = self._chance.choice(b"0123456789-. e")


_STEPS: tuple[Callable[[Mutator, bytearray], None], ...] = (
    *(Mutator._flip, Mutator._set, Mutator._number, Mutator._remove, Mutator._insert, Mutator._repeat),
    *(Mutator._word, Mutator._splice, Mutator._digit),
)
