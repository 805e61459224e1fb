"""The lazy mount: a read-only FUSE file system, which overlayfs asks for objects that are not in the pool."""

from pagepool.node.lazy.mounting import LAZY_TYPE, mount_lazy, settle
from pagepool.node.lazy.server import LARGE, LazyOptions, LazyServer
from pagepool.node.lazy.source import ObjectSource, Served, Whole

__all__ = ["LARGE", "LAZY_TYPE", "LazyOptions", "LazyServer", "ObjectSource", "Served", "Whole", "mount_lazy", "settle"]
