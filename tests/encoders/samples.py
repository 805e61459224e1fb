"""Bytes to compress that are the same on every machine."""

from __future__ import annotations

import random

SIZE = 5 << 19  # two and a half pieces of pgzip's


def mixed(size: int = SIZE, seed: int = 1) -> bytes:
    """Text, zeros and what cannot be compressed, in turns."""
    randomness = random.Random(seed)
    words = [
        bytes(randomness.choices(b"abcdefghijklmnopqrstuvwxyz", k=randomness.randrange(2, 12))) for _ in range(3000)
    ]
    made = bytearray()
    while len(made) < size:
        made += b" ".join(randomness.choices(words, k=4000)) + b"\n"
        made += bytes(randomness.randrange(20_000))
        made += randomness.randbytes(randomness.randrange(10_000))
    return bytes(made[:size])
