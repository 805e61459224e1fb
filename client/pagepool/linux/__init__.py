"""System calls that Python does not wrap. Nothing here knows what they are used for."""

from pagepool.linux.calls import (
    BCACHEFS,
    BTRFS,
    OVERLAY,
    RAMFS,
    TMPFS,
    ZFS,
    boot_id,
    call,
    can_reflink,
    file_system,
    in_memory,
    is_full,
    sync_directory,
    syncfs,
    why_no_trusted_attributes,
    words_of,
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
    "can_reflink",
    "file_system",
    "in_memory",
    "is_full",
    "sync_directory",
    "syncfs",
    "why_no_trusted_attributes",
    "words_of",
]
