"""What images share with each other, computed out of their tree files.

Only trees that are made already are compared: pushed images get theirs once they are ready (`prebuild`). Tags of the
same tree are one image here. Everything blocks, keeps to a time limit, and says what it left off.

Bytes are of distinct content: a file that is twice in an image counts once. `object` bytes are of whole files that
both images have; `extent` bytes of pieces of 128 KiB that both have, which adds the parts of large files that differ
elsewhere. The pool keeps each object once, the store each extent once.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pagepool.digest import Digest
from pagepool.errors import NotFoundError, PagepoolError
from pagepool.oci import Index, Platform, parse_manifest, select_platform
from pagepool_service.seeing.contents import read_contents
from pagepool_service.treeorigins import TreeOrigin

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pagepool.image import TreeFile
    from pagepool_service.seeing.contents import ContentsCache, Sizes, TreeContents
    from pagepool_service.store.listings import DamagedTag, TaggedImage
    from pagepool_service.store.store import Store
    from pagepool_service.treecache import TreeCache

MOST_COMPARED = 1000
MOST_IN_MATRIX = 24
_LONGEST_S = 2.0
_MOST_NAMES = 8  # of one image, more are counted
_MOST_TAGS = 4000  # looked at


@dataclass(slots=True)
class _Image:
    """A tree, and the tags of it."""

    tree: bytes
    names: list[tuple[str, str]] = field(default_factory=list)
    tags: int = 0
    updated_ns: int = 0

    def add(self, image: TaggedImage) -> None:
        self.tags += 1
        self.updated_ns = max(self.updated_ns, image.updated_ns)
        if len(self.names) < _MOST_NAMES:
            self.names.append((image.repository, image.tag))

    def describe(self, contents: TreeContents) -> dict[str, Any]:
        return {
            "tree": str(Digest("blake3", self.tree)),
            "images": [{"name": name, "tag": tag} for name, tag in self.names],
            "tags": self.tags,
            "unique_bytes": contents.extents.total,
        }


@dataclass(slots=True)
class _Found:
    images: list[_Image]
    left_off: int


class SharingIndex:
    """Compares images. One comparison at a time; those who ask meanwhile wait.

    Args:
        trees: files, and which image has which.
    """

    def __init__(self, store: Store, trees: TreeCache, contents: ContentsCache) -> None:
        self._store = store
        self._trees = trees
        self._contents = contents
        self._lock = threading.Lock()
        self._pairs: dict[tuple[bytes, bytes], tuple[int, int]] = {}

    def matrix(self, limit: int) -> dict[str, Any]:
        """The images that were tagged last, and what each two of them share.

        Args:
            limit: most images.

        Returns:
            `images`, and `extent_bytes` and `object_bytes`: for each image a row with the bytes that it shares with
            each, with itself all of its own; and `left_off`, how many images were not compared.
        """
        with self._lock:
            deadline = time.monotonic() + _LONGEST_S
            found = self._find(deadline)
            found.images.sort(key=lambda image: -image.updated_ns)
            rows: list[tuple[_Image, TreeContents]] = []
            for image in found.images[:limit]:
                contents = self._contents.get(image.tree) if time.monotonic() < deadline or not rows else None
                if contents is not None:
                    rows.append((image, contents))
            pairs = self._compare_all(rows)
        return {
            "images": [image.describe(contents) for image, contents in rows],
            "object_bytes": [[objects for objects, _ in row] for row in pairs],
            "extent_bytes": [[extents for _, extents in row] for row in pairs],
            "left_off": found.left_off + len(found.images) - len(rows),
        }

    def neighbours(self, tree: TreeFile, limit: int, files: int) -> dict[str, Any]:
        """What one image holds, and which others share most with it.

        Args:
            limit: most others that are told.
            files: most of its largest files that are told.
        """
        with self._lock:
            mine = self._contents.get(tree.digest) or read_contents(tree)  # the file may not have been kept
            deadline = time.monotonic() + _LONGEST_S
            found = self._find(deadline)
            objects, extents = mine.objects.by_key(), mine.extents.by_key()
            others: list[tuple[int, int, _Image, TreeContents]] = []
            users = dict.fromkeys((file.key for file in mine.largest[:files]), 0)
            left_off = found.left_off
            for image in found.images:
                if image.tree == tree.digest:
                    continue
                contents = self._contents.get(image.tree) if time.monotonic() < deadline else None
                if contents is None:
                    left_off += 1
                    continue
                others.append((_common(extents, contents.extents), _common(objects, contents.objects), image, contents))
                for key in users.keys() & set(contents.objects.keys()) if users else ():
                    users[key] += 1
        others = [other for other in others if other[0]]
        others.sort(key=lambda other: (-other[0], other[2].names))
        return {
            "tree": str(Digest("blake3", tree.digest)),
            "files": mine.files,
            "file_bytes": mine.file_bytes,
            "objects": len(mine.objects),
            "object_bytes": mine.objects.total,
            "extents": len(mine.extents),
            "unique_bytes": mine.extents.total,
            "largest": [
                {"path": file.path.decode(errors="backslashreplace"), "size": file.size, "others": users[file.key]}
                for file in mine.largest[:files]
            ],
            "neighbours": [
                image.describe(contents)
                | {"object_bytes": objects, "extent_bytes": extents, "ratio": _ratio(extents, mine.extents.total)}
                for extents, objects, image, contents in others[:limit]
            ],
            "neighbours_left_off": max(0, len(others) - limit),
            "not_compared": left_off,
        }

    def _find(self, deadline: float) -> _Found:
        """The tagged images whose trees are made."""
        damaged: list[DamagedTag] = []
        tagged, more = self._store.registry.listings.images(_MOST_TAGS, on_damage=damaged.append)
        images: dict[bytes, _Image] = {}
        left_off = int(more) + len(damaged)
        for place, image in enumerate(tagged):
            if time.monotonic() > deadline:
                left_off += len(tagged) - place
                break
            tree = self._tree_of(image)
            if tree is None or (tree not in images and len(images) == MOST_COMPARED):
                left_off += 1
            else:
                images.setdefault(tree, _Image(tree)).add(image)
        return _Found(list(images.values()), left_off)

    def _tree_of(self, image: TaggedImage) -> bytes | None:
        """The tree that a tag leads to, of an index that for this machine; None if it has none yet."""
        tree = self._trees.tree_of(TreeOrigin(image.digest))
        if tree is not None:
            return tree
        try:
            stored = self._store.registry.manifest(image.repository, image.digest)
            document = parse_manifest(stored.raw, stored.media_type)
            if not isinstance(document, Index):
                return None
            return self._trees.tree_of(TreeOrigin(select_platform(document.manifests, Platform.local()).digest))
        except (NotFoundError, PagepoolError):
            return None

    def _compare_all(self, rows: Sequence[tuple[_Image, TreeContents]]) -> list[list[tuple[int, int]]]:
        """(bytes of objects, bytes of extents) that each two share."""
        known = {
            (first.tree, second.tree): self._pairs.get((first.tree, second.tree))
            for first, _ in rows
            for second, _ in rows
        }
        for place, (image, contents) in enumerate(rows):
            waiting = [(other, theirs) for other, theirs in rows[place:] if known[image.tree, other.tree] is None]
            objects, extents = (contents.objects.by_key(), contents.extents.by_key()) if waiting else ({}, {})
            for other, theirs in waiting:
                pair = _common(objects, theirs.objects), _common(extents, theirs.extents)
                known[image.tree, other.tree] = known[other.tree, image.tree] = pair
        self._pairs = {trees: pair for trees, pair in known.items() if pair is not None}
        return [[self._pairs[first.tree, second.tree] for second, _ in rows] for first, _ in rows]


def _common(mine: dict[int, int], theirs: Sizes) -> int:
    """Bytes of what both have."""
    return sum(map(mine.__getitem__, mine.keys() & set(theirs.keys())))


def _ratio(part: int, whole: int) -> float:
    return round(part / whole, 4) if whole else 0.0


def measure_saved(contents: Iterator[TreeContents], present: frozenset[int]) -> tuple[int, int, int]:
    """How often what a pool has is used: see `pagepool.content.Sharing`, which counts the same.

    Args:
        contents: of the trees that are looked at.
        present: keys of the objects that the pool has.

    Returns:
        trees; bytes of all their files whose content is in the pool; bytes of these contents, each once.
    """
    count = logical = 0
    unique: dict[int, int] = {}
    for found in contents:
        count += 1
        names = dict(zip(found.objects.keys(), found.names, strict=True))
        sizes = found.objects.by_key()
        here = present & names.keys()
        logical += sum(sizes[key] * max(1, names[key]) for key in here)
        unique.update((key, sizes[key]) for key in here)
    return count, logical, sum(unique.values())
