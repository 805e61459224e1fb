"""Tree files in a directory, by digest: a cache of bounded size that any number of processes share.

A file may vanish at any moment, and is had again from where it came. A name that exists is whole, because files are
renamed into place. Nothing is synced: a file is compared with its digest when it is opened. The one used longest ago
goes first, removed by any process, beside any reader.

The owner's alone: nobody else may be able to change files that are mapped. A crash leaves temporary files (their names
begin with a dot), which are removed an hour later.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from typing import TYPE_CHECKING

from pagepool.errors import CorruptError, DigestMismatchError
from pagepool.image.treefile import TreeFile

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_BYTES = 256 << 20
"""Of all tree files together."""
_STALE_S = 3600.0
_TREE = re.compile(r"[0-9a-f]{64}")


class TreeStore:
    """The files. Nothing it does fails: what cannot be read is not there, what cannot be written is not kept.

    Args:
        directory: made when it is needed.
        max_bytes: most bytes of tree files.
        mapped: whether trees are mapped, so that processes share their pages, or read whole.
    """

    def __init__(self, directory: Path, max_bytes: int = MAX_BYTES, *, mapped: bool = False) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._mapped = mapped

    def load(self, digest: bytes) -> TreeFile | None:
        """A tree by its raw digest, compared with it; it counts as used."""
        path = self._directory / digest.hex()
        try:
            with contextlib.suppress(OSError):  # of others, or where nothing can be written
                os.utime(path)
            return TreeFile.open(path, digest) if self._mapped else TreeFile(path.read_bytes(), digest)
        except (CorruptError, DigestMismatchError):
            remove_file(path)  # it is had again
        except OSError:
            pass
        return None

    def keep(self, digest: bytes, raw: bytes) -> None:
        """Keep a tree file, unless it is larger than all of them may be; the ones used longest ago make room."""
        if len(raw) <= self._max_bytes and replace_file(self._directory / digest.hex(), raw):
            make_room(self._directory, self._max_bytes, self._directory / digest.hex())

    def trees(self) -> Iterator[TreeFile]:
        """All that are here, one after the other; the caller closes each."""
        for path in list_files(self._directory):
            if _TREE.fullmatch(path.name) and (found := self.load(bytes.fromhex(path.name))) is not None:
                yield found


def make_room(directory: Path, max_bytes: int, spared: Path) -> None:
    """Remove files named by digests, those used longest ago first, until the rest has at most so many bytes.

    Args:
        spared: the one that stays, whatever its size.
    """
    found: list[tuple[int, int, Path]] = []
    total = 0
    for path in list_files(directory):
        with contextlib.suppress(OSError):  # another worker removed it
            status = path.stat()
            if _TREE.fullmatch(path.name):
                found.append((status.st_mtime_ns, status.st_size, path))
                total += status.st_size
            elif path.name.startswith(".") and status.st_mtime < time.time() - _STALE_S:
                remove_file(path)
    for _, size, path in sorted(found):
        if total <= max_bytes:
            return
        if path != spared:
            remove_file(path)
            total -= size


def replace_file(path: Path, *parts: bytes | memoryview) -> bool:
    """Put a file of these parts into place, whole. Returns whether it could be done."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            for part in parts:
                file.write(part)
        temporary.rename(path)
    except OSError:
        remove_file(temporary)
        return False
    return True


def list_files(directory: Path) -> list[Path]:
    try:
        return [directory / entry.name for entry in os.scandir(directory) if entry.is_file(follow_symlinks=False)]
    except OSError:
        return []


def remove_file(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
