"""Trees of images that are ready, and which repository has which: the authorisation of the routes below a tree.

A tree is made when somebody asks for an image's tree, or for that of its first layers, and kept in files that every
worker finds (`treecache`), and the last ones in memory. With it is noted, for each repository that asked, what it came
from: a repository has a tree as long as it has the manifest of such an origin, and `_CHECKED_S` longer; or as long as
there is a lease on the tree in this repository. A tree whose file was let go of is made again from its origin as long
as that note is there, or from the layers that a lease names; without either it has to be asked for once more.

Thread-safe.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING

from pagepool.content import measure_sharing
from pagepool.digest import Digest, blake3_raw
from pagepool.errors import (
    BusyError,
    InvalidError,
    LayerInvalidError,
    LimitError,
    NotFoundError,
    PendingError,
    TreeUnknownError,
)
from pagepool.image import TreeFile, encode_tree
from pagepool_service.images import READY, resolve_image
from pagepool_service.making import Makings
from pagepool_service.treeorigins import TreeOrigin

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Sequence

    from pagepool.content import Sharing
    from pagepool_service.images import ImageView
    from pagepool_service.store.store import Store
    from pagepool_service.treecache import TreeCache
    from pagepool_service.trees import Trees

_MOST_OPEN = 64
_MOST_OPEN_BYTES = 64 << 20
_MOST_LINKS = 4096
_CHECKED_S = 1.0
_MOST_WAITING = 8  # threads that wait for trees to be made again; they are those that also serve blobs


class TreeFiles:
    """The trees of one store.

    Args:
        trees: merges them.
        cache: files that the workers share; None to keep the last ones in memory only.
        makings: by which processes make each tree once; None: this one is the only one.
    """

    def __init__(self, store: Store, trees: Trees, cache: TreeCache | None, makings: Makings | None = None) -> None:
        self._makings = makings or Makings(None)
        self._store = store
        self._trees = trees
        self._cache = cache
        self._lock = threading.Lock()
        self._open: OrderedDict[bytes, TreeFile] = OrderedDict()
        self._made: OrderedDict[TreeOrigin, bytes] = OrderedDict()  # -> tree
        self._links: OrderedDict[tuple[str, bytes], tuple[TreeOrigin, float]] = OrderedDict()  # -> until when
        self._waiting = threading.Semaphore(_MOST_WAITING)

    def known(self, name: str, view: ImageView) -> TreeFile | None:
        """The tree of an image if it was made before; else None. Reads one file at most."""
        if view.state != READY:  # another repository may have the same manifest, and all layers of it
            return None
        tree = self._made.get(view.origin)
        if tree is None and self._cache is not None:
            tree = self._cache.tree_of(view.origin)
        found = None if tree is None else self._find(tree)
        if found is not None:
            self._note(name, found.digest, view.origin)
        return found

    def build(self, name: str, view: ImageView) -> TreeFile:
        """The tree of an image, made if it has to be. Blocks for as long as merging takes.

        Args:
            name: the repository it was found in.

        Raises:
            PendingError, LayerInvalidError, LimitError: as `Trees.tree`.
            CorruptError: what it is made of is damaged.
        """
        found = self.known(name, view)
        if found is not None:
            return found
        if view.state != READY:
            return self._build(name, view, lambda _: None)  # which says why not
        with self._makings.alone(view.origin.file_name) as making:
            return self.known(name, view) or self._build(name, view, making.step)

    def _build(self, name: str, view: ImageView, step: Callable[[int], object]) -> TreeFile:
        try:
            tree = self._trees.tree(view, step)
            step(1)
            raw = encode_tree(tree, self._runs)
        except (LayerInvalidError, LimitError) as error:
            if self._cache is not None and view.state == READY:
                self._cache.note_problem(view.origin, str(error))
            raise
        digest = blake3_raw(raw)
        found = self._find(digest)
        if found is None:
            found = self._keep(TreeFile(raw, digest))
            if self._cache is not None:
                self._cache.keep(digest, raw)
        if self._cache is not None:
            self._cache.note_tree(view.origin, digest)
        self._note(name, digest, view.origin)
        return found

    def resolve(self, name: str, tree: bytes, /) -> TreeFile:
        """The tree of that digest. Blocks.

        Raises:
            TreeUnknownError: it is none of this repository's, whether it is another's or nobody's, or it is not known
                to be any more.
            BusyError: it has to be made again, and too many are waiting for that already.
            CorruptError: what it is made of is damaged.
        """
        for origin in self._origins(name, tree):
            if not self._has(name, origin):
                continue
            found = self._find(tree) or self._remake(name, tree, origin)
            if found is not None:
                with self._lock:
                    self._remember(name, tree, origin)
                return found
        return self._leased(name, tree)

    def origin(self, name: str, tree: bytes, /) -> tuple[Digest, tuple[Digest, ...]]:
        """What a tree of a repository was made from: a manifest, and the diff_ids of its layers, lowest first. Blocks.

        Raises:
            TreeUnknownError: as `resolve`, or a layer of it is being read again.
        """
        for origin in self._origins(name, tree):
            view = self._look(name, origin)
            if view is None:
                continue
            layers = tuple(record.diff_id for record in (layer.record for layer in view.layers) if record is not None)
            if view.state == READY and all(layers):
                return origin.manifest, tuple(layer for layer in layers if layer is not None)
        lease = self._store.leases.find(name, tree)
        if lease is None:
            raise TreeUnknownError(Digest("blake3", tree))
        return lease.manifest, lease.layers

    def manifests(self, name: str, tree: bytes, /) -> list[Digest]:
        """The manifests of a repository all of whose layers became a tree, those that it still has. Blocks for
        milliseconds."""
        origins = [*self._origins(name, tree), *([] if self._cache is None else self._cache.origins(name, tree))]
        return list(dict.fromkeys(origin.manifest for origin in origins if self._is_image(name, origin)))

    def warm(self, name: str, tree: bytes, /) -> TreeFile | None:
        """The same if it was resolved a moment ago, else None. Takes microseconds."""
        link = self._links.get((name, tree))
        if link is None or link[1] < time.monotonic():
            return None
        return self._open.get(tree)

    def measure_sharing(self, present: Container[bytes]) -> Sharing:
        """How much of a pool is of several images: of those whose trees are here. Blocks for milliseconds for each."""
        return measure_sharing(() if self._cache is None else self._cache.trees(), present)

    def _runs(self, digest: bytes, size: int) -> Sequence[tuple[int, bytes]]:
        with self._store.env.read() as txn:
            return self._store.extents.object_record(txn, digest, size).runs

    def _has(self, name: str, origin: TreeOrigin) -> bool:
        try:
            self._store.registry.manifest(name, origin.manifest)
        except NotFoundError:
            return False
        return True

    def _look(self, name: str, origin: TreeOrigin) -> ImageView | None:
        """What a repository has of an origin; None if that is not there, or has never been: a note may be damaged."""
        try:
            return resolve_image(self._store, name, origin.manifest, first=origin.first)
        except (NotFoundError, InvalidError):
            return None

    def _is_image(self, name: str, origin: TreeOrigin) -> bool:
        """Whether it is a whole image that a repository has. A lease says only of how many layers its tree is."""
        if origin.first is None:
            return self._has(name, origin)
        view = self._look(name, origin)
        return view is not None and view.first is None

    def _origins(self, name: str, tree: bytes) -> list[TreeOrigin]:
        """Through which a repository had a tree."""
        link = self._links.get((name, tree))
        found = [] if link is None else [link[0]]
        if link is None or not self._has(name, link[0]):
            found += [] if self._cache is None else self._cache.origins(name, tree)
        return found

    def _leased(self, name: str, tree: bytes) -> TreeFile:
        """A tree that only a lease keeps.

        Raises:
            TreeUnknownError, BusyError, CorruptError: as `resolve`.
        """
        lease = self._store.leases.find(name, tree)
        found = None if lease is None else self._find(tree) or self._merge_again(tree, lease.layers)
        with self._lock:
            if lease is None or found is None:
                self._links.pop((name, tree), None)
                raise TreeUnknownError(Digest("blake3", tree))
            self._remember(name, tree, TreeOrigin(lease.manifest, len(lease.layers) or None))
        return found

    def _merge_again(self, tree: bytes, layers: Sequence[Digest]) -> TreeFile | None:
        """A tree whose file is gone, from its layers; None if they do not become it, or are not there any more."""
        if not self._waiting.acquire(blocking=False):
            raise BusyError("too many trees are being merged; try again")
        try:
            with self._store.env.read() as txn:
                found = [self._store.blobs.find_layer(txn, layer) for layer in layers]
            records = [record for record in found if record is not None]
            raw = encode_tree(self._trees.tree_of(records), self._runs) if len(records) == len(layers) else b""
        except LimitError:
            return None
        finally:
            self._waiting.release()
        if blake3_raw(raw) != tree:
            return None
        if self._cache is not None:
            self._cache.keep(tree, raw)
        return self._keep(TreeFile(raw, tree))

    def _remake(self, name: str, tree: bytes, origin: TreeOrigin) -> TreeFile | None:
        """A tree whose file is gone; None if this origin does not become it, or cannot be merged any more."""
        if not self._waiting.acquire(blocking=False):
            raise BusyError("too many trees are being merged; try again")
        try:
            view = self._look(name, origin)
            built = None if view is None else self.build(name, view)
        except PendingError as error:
            raise BusyError(f"a layer of {origin.manifest} is being read; try again") from error
        except (NotFoundError, LayerInvalidError, LimitError):
            return None
        finally:
            self._waiting.release()
        return built if built is not None and built.digest == tree else None

    def _find(self, tree: bytes) -> TreeFile | None:
        """One that is open, or in a file."""
        with self._lock:
            found = self._open.get(tree)
            if found is not None:
                self._open.move_to_end(tree)
                return found
        loaded = None if self._cache is None else self._cache.load(tree)
        return None if loaded is None else self._keep(loaded)

    def _keep(self, tree: TreeFile) -> TreeFile:
        with self._lock:
            self._open[tree.digest] = tree
            size = sum(len(kept.raw) for kept in self._open.values())
            while len(self._open) > 1 and (len(self._open) > _MOST_OPEN or size > _MOST_OPEN_BYTES):
                size -= len(self._open.popitem(last=False)[1].raw)
        return tree

    def _note(self, name: str, tree: bytes, origin: TreeOrigin) -> None:
        """Remember whose a tree is, and what it came from."""
        with self._lock:
            self._made[origin] = tree
            while len(self._made) > _MOST_LINKS:
                self._made.popitem(last=False)
            self._remember(name, tree, origin)
        if self._cache is not None:
            self._cache.link(name, tree, origin)

    def _remember(self, name: str, tree: bytes, origin: TreeOrigin) -> None:
        self._links[name, tree] = origin, time.monotonic() + _CHECKED_S
        self._links.move_to_end((name, tree))
        while len(self._links) > _MOST_LINKS:
            self._links.popitem(last=False)
