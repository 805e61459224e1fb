"""Figures per image: what each would take on its own, and what it shares.

Counted from the recipes of the layers: file content by object, so that a file which is in two images counts as
shared, whatever layers it came with. Parts of larger files that are shared (extents) are not counted here; the
totals of the store have them.

Memory is bounded whatever the store holds: the files of each layer are kept once, as 16 bytes each, and those of one
image are put together at a time. Beyond `MOST_FILES` in all layers together (about 170 MB while they are compared), or
`MOST_STEPS` files in all images, the figures that need them are left out.

Concurrency: `Statistics` computes one answer at a time, and those who asked meanwhile get the next one together.
"""

from __future__ import annotations

import logging
import threading
import time
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from pagepool.errors import CorruptError, NotFoundError
from pagepool.image import LITERAL
from pagepool.oci import Manifest
from pagepool_service.images import listed_blobs, walk_documents
from pagepool_service.store.environment import Table
from pagepool_service.store.schema import BlobRecord
from pagepool_service.store.statistics import collect_totals
from pagepool_service.trees import recipe_chunks

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pagepool.digest import Digest
    from pagepool_service.store.listings import DamagedTag, TaggedImage
    from pagepool_service.store.schema import LayerRecord
    from pagepool_service.store.store import Store

log = logging.getLogger("pagepool.statistics")

MOST_FILES = 1_000_000
MOST_STEPS = 20_000_000
MOST_DAMAGED = 100  # things that are named
_MOST_IMAGES = 1000  # more are not described one by one
_FRESH_S = 2.0
_SHARED_BY_SEVERAL = -1


class Statistics:
    """Answers with the figures of a store. Thread-safe; each call blocks while they are computed."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._found: dict[str, Any] | None = None
        self._version = 0
        self._began_s = 0.0

    def collect(self, asked_s: float) -> dict[str, Any]:
        """What `collect` finds, now or a moment ago.

        Args:
            asked_s: since when someone waits for it (`time.monotonic`): what was begun later is as good.
        """
        with self._lock:
            version, now = self._store.env.version(), time.monotonic()
            unchanged = version == self._version and now - self._began_s < _FRESH_S
            if self._found is None or not (unchanged or self._began_s >= asked_s):
                self._found = collect(self._store)
                self._version, self._began_s = version, now
            return self._found


def collect(store: Store) -> dict[str, Any]:
    """The figures of the store and of each tagged image, as JSON. Reads every recipe: seconds on a large store.

    Returns:
        `total`, see `collect_totals`, with the logical size of all images added; `images`, each with its bytes:
        `compressed_bytes` as pulled; `logical_bytes` of its layers' tars; `unique_bytes` of distinct file content
        in it; and of those `shared_bytes` that some other image has too. With `sharing_left_off`, no image has the
        last two: it would have taken too much to find them. `damaged`, if there is any: what could not be read. It is
        not counted, images of which something cannot be read are not among `images`, and one whose files cannot be read
        has none of the last two.
    """
    damage = Damage()
    contents = _Contents(store, damage)
    images, more = contents.describe_all()
    sharing = find_sharing(store, [image.recipes for image in images]) if contents.room >= 0 else None
    described = [image.entry for image in images]
    for entry, figures in zip(described, sharing or (), strict=False):
        if isinstance(figures, CorruptError):
            damage.add_image(entry["name"], entry["tag"], figures)
            entry["unique_bytes"] = entry["shared_bytes"] = None
        else:
            entry["unique_bytes"], entry["shared_bytes"] = figures
    total = {**collect_totals(store, damage.add), "images": len(described)}
    total["logical_bytes"] = sum(entry["logical_bytes"] for entry in described)
    total["images_compressed_bytes"] = sum(entry["compressed_bytes"] for entry in described)
    left_off = {"images_left_off": more, "sharing_left_off": sharing is None}
    said = {name: True for name, said in left_off.items() if said}
    return {"total": total, "images": described, **said, **({"damaged": damage.found} if damage.found else {})}


class Damage:
    """What could not be read while figures were added up."""

    def __init__(self) -> None:
        self.found: list[dict[str, str]] = []
        """As JSON, at most `MOST_DAMAGED`."""
        self.count = 0

    def add(self, error: CorruptError) -> None:
        """Note a damaged record."""
        self._add({"kind": error.kind, "name": error.name, "reason": str(error)})

    def add_image(self, repository: str, tag: str, error: CorruptError) -> None:
        """Note an image of which something cannot be read, or a tag that cannot."""
        self._add({"kind": "image", "name": f"{repository}:{tag}", "reason": str(error)})

    def _add(self, entry: dict[str, str]) -> None:
        log.error("not counted: the %s %s: %s", entry["kind"], entry["name"], entry["reason"])
        self.count += 1
        if len(self.found) < MOST_DAMAGED:
            self.found.append(entry)


class Summary(NamedTuple):
    """The images of a store, without what they share.

    Args:
        images: that are tagged, at most 1000.
        more: whether there are others.
        logical_bytes: of their layers' tars, each image counted fully.
        compressed_bytes: that pulling all of them would transfer.
    """

    images: int
    more: bool
    logical_bytes: int
    compressed_bytes: int


def summarise(store: Store, damage: Damage) -> Summary:
    """Add the images up. Reads manifests and records of layers, no recipes: a fraction of a second."""
    images, more = _Contents(store, damage).describe_all()
    entries = [image.entry for image in images]
    sums = (sum(entry[name] for entry in entries) for name in ("logical_bytes", "compressed_bytes"))
    return Summary(len(entries), more, *sums)


@dataclass(frozen=True, slots=True)
class _Described:
    """An image: its entry, and the recipes of its layers, each once and in order."""

    entry: dict[str, Any]
    recipes: Sequence[int]


class _Contents:
    """What the records say of images. Tags of the same manifest share what was found."""

    def __init__(self, store: Store, damage: Damage) -> None:
        self._store = store
        self._damage = damage
        self.room = MOST_FILES
        """How many more layers of images are remembered; below 0 their recipes have been left out."""
        self._known: dict[tuple[str, Digest], _Described] = {}

    def describe_all(self) -> tuple[list[_Described], bool]:
        """All tagged images, at most 1000, that can be read; and whether there are others."""

        def note(tag: DamagedTag) -> None:
            self._damage.add_image(tag.repository, tag.tag, tag.error)

        tagged, more = self._store.registry.listings.images(_MOST_IMAGES, on_damage=note)
        return [image for image in map(self._describe, tagged) if image is not None], more

    def _describe(self, image: TaggedImage) -> _Described | None:
        """An image, or None if it was deleted meanwhile, or cannot be read."""
        key = image.repository, image.digest
        try:
            found = self._known[key] if key in self._known else self._known.setdefault(key, self._read(*key))
        except NotFoundError:
            return None
        except CorruptError as error:
            self._damage.add_image(image.repository, image.tag, error)
            return None
        named = {"name": image.repository, "tag": image.tag, "digest": str(image.digest)}
        return _Described({**named, **found.entry}, found.recipes)

    def _read(self, repository: str, digest: Digest) -> _Described:
        entry = dict.fromkeys(("layers", "compressed_bytes", "logical_bytes", "file_bytes"), 0)
        blobs: dict[Digest, int] = {}
        recipes: set[int] = set()
        for _, document in walk_documents(self._store, repository, digest):
            if isinstance(document, Manifest):
                parts, layers = document.blobs, document.layers
            else:
                parts = layers = tuple(listed_blobs(document))
            blobs |= {blob.digest: blob.size for blob in parts}
            for descriptor in layers:
                layer = self._layer(descriptor.digest.key)
                if layer is not None:
                    entry["layers"] += 1
                    entry["logical_bytes"] += layer.plain_size
                    entry["file_bytes"] += layer.file_bytes
                    recipes.add(layer.recipe)
            del document, parts, layers
        entry["compressed_bytes"] = sum(blobs.values())
        self.room -= len(recipes)
        return _Described(entry, array("Q", sorted(recipes) if self.room >= 0 else ()))

    def _layer(self, key: bytes) -> LayerRecord | None:
        with self._store.env.read() as txn:
            payload = txn.get(Table.BLOBS, key)
            return None if payload is None else self._store.blobs.layer(txn, BlobRecord.decode(payload, key.hex()))


@dataclass(frozen=True, slots=True)
class _Files:
    """The objects of one recipe.

    Args:
        keys: the first eight bytes of each object's digest.
        values: of each, twice its bytes, and one more if several images have it.
    """

    keys: array[int]
    values: array[int]


def find_sharing(store: Store, images: Sequence[Sequence[int]]) -> list[tuple[int, int] | CorruptError] | None:
    """The bytes of distinct file content of each image, and how many of them some other image has too.

    Args:
        images: the recipes of each.

    Returns:
        for each image, an error if its recipes cannot be read; or None if there are more files than are compared.
        What an image has in common with such a one does not count as shared.
    """
    owners: dict[int, int] = {}
    for place, recipes in enumerate(images):
        for recipe in recipes:
            owners[recipe] = place if owners.get(recipe, place) == place else _SHARED_BY_SEVERAL
        if len(owners) > MOST_FILES:
            return None
    layers: dict[int, _Files] = {}
    damaged: dict[int, CorruptError] = {}
    left = MOST_FILES
    for recipe in owners:
        try:
            files = _read_files(store, recipe, left)
        except CorruptError as error:
            damaged[recipe] = error
            continue
        if files is None:
            return None
        layers[recipe] = files
        left -= len(files.keys)
    _mark_shared({recipe: owner for recipe, owner in owners.items() if recipe in layers}, layers)
    problems = [next((damaged[recipe] for recipe in recipes if recipe in damaged), None) for recipes in images]
    sound = (recipes for recipes, problem in zip(images, problems, strict=True) if problem is None)
    figures = _add_up(sound, layers)
    if figures is None:
        return None
    left_over = iter(figures)
    return [next(left_over) if problem is None else problem for problem in problems]


def _read_files(store: Store, recipe: int, most: int) -> _Files | None:
    """The objects of a recipe, with the bytes of each that the layer holds; None if there are more than `most`."""
    found: dict[int, int] = {}
    for ops in recipe_chunks(store, recipe):
        for op in ops:
            if op.kind != LITERAL:
                key = int.from_bytes(op.data[:8], "big")
                found[key] = max(found.get(key, 0), op.offset + op.size)
        if len(found) > most:
            return None
    return _Files(array("Q", found), array("Q", [2 * size for size in found.values()]))


def _mark_shared(owners: dict[int, int], layers: dict[int, _Files]) -> None:
    """Mark the objects that are in layers of several images."""
    users: dict[int, int] = {}
    for recipe, owner in owners.items():
        for key in layers[recipe].keys:
            if users.setdefault(key, owner) != owner:
                users[key] = _SHARED_BY_SEVERAL
    for files in layers.values():
        for place, key in enumerate(files.keys):
            if users[key] == _SHARED_BY_SEVERAL:
                files.values[place] |= 1


def _add_up(images: Iterable[Sequence[int]], layers: dict[int, _Files]) -> list[tuple[int, int]] | None:
    known: dict[tuple[int, ...], tuple[int, int]] = {}
    figures: list[tuple[int, int]] = []
    steps = 0
    for recipes in map(tuple, images):
        if recipes not in known:
            steps += sum(len(layers[recipe].keys) for recipe in recipes)
            if steps > MOST_STEPS:
                return None
            content: dict[int, int] = {}
            for recipe in recipes:
                content.update(zip(layers[recipe].keys, layers[recipe].values, strict=True))
            unique = sum(value >> 1 for value in content.values())
            known[recipes] = unique, sum(value >> 1 for value in content.values() if value & 1)
        figures.append(known[recipes])
    return figures
