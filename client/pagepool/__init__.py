"""pagepool: one copy of every file's pages, for all containers on a node.

with pagepool.Client("http://127.0.0.1:5000") as client:
    with client.image("app:1").open() as root:
        root.read_bytes("/etc/os-release")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pagepool.errors import PagepoolError
from pagepool.version import __version__

if TYPE_CHECKING:
    from pagepool.library import Client, Image, Overlay
    from pagepool.vfs import Rootfs

__all__ = ["Client", "Image", "Overlay", "Rootfs", "PagepoolError", "__version__"]

# Loaded when they are used: the command line and the service import this package, and need little of it.
_LAZY = dict.fromkeys(("Client", "Image", "Overlay"), "pagepool.library") | {"Rootfs": "pagepool.vfs"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
