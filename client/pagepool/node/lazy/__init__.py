"""The lazy mount: a read-only FUSE file system, which overlayfs asks for objects that are not in the pool."""

from pagepool.node.lazy.mounting import (
    LAZY_TYPE,
    STARTING_READ_AHEAD_KIB,
    mount_lazy,
    mount_lazy_again,
    set_read_ahead,
    settle,
)
from pagepool.node.lazy.server import LARGE, LazyOptions, LazyServer
from pagepool.node.lazy.source import InParts, ObjectSource, Served, Whole

__all__ = [
    "LARGE",
    "LAZY_TYPE",
    "STARTING_READ_AHEAD_KIB",
    "InParts",
    "LazyOptions",
    "LazyServer",
    "ObjectSource",
    "Served",
    "Whole",
    "mount_lazy",
    "mount_lazy_again",
    "set_read_ahead",
    "settle",
]
