"""Which images a problem concerns: those whose manifest, blobs or layers need the damaged record.

Runs only when there are problems. Follows references from the images down through records alone, also damaged ones
as far as they can be read; no content is read.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from typing import TYPE_CHECKING

from pagepool.digest import Digest
from pagepool.errors import CorruptError, InvalidError
from pagepool.extents import EXTENT_SIZE
from pagepool.image import decode_chunk
from pagepool.oci import Index, parse_manifest
from pagepool_service.store.catalogue import StoredManifest, Tag
from pagepool_service.store.checks.naming import is_reverse, name_tag, split_link
from pagepool_service.store.checks.recipes import references
from pagepool_service.store.checks.walk import walk_values
from pagepool_service.store.environment import CHECKSUM_SIZE, Table
from pagepool_service.store.schema import BlobRecord, LayerRecord, Location, ObjectRecord, recipe_key

if TYPE_CHECKING:
    from pagepool_service.store.checks.context import Context
    from pagepool_service.store.environment import Environment, Reader

Cause = tuple[str, str]  # kind and name of a problem
_LAYER_SIZE = len(LayerRecord(0, 0, 0, 0).encode())
_UNREADABLE = (CorruptError, InvalidError, struct.error, ValueError, IndexError)


def find_concerned(context: Context) -> dict[Cause, tuple[str, ...]]:
    """The images that each problem concerns, by its kind and name; `repository:tag`, or `repository@digest`."""
    causes = _Causes(context.env, {(problem.kind, problem.name) for problem in context.findings.problems})
    concerned: dict[Cause, set[str]] = defaultdict(set)
    reached: set[Digest] = set()
    for repository, name, digest in _tagged(context.env):
        image_causes = causes.of_image(repository, digest, reached)
        if ("tag", name) in causes.known:
            image_causes = image_causes | {("tag", name)}
        for cause in image_causes:
            concerned[cause].add(name)
    for repository, digest in _held(context.env):
        if digest not in reached:
            for cause in causes.of_image(repository, digest, set()):
                concerned[cause].add(f"{repository}@{digest}")
    return {cause: tuple(sorted(names)) for cause, names in concerned.items()}


def _tagged(env: Environment) -> list[tuple[str, str, Digest]]:
    """(repository, ``repository:tag``, manifest) of every tag that can be read."""
    found: list[tuple[str, str, Digest]] = []

    def visit(_txn: Reader, key: bytes, value: memoryview) -> None:
        try:
            name = name_tag(key)
            found.append((key.partition(b"\0")[0].decode(), name, Tag.decode(key, value[:-CHECKSUM_SIZE]).digest))
        except _UNREADABLE:
            return

    walk_values(env, Table.TAGS, visit)
    return found


def _held(env: Environment) -> list[tuple[str, Digest]]:
    """(repository, manifest) of every manifest that a repository has."""
    found: list[tuple[str, Digest]] = []

    def visit(_txn: Reader, key: bytes, _value: memoryview) -> None:
        try:
            if not is_reverse(key):
                found.append(split_link(key))
        except _UNREADABLE:
            return

    walk_values(env, Table.MANIFEST_LINKS, visit)
    return found


class _Causes:
    """The problems that manifests, blobs, layers, objects and extents suffer from; what costs something is kept."""

    def __init__(self, env: Environment, known: set[Cause]) -> None:
        self._env = env
        self.known = known
        self._frames = {int(name) for kind, name in known if kind == "frame" and name.isdigit()}
        self._recipes: dict[str, set[Cause]] = defaultdict(set)
        for kind, name in known:
            if kind == "recipe":
                self._recipes[name.partition(" ")[0]].add((kind, name))
        self._layers: dict[bytes, set[Cause]] = {}
        self._blobs: dict[Digest, set[Cause]] = {}

    def of_image(self, repository: str, digest: Digest, reached: set[Digest]) -> set[Cause]:
        """Of a manifest or index, and of everything below it. Adds what it comes to to `reached`."""
        found: set[Cause] = set()
        pending = [digest]
        seen: set[Digest] = set()
        while pending:
            manifest = pending.pop()
            if manifest in seen:
                continue
            seen.add(manifest)
            found |= self._known(("manifest", str(manifest)), ("manifest link", f"{repository}@{manifest}"))
            with self._env.read() as txn:
                value = txn.get_unchecked(Table.MANIFESTS, manifest.key)
                if value is None:
                    continue
                raw = bytes(value[:-CHECKSUM_SIZE])
            try:
                stored = StoredManifest.decode(manifest, memoryview(raw))
                document = parse_manifest(stored.raw, stored.media_type)
            except _UNREADABLE:
                continue
            if isinstance(document, Index):
                pending.extend(entry.digest for entry in document.manifests)
                continue
            for entry in document.blobs:
                found |= self._known(("link", f"{repository}@{entry.digest}")) | self._of_blob(entry.digest)
        reached |= seen
        return found

    def _of_blob(self, digest: Digest) -> set[Cause]:
        if digest in self._blobs:
            return self._blobs[digest]
        found = self._known(("blob", str(digest)))
        with self._env.read() as txn:
            value = txn.get_unchecked(Table.BLOBS, digest.key)
            try:
                record = None if value is None else BlobRecord.decode(value[:-CHECKSUM_SIZE], str(digest))
            except _UNREADABLE:
                record = None
            if record is not None:
                found |= self._of_object(txn, record.object, record.size)
        if record is not None and record.diff_id is not None:
            found |= self._of_layer(record.diff_id)
        self._blobs[digest] = found
        return found

    def _of_layer(self, diff_id: Digest) -> set[Cause]:
        if diff_id.key in self._layers:
            return self._layers[diff_id.key]
        found = self._known(("layer", str(diff_id)))
        with self._env.read() as txn:
            value = txn.get_unchecked(Table.LAYERS, diff_id.key)
            layer = None if value is None or len(value) < _LAYER_SIZE else LayerRecord.decode(value[:_LAYER_SIZE])
        if layer is not None:
            found |= self._recipes.get(str(layer.recipe), set())

            def visit(txn: Reader, _key: bytes, value: memoryview) -> None:
                try:
                    small, large = references(decode_chunk(value[:-CHECKSUM_SIZE]))
                except _UNREADABLE:
                    return
                for digest in small:
                    found.update(self._of_extent(txn, digest))
                for digest in large:
                    found.update(self._of_object(txn, digest, EXTENT_SIZE + 1))

            walk_values(self._env, Table.RECIPES, visit, prefix=recipe_key(layer.recipe, 0)[:8])
        self._layers[diff_id.key] = found
        return found

    def _of_object(self, txn: Reader, digest: bytes, size: int) -> set[Cause]:
        found = self._known(("object", digest.hex())) | self._of_extent(txn, digest)
        value = txn.get_unchecked(Table.OBJECTS, digest) if size > EXTENT_SIZE else None
        if value is not None:
            try:
                record = ObjectRecord.decode(value[:-CHECKSUM_SIZE], digest.hex())
            except _UNREADABLE:
                return found
            for _, extent in record.runs:
                found |= self._of_extent(txn, extent)
        return found

    def _of_extent(self, txn: Reader, digest: bytes) -> set[Cause]:
        found = self._known(("extent", digest.hex()))
        value = txn.get_unchecked(Table.EXTENTS, digest) if self._frames else None
        if value is not None:
            try:
                frame = Location.decode(value[:-CHECKSUM_SIZE]).frame
            except _UNREADABLE:
                return found
            if frame in self._frames:
                found = found | {("frame", str(frame))}
        return found

    def _known(self, *causes: Cause) -> set[Cause]:
        return {cause for cause in causes if cause in self.known}
