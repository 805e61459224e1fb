"""The bytes of objects: found in a pool, or fetched, verified and kept there."""

from pagepool.content.cache import ObjectCache, PartialFile, ReadablePool, SharedPool, WholeFile
from pagepool.content.tree import TreeContent

__all__ = ["TreeContent", "ObjectCache", "PartialFile", "ReadablePool", "SharedPool", "WholeFile"]
