"""Writes down which objects of an image are opened through one mount in its first seconds."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from pagepool.image.treefile import TreeFile

SECONDS: Final = 10.0


def record_start(mount: int, tree: TreeFile, done: Callable[[list[bytes]], None]) -> None:
    """Begin to record; returns at once.

    Args:
        mount: a descriptor of the mount; stays the caller's.
        tree: what is mounted.
        done: called in the end, with the digests in the order in which they were opened first.
    """
