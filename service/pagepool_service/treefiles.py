"""Tree files of images that are ready, and which repository has which: the authorisation of the routes below a tree.

A tree file is made when somebody asks for an image's tree, and kept in the data directory, where every worker finds it.
Beside it lies, for each repository that asked, the digest of the manifest it came from; a repository has a tree as
long as it has that manifest. All of it is a cache: files may vanish at any time (the oldest do, beyond `_MOST_FILES`),
and come back when the image is asked for again. Nothing is durable; a name that exists is whole, because files are
renamed into place, and each is compared with its digest when it is opened. In a read-only store files stay in memory.

Thread-safe.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING

from pagepool.digest import Digest, blake3_raw
from pagepool.errors import CorruptError, DigestMismatchError, InvalidError, NotFoundError, TreeUnknownError
from pagepool.image import TreeFile, encode_tree

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pagepool_service.images import ImageView
    from pagepool_service.store.store import Store
    from pagepool_service.trees import Trees

_MOST_FILES = 256
_MOST_OPEN = 16
_MOST_LINKS = 4096
_CHECKED_S = 1.0  # how long a repository keeps a tree after its manifest is gone


class TreeFiles:
    """The tree files of one store.

    Args:
        trees: merges them.
        directory: for the files; None to keep them in memory.
    """

    def __init__(self, store: Store, trees: Trees, directory: Path | None) -> None:
        self._store = store
        self._trees = trees
        self._directory = directory
        self._lock = threading.Lock()
        self._open: OrderedDict[bytes, TreeFile] = OrderedDict()
        self._made: OrderedDict[Digest, bytes] = OrderedDict()  # manifest -> tree
        self._links: OrderedDict[tuple[str, bytes], tuple[Digest, float]] = OrderedDict()

    def build(self, name: str, view: ImageView) -> TreeFile:
        """The tree of an image, made if it has to be. Blocks for as long as merging takes.

        Args:
            name: the repository it was found in.

        Raises:
            PendingError, LayerInvalidError, LimitError: as `Trees.tree`.
            CorruptError: what it is made of is damaged.
        """
        made = self._made.get(view.digest)
        found = None if made is None else self._take(made)
        if found is None:
            raw = encode_tree(self._trees.tree(view), self._runs)
            digest = blake3_raw(raw)
            found = self._take(digest) or self._keep(digest, self._publish(digest, raw))
        with self._lock:
            self._made[view.digest] = found.digest
            while len(self._made) > _MOST_LINKS:
                self._made.popitem(last=False)
        self._link(name, found.digest, view.digest)
        return found

    def resolve(self, name: str, tree: bytes, /) -> TreeFile:
        """The tree of that digest. Blocks.

        Raises:
            TreeUnknownError: it is none of this repository's, whether it is another's or nobody's, or was let go of.
        """
        manifest = self._linked(name, tree)
        found = None
        if manifest is not None and self._has(name, manifest):
            found = self._take(tree) or self._load(tree)
        if manifest is None or found is None:
            self._links.pop((name, tree), None)
            raise TreeUnknownError(Digest("blake3", tree))
        with self._lock:
            self._remember(name, tree, manifest)
        return found

    def warm(self, name: str, tree: bytes, /) -> TreeFile | None:
        """The same if it was resolved a moment ago, else None. Takes microseconds."""
        link = self._links.get((name, tree))
        if link is None or link[1] < time.monotonic():
            return None
        return self._open.get(tree)

    def _runs(self, digest: bytes, size: int) -> Sequence[tuple[int, bytes]]:
        with self._store.env.read() as txn:
            return self._store.extents.object_record(txn, digest, size).runs

    def _has(self, name: str, manifest: Digest) -> bool:
        try:
            self._store.registry.manifest(name, manifest)
        except NotFoundError:
            return False
        return True

    def _take(self, digest: bytes) -> TreeFile | None:
        with self._lock:
            found = self._open.get(digest)
            if found is not None:
                self._open.move_to_end(digest)
            return found

    def _keep(self, digest: bytes, tree: TreeFile) -> TreeFile:
        with self._lock:
            self._open[digest] = tree
            while len(self._open) > _MOST_OPEN:
                self._open.popitem(last=False)
        return tree

    def _remember(self, name: str, tree: bytes, manifest: Digest) -> None:
        self._links[name, tree] = manifest, time.monotonic() + _CHECKED_S
        self._links.move_to_end((name, tree))
        while len(self._links) > _MOST_LINKS:
            self._links.popitem(last=False)

    # -- files -----------------------------------------------------------------------------------------------

    def _link(self, name: str, tree: bytes, manifest: Digest) -> None:
        with self._lock:
            self._remember(name, tree, manifest)
        if self._directory is not None:
            _write(self._link_path(self._directory, name, tree), str(manifest).encode())

    def _linked(self, name: str, tree: bytes) -> Digest | None:
        link = self._links.get((name, tree))
        if link is not None:
            return link[0]
        if self._directory is None:
            return None
        try:
            return Digest.parse(self._link_path(self._directory, name, tree).read_text("ascii"))
        except (OSError, UnicodeDecodeError, InvalidError):
            return None

    def _link_path(self, directory: Path, name: str, tree: bytes) -> Path:
        return directory / f"{tree.hex()}-{blake3_raw(name.encode()).hex()}"

    def _publish(self, digest: bytes, raw: bytes) -> TreeFile:
        if self._directory is None or not _write(self._directory / digest.hex(), raw):
            return TreeFile(raw, digest)
        _drop_oldest(self._directory)
        return self._load(digest) or TreeFile(raw, digest)

    def _load(self, digest: bytes) -> TreeFile | None:
        if self._directory is None:
            return None
        path = self._directory / digest.hex()
        try:
            # Not mapped: what happens to the file afterwards must not reach a client, or end this process.
            return self._keep(digest, TreeFile(path.read_bytes(), digest))
        except FileNotFoundError:
            return None
        except (CorruptError, DigestMismatchError):
            path.unlink(missing_ok=True)  # it is made again
            return None


def _write(path: Path, data: bytes) -> bool:
    """Put a file into place, whole. Returns False where that cannot be done: it is a cache."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        temporary.write_bytes(data)
        temporary.rename(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        return False
    return True


def _drop_oldest(directory: Path) -> None:
    """Remove the oldest files beyond the most that are kept. Who has one open keeps it."""
    with contextlib.suppress(OSError):  # another worker is at it
        files = sorted(directory.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        for path in files[: max(0, len(files) - 2 * _MOST_FILES)]:
            path.unlink(missing_ok=True)
