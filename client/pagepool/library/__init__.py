"""Images for programs: a client of a service, images, and overlays of them."""

from pagepool.library.client import Client, default_budget, default_directory
from pagepool.library.image import Image

__all__ = ["Client", "Image", "default_budget", "default_directory"]
