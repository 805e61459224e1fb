"""The node: the one process of a machine that mounts images by the kernel, and fetches what containers open."""

from pagepool.node.client import NodeClient, default_places
from pagepool.node.places import NodePlaces

__all__ = ["NodeClient", "NodePlaces", "default_places"]
