"""File systems as mounts of the kernel."""

from pagepool.mount.background import Opener, serve_in_background
from pagepool.mount.device import MountOptions
from pagepool.mount.mounts import Mount, MountUnknownError, find_holders, mount_fuse, unmount
from pagepool.mount.records import MountRecord, MountState, default_directory, list_mounts

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
