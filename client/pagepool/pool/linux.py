"""System calls, under the name that they had when only the pool used them; see `pagepool.linux`."""

from pagepool.linux import (
    BCACHEFS,
    BTRFS,
    OVERLAY,
    RAMFS,
    TMPFS,
    ZFS,
    boot_id,
    call,
    file_system,
    in_memory,
    is_full,
    syncfs,
)

__all__ = [
    "BCACHEFS",
    "BTRFS",
    "OVERLAY",
    "RAMFS",
    "TMPFS",
    "ZFS",
    "boot_id",
    "call",
    "file_system",
    "in_memory",
    "is_full",
    "syncfs",
]
