"""The bytes of objects: found in a pool, or fetched, verified and kept there."""

from pagepool.content.cache import ObjectCache
from pagepool.content.held import PartialFile, ReadablePool, SharedPool, WholeFile
from pagepool.content.sharing import Sharing, measure_sharing
from pagepool.content.ticking import Ticker
from pagepool.content.tree import TreeContent

__all__ = [
    "Sharing",
    "measure_sharing",
    "Ticker",
    "TreeContent",
    "ObjectCache",
    "PartialFile",
    "ReadablePool",
    "SharedPool",
    "WholeFile",
]
