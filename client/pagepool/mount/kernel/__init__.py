"""Mounts that the kernel serves by itself: EROFS for metadata, overlayfs over it, files of the pool for contents."""

from pagepool.linux.quota import QuotaUsage, project_of, quota_usage, set_quota
from pagepool.mount.kernel.erofs import ErofsWay, mount_erofs
from pagepool.mount.kernel.listing import KernelMount, list_kernel_mounts, unmount_kernel
from pagepool.mount.kernel.poolimage import MIN_SIZE as POOL_IMAGE_MIN_SIZE
from pagepool.mount.kernel.poolimage import PoolImage
from pagepool.mount.kernel.probe import Support, probe
from pagepool.mount.kernel.stack import KIND, PREFIX, Layers, Way, attach, mount_overlay, open_overlay
from pagepool.upper import check_upper, make_upper, make_work

__all__ = [
    "make_upper",
    "make_work",
    "check_upper",
    "Support",
    "probe",
    "ErofsWay",
    "mount_erofs",
    "Layers",
    "PREFIX",
    "KIND",
    "Way",
    "open_overlay",
    "attach",
    "mount_overlay",
    "KernelMount",
    "list_kernel_mounts",
    "unmount_kernel",
    "POOL_IMAGE_MIN_SIZE",
    "PoolImage",
    "QuotaUsage",
    "set_quota",
    "quota_usage",
    "project_of",
]
