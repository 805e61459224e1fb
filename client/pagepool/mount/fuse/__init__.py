"""The FUSE kernel protocol, and a file system served over it."""

from pagepool.mount.fuse.errnos import ERRNOS, to_errno
from pagepool.mount.fuse.server import FuseServer

__all__ = ["ERRNOS", "FuseServer", "to_errno"]
