"""Mounts that the kernel serves by itself: EROFS for metadata, overlayfs over it, files of the pool for contents."""

from typing import TYPE_CHECKING

from pagepool.lazily import attach as attach_names

if TYPE_CHECKING:
    from pagepool.mount.kernel.erofs import ErofsWay, mount_erofs
    from pagepool.mount.kernel.listing import KernelMount, list_kernel_mounts, unmount_kernel
    from pagepool.mount.kernel.poolimage import POOL_IMAGE_MIN_SIZE, PoolImage
    from pagepool.mount.kernel.probing import Support, probe
    from pagepool.mount.kernel.stack import KIND, PREFIX, Layers, Way, attach, mount_overlay, open_overlay
else:
    __getattr__, __dir__ = attach_names(
        __name__,
        {
            "erofs": "ErofsWay mount_erofs",
            "listing": "KernelMount list_kernel_mounts unmount_kernel",
            "poolimage": "POOL_IMAGE_MIN_SIZE PoolImage",
            "probing": "Support probe",
            "stack": "KIND PREFIX Layers Way attach mount_overlay open_overlay",
        },
    )

__all__ = [
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
]
