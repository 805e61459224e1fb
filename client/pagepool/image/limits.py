"""How much a layer may claim before it counts as a bomb.

A tar of a few kilobytes can claim terabytes (sparse maps) or millions of members. The limits are checked
while the tar is split, before anything is allocated or hashed for the claim.

Holes are neither stored nor sent, and cost 36 bytes whatever their length; but they are hashed, at 5 GB/s: BLAKE3
numbers what it hashes, so that zeros here are not what zeros there are. So what bounds the work that a small tar can
make is its logical size, and one file may have all of it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one layer.

    Args:
        max_member_size: logical bytes of one regular file, holes included.
        max_layer_size: logical bytes of all regular files together, holes included.
        max_members: members, of any kind.
        max_header_size: bytes of one extended header (PAX, long name, sparse map). Go's archive/tar, and so
            every container runtime, refuses more than 1 MiB.
        setting: what sets the limits of sizes, for who reads that a layer is over one.
    """

    max_member_size: int = 512 << 30
    max_layer_size: int = 512 << 30
    max_members: int = 5_000_000
    max_header_size: int = 1 << 20
    setting: str = ""

    def show(self, size: int) -> str:
        """One of the sizes, for people."""
        return f"{size} ({self.setting})" if self.setting else str(size)


# For what was already accepted under limits that may have been other ones.
UNLIMITED = Limits(1 << 63, 1 << 63, 1 << 63, 1 << 40)
