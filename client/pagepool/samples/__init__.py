"""Images made of files of this machine: what the demo shows, and what a load test reads."""

from pagepool.samples.images import FIRST, SECOND, Made, make_images, packed_size
from pagepool.samples.material import Material, collect

__all__ = ["FIRST", "SECOND", "Made", "make_images", "packed_size", "Material", "collect"]
