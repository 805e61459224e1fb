"""Bytes to compress that are the same on every machine, and layers as clients compress them."""

from __future__ import annotations

import random

from pagepool_service.encoders.frozen import FrozenEncoder, program_digest

SIZE = 5 << 18  # more than one piece of pgzip's


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


def encoded(tar: bytes, module: str, kind: str, level: int = -1) -> bytes:
    """A layer as a client of Go's compresses it."""
    program = program_digest(module)
    assert program is not None
    header = "" if kind == "zstd" else "1f8b080000096e8800ff"
    return b"".join(FrozenEncoder(module, program, kind, level, header).compress([tar]))
