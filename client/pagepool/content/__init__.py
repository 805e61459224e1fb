"""The bytes of objects: found in a pool, or fetched, verified and kept there."""

from pagepool.content.cache import ObjectCache, PartialFile, SharedPool, WholeFile

__all__ = ["ObjectCache", "PartialFile", "SharedPool", "WholeFile"]
