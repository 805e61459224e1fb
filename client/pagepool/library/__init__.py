"""Images for programs: a client of a service, images, and overlays of them."""

from typing import TYPE_CHECKING

from pagepool.lazily import attach

if TYPE_CHECKING:
    from pagepool.library.changed import Changed
    from pagepool.library.client import Client, default_budget, default_directory
    from pagepool.library.image import Image
    from pagepool.library.overlay import Overlay
    from pagepool.library.upper import Upper
else:
    __getattr__, __dir__ = attach(
        __name__,
        {
            "changed": "Changed",
            "client": "Client default_budget default_directory",
            "image": "Image",
            "overlay": "Overlay",
            "upper": "Upper",
        },
    )

__all__ = ["Client", "Image", "Overlay", "Upper", "Changed", "default_budget", "default_directory"]
