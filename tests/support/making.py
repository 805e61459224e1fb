"""A tree, or its EROFS image, that another process makes: its lock, held by the test."""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING

from pagepool.digest import Digest, blake3_raw
from tests.service.pushes import image_parts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path


class Held:
    """The lock, while it is held."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def step(self, count: int) -> None:
        """Tell of so many steps, unless it is released."""
        if self._descriptor >= 0:
            os.pwrite(self._descriptor, f"{count:32}".encode(), 0)

    def release(self) -> None:
        """Nobody makes it any more. Twice is once."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


@contextlib.contextmanager
def being_made(data: Path, name: str) -> Iterator[Held]:
    """Hold the lock, as long as the block lasts or until it is released.

    Args:
        data: the service's data directory.
        name: of what is made.
    """
    directory = data / "trees" / "making"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(directory / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    held = Held(descriptor)
    try:
        yield held
    finally:
        held.release()


def tree_name(files: Mapping[str, bytes]) -> str:
    """What the tree of an image of one layer of these files is called while it is made."""
    manifest, _, _ = image_parts(files)
    return blake3_raw(str(Digest.of(manifest)).encode()).hex()
