"""How the service did over time: a small file of samples, each at a place that its time decides.

    DATA/history      header, then 360 samples of every 10 s (an hour), then 2016 of every 5 min (a week)

A sample lies at its time, divided by the step, modulo the number of places; so nothing says where the ring begins, and
whoever writes needs to remember nothing. One process writes, the first worker; any reads. A sample has a checksum: one
that a crash has torn, or that another version wrote, is left out. Nothing is synced.

    header      8 bytes "PPHIST" CR LF, u32 version, u32 bytes of a sample, 48 zeros
    sample      u64 time (seconds since 1970), eleven u64 (`FIELDS`), u32 CRC-32 of all before, u32 zero

Numbers are little-endian. A field of 2^64-1 was not known.
"""

from __future__ import annotations

import os
import struct
import zlib
from typing import TYPE_CHECKING, Final, NamedTuple

from pagepool.image.treestore import replace_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FIELDS: Final = (
    *("hits", "misses", "cache_used", "cache_budget", "saved_bytes", "disk_bytes", "unique_bytes", "logical_bytes"),
    *("requests", "page_reads", "sent_bytes"),
)
"""Of a sample. Hits and misses are counted since the machine booted, requests and what follows since the service began:
what counts is by how much they grow."""

_SAMPLE: Final = struct.Struct(f"<Q{len(FIELDS)}QI4x")
_HEADER: Final = struct.Struct("<8sII48x")
_HEAD: Final = _HEADER.pack(b"PPHIST\r\n", 1, _SAMPLE.size)
_UNKNOWN: Final = (1 << 64) - 1


class Ring(NamedTuple):
    """Seconds from one sample to the next, number of them, and where they begin in the file."""

    step_s: int
    places: int
    start: int


_HOUR: Final = Ring(10, 360, _HEADER.size)
_WEEK: Final = Ring(300, 2016, _HEADER.size + 360 * _SAMPLE.size)
RINGS: Final = {"hour": _HOUR, "week": _WEEK}
_SIZE: Final = _WEEK.start + _WEEK.places * _SAMPLE.size

Sample = tuple[int, tuple[int | None, ...]]
"""A time, seconds since 1970, and the fields."""


class History:
    """The file. Nothing it does fails: what cannot be read is not there, what cannot be written is not kept.

    Args:
        data: the data directory.
    """

    def __init__(self, data: Path) -> None:
        self._path = data / "history"
        self._written: dict[Ring, int] = {}

    def add(self, now_s: float, values: dict[str, int | None]) -> None:
        """Keep a sample. One process does."""
        moment = int(now_s)
        fields = [
            _UNKNOWN if values.get(name) is None else min(int(values[name] or 0), _UNKNOWN - 1) for name in FIELDS
        ]
        record = _SAMPLE.pack(moment, *fields, 0)
        record = _SAMPLE.pack(moment, *fields, zlib.crc32(record[:-8]))
        if not self._prepare():
            return
        try:
            with self._path.open("r+b", buffering=0) as file:
                for ring in RINGS.values():
                    turn = moment // ring.step_s
                    if self._written.get(ring) != turn:
                        os.pwrite(file.fileno(), record, ring.start + turn % ring.places * _SAMPLE.size)
                        self._written[ring] = turn
        except OSError:
            return

    def samples(self, span: str, now_s: float, most: int) -> list[Sample]:
        """The samples of the last hour or week, oldest first.

        Args:
            span: a key of `RINGS`.
            most: how many at most; of more, each is the last of some that follow each other.
        """
        ring = RINGS[span]
        try:
            raw = self._path.read_bytes()
        except OSError:
            return []
        if len(raw) != _SIZE or raw[: _HEADER.size] != _HEAD:
            return []
        oldest = now_s - ring.step_s * ring.places
        found = sorted(sample for sample in _decode(raw, ring) if oldest < sample[0] <= now_s + ring.step_s)
        every = -(-len(found) // max(1, most))
        return found if every <= 1 else found[::-1][::every][::-1]

    def _prepare(self) -> bool:
        """Make the file, if it is not there or of another form."""
        try:
            with self._path.open("rb") as file:
                if file.read(_HEADER.size) == _HEAD and os.fstat(file.fileno()).st_size == _SIZE:
                    return True
        except FileNotFoundError:
            pass
        except OSError:
            return False
        self._written.clear()
        return replace_file(self._path, _HEAD, bytes(_SIZE - len(_HEAD)))


def _decode(raw: bytes, ring: Ring) -> Iterator[Sample]:
    for place in range(ring.places):
        start = ring.start + place * _SAMPLE.size
        moment, *values, checksum = _SAMPLE.unpack_from(raw, start)
        if moment and checksum == zlib.crc32(raw[start : start + _SAMPLE.size - 8]):
            yield moment, tuple(None if value == _UNKNOWN else value for value in values)
