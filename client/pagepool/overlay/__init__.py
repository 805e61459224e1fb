"""Overlays: a private, copy-on-write file system over an image, durable in a directory; what it changed, as a layer."""

from typing import TYPE_CHECKING

from pagepool.lazily import attach

if TYPE_CHECKING:
    from pagepool.overlay.changes import ChangeView, Range, Source
    from pagepool.overlay.diff import Change, ChangeKind, Touched, plan_diff, plan_overlay
    from pagepool.overlay.directory import OverlayInfo, discard, read_info
    from pagepool.overlay.filesystem import OverlayFileSystem
    from pagepool.overlay.layertar import iter_layer
    from pagepool.overlay.storage import OverlayUnknownError
else:
    __getattr__, __dir__ = attach(
        __name__,
        {
            "changes": "ChangeView Range Source",
            "diff": "Change ChangeKind Touched plan_diff plan_overlay",
            "directory": "OverlayInfo discard read_info",
            "filesystem": "OverlayFileSystem",
            "layertar": "iter_layer",
            "storage": "OverlayUnknownError",
        },
    )

__all__ = [
    "OverlayFileSystem",
    "ChangeView",
    "Range",
    "Source",
    "OverlayInfo",
    "OverlayUnknownError",
    "discard",
    "read_info",
    "Change",
    "ChangeKind",
    "Touched",
    "plan_diff",
    "plan_overlay",
    "iter_layer",
]
