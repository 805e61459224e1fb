"""Running totals of the store, kept in the same transactions as what they count.

One record in `meta`. `fsck` counts everything anew and compares.
"""

from __future__ import annotations

import struct
from dataclasses import astuple, dataclass, fields
from typing import TYPE_CHECKING

from pagepool.errors import CorruptError
from pagepool.extents import Role
from pagepool_service.store.environment import Table

if TYPE_CHECKING:
    from pagepool_service.store.environment import Reader, Writer

_KEY = b"totals"


@dataclass(slots=True)
class Totals:
    """Counters, all u64: next free ids, and bytes and numbers by kind.

    `*_plain` are bytes before compression, `*_stored` bytes of frame records with their heads. `dead_bytes`
    are plain bytes in frames whose extent is indexed elsewhere.
    """

    next_frame: int = 1
    next_recipe: int = 1
    next_job: int = 1
    frames: int = 0
    extents: int = 0
    files_plain: int = 0
    files_stored: int = 0
    opaque_plain: int = 0
    opaque_stored: int = 0
    recipes_stored: int = 0
    dead_bytes: int = 0

    @classmethod
    def load(cls, txn: Reader) -> Totals:
        """Read them; a store that never wrote has the defaults.

        Raises:
            CorruptError: they are damaged, or missing from a store that has frames.
        """
        payload = txn.get(Table.META, _KEY)
        if payload is None:
            if txn.count(Table.FRAMES):
                raise CorruptError("totals", _KEY.decode(), "missing")
            return cls()
        if len(payload) != _struct().size:
            raise CorruptError("totals", _KEY.decode(), f"{len(payload)} bytes long")
        return cls(*_struct().unpack(payload))

    @property
    def stored(self) -> int:
        """Bytes of all frames."""
        return self.files_stored + self.opaque_stored

    def store(self, txn: Writer) -> None:
        """Write them back, in the transaction that changed what they count.

        None goes below 0. One that would was wrong before, as after a repair that was cut off: fsck says so, and nobody
        is kept from writing by it.
        """
        txn.put(Table.META, _KEY, _struct().pack(*(max(0, number) for number in astuple(self))))

    def count_frame(self, role: Role, plain: int, stored: int, extents: int, *, sign: int = 1) -> None:
        """Add a frame, or take it off again with sign=-1."""
        self.frames += sign
        self.extents += sign * extents
        if role is Role.OPAQUE:
            self.opaque_plain += sign * plain
            self.opaque_stored += sign * stored
        else:
            self.files_plain += sign * plain
            self.files_stored += sign * stored


def take_number(txn: Writer, name: str) -> int:
    """Take the next id of a kind: ``frame``, ``recipe`` or ``job``."""
    totals = Totals.load(txn)
    number: int = getattr(totals, f"next_{name}")
    setattr(totals, f"next_{name}", number + 1)
    totals.store(txn)
    return number


def _struct() -> struct.Struct:
    return struct.Struct(f">{len(fields(Totals))}Q")
