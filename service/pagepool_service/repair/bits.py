"""Mend a record in which one bit is wrong.

Disks and memory that go bad mostly flip single bits. A record ends in 64 bits of BLAKE3 over its table, key and
payload, so the one change of a bit after which that is right is the record as it was: among the 131,072 bits of the
largest record that is tried, another one would be right by chance once in 2^47.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blake3 import blake3

from pagepool_service.store.environment import CHECKSUM_SIZE, checksum

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pagepool_service.store.environment import Table

LARGEST = 16 << 10  # bytes of a payload: a second's work


def is_sound(table: Table, key: bytes, value: bytes) -> bool:
    """Whether a record's checksum is right."""
    return len(value) >= CHECKSUM_SIZE and checksum(table, key, value[:-CHECKSUM_SIZE]) == value[-CHECKSUM_SIZE:]


def mend_record(table: Table, key: bytes, value: bytes) -> tuple[bytes, bytes] | None:
    """The key and payload of a record of which one bit was changed, wherever; None if that is not what happened.

    Args:
        value: with its checksum.
    """
    if len(value) < CHECKSUM_SIZE or len(value) > LARGEST:
        return None
    payload, wanted = value[:-CHECKSUM_SIZE], value[-CHECKSUM_SIZE:]
    got = checksum(table, key, payload)
    if (int.from_bytes(got, "big") ^ int.from_bytes(wanted, "big")).bit_count() <= 1:
        return key, payload
    begun = blake3(table.code + key)
    for changed in _flipped(payload):
        hasher = begun.copy()
        hasher.update(changed)
        if hasher.digest(CHECKSUM_SIZE) == wanted:
            return key, bytes(changed)
    for other in _flipped(key):
        if checksum(table, bytes(other), payload) == wanted:
            return bytes(other), payload
    return None


def _flipped(data: bytes) -> Iterator[bytearray]:
    """The same with each bit changed in turn; the same object each time."""
    changed = bytearray(data)
    for place in range(len(changed)):
        for bit in range(8):
            changed[place] ^= 1 << bit
            yield changed
            changed[place] ^= 1 << bit
