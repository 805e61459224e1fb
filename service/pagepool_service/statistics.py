"""Figures per image: what each would take on its own, and what it shares.

Counted from the recipes of the layers: file content by object, so that a file which is in two images counts as
shared, whatever layers it came with. Parts of larger files that are shared (extents) are not counted here; the
totals of the store have them.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from pagepool.errors import NotFoundError
from pagepool.image import LITERAL, decode_chunk
from pagepool.oci import Index, Manifest, parse_manifest

from pagepool_service.store.environment import Table
from pagepool_service.store.schema import BlobRecord, recipe_key
from pagepool_service.store.statistics import collect_totals

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pagepool_service.store.registry import TaggedImage
    from pagepool_service.store.schema import LayerRecord
    from pagepool_service.store.store import Store

_MOST_IMAGES = 1000  # more are not described one by one


def collect(store: Store) -> dict[str, Any]:
    """The figures of the store and of each tagged image, as JSON. Reads every recipe: seconds on a large store.

    Returns:
        `total`, see `collect_totals`, with the logical size of all images added; `images`, each with its bytes:
        `compressed_bytes` as pulled; `logical_bytes` of its layers' tars; `unique_bytes` of distinct file content
        in it; and of those `shared_bytes` that some other image has too.
    """
    images, more = store.registry.list_images(_MOST_IMAGES)
    contents = Contents(store)
    described = [contents.describe(image) for image in images]
    users = Counter(digest for objects in contents.by_image for digest in objects)
    for entry, objects in zip(described, contents.by_image, strict=True):
        entry["unique_bytes"] = sum(objects.values())
        entry["shared_bytes"] = sum(size for digest, size in objects.items() if users[digest] > 1)
    total = {**collect_totals(store), "images": len(images)}
    total["logical_bytes"] = sum(entry["logical_bytes"] for entry in described)
    total["images_compressed_bytes"] = sum(entry["compressed_bytes"] for entry in described)
    return {"total": total, "images": described, **({"images_left_off": True} if more else {})}


class Contents:
    """The objects of images; each layer's recipe is read once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._layers: dict[int, dict[bytes, int]] = {}
        self.by_image: list[dict[bytes, int]] = []

    def describe(self, image: TaggedImage) -> dict[str, Any]:
        """What the records say of an image; its objects are added to `by_image`."""
        objects: dict[bytes, int] = {}
        entry: dict[str, Any] = {
            "name": image.repository,
            "tag": image.tag,
            "digest": str(image.manifest.digest),
            "layers": 0,
            "compressed_bytes": 0,
            "logical_bytes": 0,
            "file_bytes": 0,
        }
        manifests = self._manifests(image)
        blobs = {blob.digest: blob.size for manifest in manifests for blob in manifest.blobs}
        entry["compressed_bytes"] = sum(blobs.values())
        for manifest in manifests:
            for descriptor in manifest.layers:
                layer = self._layer(descriptor.digest.key)
                if layer is not None:
                    entry["layers"] += 1
                    entry["logical_bytes"] += layer.plain_size
                    entry["file_bytes"] += layer.file_bytes
                    objects.update(self._objects(layer.recipe))
        self.by_image.append(objects)
        return entry

    def _manifests(self, image: TaggedImage) -> list[Manifest]:
        """The manifests of an image, of every platform that is stored."""
        waiting = [image.manifest]
        found: dict[bytes, Manifest] = {}
        while waiting:
            stored = waiting.pop()
            document = parse_manifest(stored.raw, stored.media_type)
            if isinstance(document, Manifest):
                found[stored.digest.key] = document
                continue
            waiting += self._children(image.repository, document)
        return list(found.values())

    def _children(self, repository: str, index: Index) -> Iterator[Any]:
        for entry in index.manifests:
            try:
                yield self._store.registry.manifest(repository, entry.digest)
            except NotFoundError:
                continue

    def _layer(self, key: bytes) -> LayerRecord | None:
        with self._store.env.read() as txn:
            payload = txn.get(Table.BLOBS, key)
            return None if payload is None else self._store.blobs.layer(txn, BlobRecord.decode(payload, key.hex()))

    def _objects(self, recipe: int) -> dict[bytes, int]:
        """Objects of a layer, with the bytes of each that the layer holds."""
        known = self._layers.get(recipe)
        if known is None:
            known = self._layers[recipe] = {}
            with self._store.env.read() as txn:
                for _, payload in txn.scan(Table.RECIPES, recipe_key(recipe, 0)[:8]):
                    for op in decode_chunk(payload):
                        if op.kind != LITERAL:
                            digest = bytes(op.data)
                            known[digest] = max(known.get(digest, 0), op.offset + op.size)
        return known
