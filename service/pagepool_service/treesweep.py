"""Remove files about trees of images that are gone: tree files, EROFS images, what leads to them, start-up profiles.

All but the profiles is a cache of bounded size, and goes by itself; here it goes with its image. A tree is there as
long as some manifest is that it was made from, or a lease on it lasts. What is younger than an hour stays: a tree is
written before what leads to it.

Any time, beside a service. What somebody has open stays open; what is wanted again is made again.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from typing import TYPE_CHECKING, Final

from pagepool.digest import Digest, blake3_raw
from pagepool.errors import InvalidError
from pagepool.image.treestore import list_files, remove_file
from pagepool_service.store.collect.catalogue import repositories
from pagepool_service.store.collect.marking import batches
from pagepool_service.store.environment import Table
from pagepool_service.treeorigins import TreeOrigin

if TYPE_CHECKING:
    from pathlib import Path

    from pagepool_service.store.store import Store

_YOUNG_S: Final = 3600.0
_HEX: Final = 64


def sweep_trees(store: Store, *, dry: bool = False, young_s: float = _YOUNG_S) -> Counter[str]:
    """Remove what is about trees that are gone. Blocks.

    Args:
        dry: remove nothing.
        young_s: files that were written less than so many seconds ago stay.

    Returns:
        how many files of each kind, and their bytes as `tree bytes`.
    """
    trees = store.data / "trees"
    manifests = {
        TreeOrigin(Digest.from_key(key)).file_name
        for batch in batches(store.env, Table.MANIFESTS, check=False)
        for key, _ in batch
    }
    names = {blake3_raw(name.encode()).hex() for name in repositories(store.env)}
    with store.env.read() as txn:
        alive = {lease.tree.hex() for lease, _ in store.leases.roots(txn)}
    links: dict[str, bool] = {}  # of a tree and a repository: whether one of its manifests is there
    for path in list_files(trees / "links"):
        links[path.name] = bool(_manifests(path) & manifests)
    alive |= {name[:_HEX] for name, living in links.items() if living}
    gone = {name[:_HEX] for name in links} - alive
    sweep = _Sweep(dry, time.time() - young_s)
    for path in list_files(trees / "images"):
        if path.name.partition("-")[0] not in manifests:  # what follows says of how many layers
            sweep.remove("tree notes", path)
    for path in list_files(trees / "links"):
        if not links.get(path.name, True):
            sweep.remove("tree notes", path)
    for kind, directory in (("trees", trees), ("EROFS images", trees / "erofs")):
        for path in list_files(directory):
            if len(path.name) == _HEX and path.name not in alive:
                sweep.remove(kind, path)
    for repository in (store.data / "profiles").glob("*"):
        for path in list_files(repository):
            # Of a tree that nothing is known of it stays: what leads to it may have been let go of.
            if path.name not in alive and (repository.name not in names or path.name in gone):
                sweep.remove("start-up profiles", path)
    return sweep.removed


class _Sweep:
    """Removes files, and counts them."""

    def __init__(self, dry: bool, before_s: float) -> None:
        self._dry = dry
        self._before_s = before_s
        self.removed: Counter[str] = Counter()

    def remove(self, kind: str, path: Path) -> None:
        """Remove one, unless it is young, or gone."""
        with contextlib.suppress(OSError):
            stat = path.stat()
            if stat.st_mtime > self._before_s:
                return
            self.removed[kind] += 1
            self.removed["tree bytes"] += stat.st_blocks * 512
            if not self._dry:
                remove_file(path)


def _manifests(path: Path) -> set[str]:
    """The manifests that a link names, as `images/` names them."""
    found: set[str] = set()
    with contextlib.suppress(OSError):
        for line in path.read_text("ascii", "replace").split("\n"):
            with contextlib.suppress(InvalidError):
                found.add(TreeOrigin(TreeOrigin.parse(line).manifest).file_name)
    return found
