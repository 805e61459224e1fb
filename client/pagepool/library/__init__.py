"""Images for programs: a client of a service, images, and overlays of them."""

from pagepool.library.changed import Changed
from pagepool.library.client import Client, default_budget, default_directory
from pagepool.library.image import Image
from pagepool.library.overlay import Overlay
from pagepool.library.upper import Upper

__all__ = ["Client", "Image", "Overlay", "Upper", "Changed", "default_budget", "default_directory"]
