"""EROFS metadata images of trees: what the kernel mounts below overlayfs (docs/format/erofs.md)."""

from pagepool.image.erofs.format import node_number
from pagepool.image.erofs.writer import INLINE_MAX, ErofsInfo, ReadObjects, write_erofs

__all__ = [
    "INLINE_MAX",
    "ErofsInfo",
    "ReadObjects",
    "node_number",
    "write_erofs",
]
