"""A set of digests in bounded memory, which may take one for in it that is not, and never the other way round.

A Bloom filter. What collection keeps too much of because of it (25 in a million while there are 32 bits for each
digest, more beyond 16 million) has other places in the next cycle, and goes then.
"""

from __future__ import annotations

import secrets
import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

MOST_BITS: Final = 1 << 29
_FEWEST_BITS: Final = 1 << 20
_BITS_EACH: Final = 32
_PROBES: Final = 6
_HEAD = struct.Struct("<QQ")
_WORD: Final = (1 << 64) - 1


class Marks:
    """Digests of 16 bytes and more, uniform as BLAKE3 is.

    Args:
        expected: about how many.
        salt: tells apart the false finds of one cycle from those of another.
    """

    def __init__(self, expected: int, salt: int | None = None) -> None:
        wanted = min(MOST_BITS, max(_FEWEST_BITS, expected * _BITS_EACH))
        self._mask = (1 << (wanted - 1).bit_length()) - 1
        self._bits = bytearray((self._mask + 1) >> 3)
        self._salt = (secrets.randbits(64) if salt is None else salt) | 1

    def update(self, digests: Iterable[bytes]) -> None:
        """Add digests."""
        bits, mask, salt = self._bits, self._mask, self._salt
        for digest in digests:
            first, step = _HEAD.unpack_from(digest)
            place = ((first * salt) & _WORD) >> 24
            step = (((step * salt) & _WORD) >> 24) | 1
            for _ in range(_PROBES):
                at = place & mask
                bits[at >> 3] |= 1 << (at & 7)
                place += step

    def __contains__(self, digest: bytes) -> bool:
        bits, mask, salt = self._bits, self._mask, self._salt
        first, step = _HEAD.unpack_from(digest)
        place = ((first * salt) & _WORD) >> 24
        step = (((step * salt) & _WORD) >> 24) | 1
        for _ in range(_PROBES):
            at = place & mask
            if not bits[at >> 3] & (1 << (at & 7)):
                return False
            place += step
        return True
