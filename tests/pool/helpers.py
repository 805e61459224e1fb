"""Objects for pools, and what is on the disk around them."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pagepool.digest import blake3_raw
from pagepool.extents import EXTENT_SIZE

if TYPE_CHECKING:
    from pagepool.pool import Partial, PoolStats

PAGE = 4096


@dataclass(frozen=True, slots=True)
class Thing:
    """Some content with its names."""

    data: bytes

    @property
    def digest(self) -> bytes:
        """Of all of it."""
        return blake3_raw(self.data)

    @property
    def size(self) -> int:
        """Its bytes."""
        return len(self.data)

    @property
    def parts(self) -> list[bytes]:
        """Its extents."""
        return [self.data[start : start + EXTENT_SIZE] for start in range(0, len(self.data), EXTENT_SIZE)]

    @property
    def extents(self) -> list[bytes]:
        """Their digests."""
        return [blake3_raw(part) for part in self.parts]


def thing(seed: int, size: int = PAGE) -> Thing:
    """Content that is the same for the same seed, and differs for others."""
    return Thing(random.Random(seed).randbytes(size))


def fill(partial: Partial, one: Thing) -> bool:
    """Write every extent that is missing; whether the object is whole then."""
    return all([partial.write(number, one.parts[number]) for number in partial.missing(0, len(one.parts))][-1:])


def object_path(pool: Path, digest: bytes) -> Path:
    """Where an object has to be: spelled out here, as the format page has it."""
    text = digest.hex()
    return pool / "objects" / text[:2] / text[2:]


def files_below(path: Path) -> list[Path]:
    """All regular files."""
    found = [Path(top, name) for top, _, names in os.walk(path) for name in names]  # much faster than Path.rglob
    return sorted(one for one in found if one.is_file())


def bytes_on_disk(pool: Path) -> int:
    """What the files that count against a budget really take."""
    directories = ("objects", "retired", "tmp")
    whole = sum(-(-found.stat().st_size // PAGE) * PAGE for name in directories for found in files_below(pool / name))
    return whole + sum(found.stat().st_blocks * 512 for found in (pool / "partial").glob("*.data"))


def check_account(pool: Path, stats: PoolStats) -> None:
    """What a pool says that it holds is what its directory holds."""
    assert stats.objects == len(files_below(pool / "objects"))
    assert stats.partials == len(list((pool / "partial").glob("*.data")))
    assert stats.used == bytes_on_disk(pool) + stats.pinned_bytes
    assert stats.used <= stats.budget + stats.pinned_bytes
    named = stats.bytes + stats.partial_bytes + stats.temporary_bytes + stats.retired_bytes
    assert stats.used == named + stats.pinned_bytes
