"""Overlays: a private, copy-on-write file system over an image, durable in a directory."""

from pagepool.overlay.changes import ChangeView, Range, Source
from pagepool.overlay.directory import OverlayInfo, discard, read_info
from pagepool.overlay.filesystem import OverlayFileSystem
from pagepool.overlay.storage import OverlayUnknownError

__all__ = [
    "OverlayFileSystem",
    "ChangeView",
    "Range",
    "Source",
    "OverlayInfo",
    "OverlayUnknownError",
    "discard",
    "read_info",
]
