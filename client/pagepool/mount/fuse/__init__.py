"""The FUSE kernel protocol, and a file system served over it."""

from typing import TYPE_CHECKING

from pagepool.lazily import attach

if TYPE_CHECKING:
    from pagepool.mount.fuse.errnos import ERRNOS, to_errno
    from pagepool.mount.fuse.server import FuseServer
else:
    __getattr__, __dir__ = attach(
        __name__,
        {
            "errnos": "ERRNOS to_errno",
            "server": "FuseServer",
        },
    )

__all__ = ["ERRNOS", "FuseServer", "to_errno"]
