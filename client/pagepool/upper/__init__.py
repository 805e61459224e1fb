"""Upper directories of the kernel's overlays over images: what is in them, and whether it may be there."""

from typing import TYPE_CHECKING

from pagepool.lazily import attach

if TYPE_CHECKING:
    from pagepool.upper.check import check_upper, read_upper
    from pagepool.upper.filesystem import UpperFileSystem
    from pagepool.upper.info import UpperInfo, UpperUnknownError, find_upper, read_upper_info
    from pagepool.upper.make import make_upper, make_work
    from pagepool.upper.scan import UpperNode, is_same, scan_upper
else:
    __getattr__, __dir__ = attach(
        __name__,
        {
            "check": "check_upper read_upper",
            "filesystem": "UpperFileSystem",
            "info": "UpperInfo UpperUnknownError find_upper read_upper_info",
            "make": "make_upper make_work",
            "scan": "UpperNode is_same scan_upper",
        },
    )

__all__ = [
    "make_upper",
    "make_work",
    "check_upper",
    "read_upper",
    "scan_upper",
    "is_same",
    "UpperNode",
    "UpperFileSystem",
    "UpperInfo",
    "UpperUnknownError",
    "find_upper",
    "read_upper_info",
]
