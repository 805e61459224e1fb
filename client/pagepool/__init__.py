"""pagepool: one copy of every file's pages, for all containers on a node."""

from pagepool.errors import PagepoolError
from pagepool.version import __version__

__all__ = ["PagepoolError", "__version__"]
