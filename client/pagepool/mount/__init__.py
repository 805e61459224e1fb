"""File systems as mounts of the kernel."""

from typing import TYPE_CHECKING

from pagepool.lazily import attach

if TYPE_CHECKING:
    from pagepool.mount.background import Opener, serve_in_background
    from pagepool.mount.device import MountOptions
    from pagepool.mount.holders import MountUnknownError, find_holders
    from pagepool.mount.mounts import Mount, mount_fuse, unmount
    from pagepool.mount.records import MountRecord, MountState, default_directory, list_mounts
else:
    __getattr__, __dir__ = attach(
        __name__,
        {
            "background": "Opener serve_in_background",
            "device": "MountOptions",
            "holders": "MountUnknownError find_holders",
            "mounts": "Mount mount_fuse unmount",
            "records": "MountRecord MountState default_directory list_mounts",
        },
    )

__all__ = [
    "Mount",
    "MountOptions",
    "MountRecord",
    "MountState",
    "MountUnknownError",
    "Opener",
    "default_directory",
    "find_holders",
    "list_mounts",
    "mount_fuse",
    "serve_in_background",
    "unmount",
]
