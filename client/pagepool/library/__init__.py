"""Images for programs: a client of a service, images, and overlays of them."""

from pagepool.library.client import Client, default_budget, default_directory
from pagepool.library.image import Image
from pagepool.library.overlay import Overlay

__all__ = ["Client", "Image", "Overlay", "default_budget", "default_directory"]
