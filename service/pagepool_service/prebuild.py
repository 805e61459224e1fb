"""Trees and their EROFS images, made before anybody asks for them: once a pushed image is ready.

    DATA/trees/wanted/HEX   a note: the repository and the digest of a manifest that was pushed, a line each

Workers leave a note with each manifest; the first maintenance process goes through them when it has no jobs, so that
neither pushes nor pulls wait for it. It is an effort, not a promise: what is not made ahead is made on request. A note
goes before its image is made: one that takes the process down with it is not tried again.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final

from pagepool.digest import Digest, blake3_raw
from pagepool.errors import InvalidError, PagepoolError
from pagepool.image.treestore import list_files, remove_file, replace_file
from pagepool_service.allocator import give_back
from pagepool_service.erofsimages import ErofsImages
from pagepool_service.images import PENDING, READY, resolve_image
from pagepool_service.making import Makings
from pagepool_service.treecache import TreeCache
from pagepool_service.treefiles import TreeFiles
from pagepool_service.trees import Trees

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pagepool_service.store.store import Store

log = logging.getLogger("pagepool.prebuild")

_MOST_NOTES: Final = 1024
_PENDING_S: Final = 5.0


class WantedImages:
    """The notes. Any number of threads and processes; nothing it does fails.

    Args:
        data: the service's data directory.
    """

    def __init__(self, data: Path) -> None:
        self._directory = data / "trees" / "wanted"

    def add(self, name: str, manifest: Digest) -> None:
        """Leave a note, unless there are too many."""
        if len(list_files(self._directory)) < _MOST_NOTES:
            note = f"{name}\n{manifest}\n".encode()
            replace_file(self._directory / blake3_raw(note).hex(), note)

    def notes(self) -> list[tuple[Path, str, Digest]]:
        """Those that are there; what is no note is removed."""
        found: list[tuple[Path, str, Digest]] = []
        for path in list_files(self._directory):
            if path.name.startswith("."):
                continue
            try:
                name, digest, _ = path.read_text("ascii").split("\n")
                found.append((path, name, Digest.parse(digest)))
            except OSError:
                continue
            except (ValueError, InvalidError):
                remove_file(path)
        return found


class Prebuilder:
    """Makes what the notes are about.

    Args:
        data: the service's data directory.
        clock: seconds that only go forward; tests replace it.
    """

    def __init__(self, store: Store, data: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._data = data
        self._wanted = WantedImages(data)
        self._makings = Makings(data / "trees" / "making")
        self._clock = clock
        self._pending: dict[Path, float] = {}  # notes on images that were not ready: when to look again

    def run_one(self) -> bool:
        """Make one image that is ready. Blocks for seconds, with a large one. Returns whether there was one."""
        now = self._clock()
        notes = self._wanted.notes()
        there = {path for path, _, _ in notes}
        self._pending = {path: due for path, due in self._pending.items() if path in there}
        for path, name, manifest in notes:
            if self._pending.get(path, now) > now:
                continue
            if self._try(path, name, manifest):
                return True
        return False

    def _try(self, path: Path, name: str, manifest: Digest) -> bool:
        try:
            view = resolve_image(self._store, name, manifest)
            if view.state == PENDING:
                self._pending[path] = self._clock() + _PENDING_S
                return False
            if self._makings.is_busy(view.origin.file_name):  # layers are not kept waiting for whoever makes it
                self._pending[path] = self._clock() + _PENDING_S
                return False
            remove_file(path)
            if view.state != READY:
                return False
            # Made anew each time, and let go of at once: what they keep in memory, half a kilobyte for each node, is of
            # no use here, and the image takes as much again. So does what reading layers has left behind.
            give_back()
            cache = TreeCache(self._data / "trees")
            tree = TreeFiles(self._store, Trees(self._store), cache, self._makings).build(name, view)
            give_back()
            if not self._makings.is_busy(tree.digest.hex()):
                ErofsImages(self._store, self._data / "trees" / "erofs", makings=self._makings).build(tree)
        except PagepoolError as error:
            remove_file(path)
            log.info("image %s@%s is not made ahead: %s", name, manifest, error)
            return False
        log.debug("image %s@%s: tree %s is made", name, manifest, tree.digest.hex())
        return True

    def look_again(self) -> None:
        """Look at all notes when called next: layers have been read since."""
        self._pending.clear()


def is_making(data: Path) -> bool:
    """Whether some process makes a tree or an image just now. What can wait does: it takes memory, and processors.

    Args:
        data: the service's data directory.
    """
    return Makings(data / "trees" / "making").is_any_busy()
