"""What can be done with an overlay's directory without opening it: tell what it is, and remove it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pagepool.errors import InvalidError
from pagepool.overlay import arena as arenas
from pagepool.overlay import journal as journals
from pagepool.overlay.journal import parse_header, sync_directory
from pagepool.overlay.storage import FILES, OverlayUnknownError, lock_directory

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_MOST_HEADER = 1 << 20


@dataclass(frozen=True, slots=True)
class OverlayInfo:
    """What an overlay says of itself.

    Args:
        tree: digest of the tree that it lies over.
        info: what was noted when it was made.
        journal_size: bytes that its journal takes on disk.
        blocks_size: bytes that its private blocks take on disk.
    """

    tree: bytes
    info: Mapping[str, object]
    journal_size: int
    blocks_size: int


def read_info(directory: Path) -> OverlayInfo:
    """What an overlay is. It may be open meanwhile.

    Raises:
        OverlayUnknownError: the directory holds none.
        CorruptError, StoreFormatError: its journal does not begin as one that is known here.
    """
    path = directory / journals.NAME
    try:
        with path.open("rb") as file:
            header, _ = parse_header(file.read(_MOST_HEADER), path)
            journal_size = os.fstat(file.fileno()).st_blocks * 512
        blocks_size = (directory / arenas.NAME).stat().st_blocks * 512
    except (FileNotFoundError, NotADirectoryError) as error:
        raise OverlayUnknownError(directory) from error
    return OverlayInfo(header.tree, header.info, journal_size, blocks_size)


def discard(directory: Path) -> None:
    """Remove an overlay, with its directory. After a crash in the middle it may be removed again.

    Raises:
        OverlayUnknownError: there is no such directory.
        BusyError: it is open.
        InvalidError: the directory holds something else.
        OSError: it cannot be removed.
    """
    descriptor = lock_directory(directory)
    try:
        others = set(os.listdir(directory)) - FILES  # noqa: PTH208 (names are all it is about)
        if others:
            raise InvalidError(str(directory), f"it holds more than an overlay ({min(others)!r})")
        # The journal first: a directory without one is no overlay, whatever blocks are left in it.
        for name in (journals.NAME, *sorted(FILES - {journals.NAME})):
            (directory / name).unlink(missing_ok=True)
        directory.rmdir()
        sync_directory(directory.absolute().parent)
    finally:
        os.close(descriptor)
