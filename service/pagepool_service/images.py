"""Images as the service understands them: a manifest, its configuration, and how far each layer has been read.

Read-only over the store, and the one place that brings catalogue, blobs and layers together. Everything blocks.

An image is *unmountable* once any of its layers is, if its parts contradict each other, or if its layers turned out not
to merge (which is found out when they are, soon after they were read); else *pending* while a
layer is still being read; else *ready*. An index is resolved to the image for one platform.
"""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pagepool.errors import BlobUnknownError, ImageInvalidError, InvalidError, LimitError, NotFoundError
from pagepool.oci import (
    MAX_INDEX_DEPTH,
    Config,
    Index,
    Manifest,
    Platform,
    parse_config,
    parse_manifest,
    select_platform,
)
from pagepool.oci.mediatypes import DOCUMENTS, MAX_CONFIG_SIZE
from pagepool.oci.platform import is_attestation
from pagepool_service.store.environment import Table
from pagepool_service.store.schema import LayerState
from pagepool_service.treecache import TreeCache
from pagepool_service.treeorigins import TreeOrigin

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pagepool.digest import Digest
    from pagepool.errors import CorruptError
    from pagepool.oci import Descriptor
    from pagepool_service.store.environment import Reader
    from pagepool_service.store.listings import TaggedImage
    from pagepool_service.store.schema import BlobRecord, LayerRecord
    from pagepool_service.store.store import Store

PENDING, READY, UNMOUNTABLE = "pending", "ready", "unmountable"
DAMAGED = "damaged"
"""In the list of images only: what asks for such an image gets the error."""
# What is looked at of one image at most: an index may list any number of others, and these as many again.
MAX_DOCUMENTS = 1000
MAX_DOCUMENT_BYTES = 16 << 20
_MOST_PLATFORMS = 100
_LONGEST_DATE = 64
_STATES = {LayerState.PENDING: PENDING, LayerState.READY: READY, LayerState.UNMOUNTABLE: UNMOUNTABLE}


@dataclass(frozen=True, slots=True)
class LayerView:
    """One layer of an image: what the manifest says of it, and what the store knows if the repository has it."""

    descriptor: Descriptor
    record: BlobRecord | None
    layer: LayerRecord | None

    @property
    def state(self) -> str:
        """How far it has been read."""
        return UNMOUNTABLE if self.record is None else _STATES[self.record.state]

    @property
    def reason(self) -> str:
        """Why it is unmountable."""
        return "it is not stored here" if self.record is None else self.record.reason


@dataclass(frozen=True, slots=True)
class ImageView:
    """An image of one platform.

    Args:
        digest: of the manifest.
        index: of the index it was found through, if any.
        manifest: the document.
        config: its configuration; None if that is not an image's.
        problem: why it cannot be mounted whatever its layers are; else "".
        layers: lowest first.
        first: how many layers of the manifest these are, if they are not all: then it is said of these alone whether
            they are ready; else None.
    """

    digest: Digest
    index: Digest | None
    manifest: Manifest
    config: Config | None
    problem: str
    layers: tuple[LayerView, ...]
    first: int | None = None

    @property
    def origin(self) -> TreeOrigin:
        """What its tree is made of."""
        return TreeOrigin(self.digest, self.first)

    @property
    def state(self) -> str:
        """``pending``, ``ready`` or ``unmountable``."""
        states = {layer.state for layer in self.layers}
        if self.problem or UNMOUNTABLE in states:
            return UNMOUNTABLE
        return PENDING if PENDING in states else READY

    @property
    def reason(self) -> str:
        """Why it is unmountable; else ""."""
        if self.problem:
            return self.problem
        bad = next((layer for layer in self.layers if layer.state == UNMOUNTABLE), None)
        return "" if bad is None else f"layer {bad.descriptor.digest}: {bad.reason}"

    @property
    def waiting(self) -> tuple[str, ...]:
        """Digests of the layers that are still being read."""
        return tuple(str(layer.descriptor.digest) for layer in self.layers if layer.state == PENDING)

    @property
    def size(self) -> int:
        """Bytes of configuration and layers, as they are pulled."""
        return sum(blob.size for blob in self.manifest.blobs)


def resolve_image(
    store: Store, name: str, reference: Digest | str, platform: Platform | None = None, first: int | None = None
) -> ImageView:
    """The image that a reference names.

    Args:
        platform: which image of an index; None for the one this machine runs.
        first: with how many of its layers, from the lowest on; None for all.

    Raises:
        InvalidError: it does not have `first` layers.
        ManifestUnknownError, NameUnknownError: there is none, or none for the platform.
        ImageInvalidError: too many indexes are in one another.
    """
    stored = store.registry.manifest(name, reference)
    document = parse_manifest(stored.raw, stored.media_type)
    index = None
    digest = stored.digest
    depth = 0
    while isinstance(document, Index):
        index = index or stored.digest
        depth += 1
        if depth > MAX_INDEX_DEPTH:
            raise ImageInvalidError(str(index), f"more than {MAX_INDEX_DEPTH} indexes are in one another")
        chosen = select_platform(document.manifests, platform or Platform.local())
        stored = store.registry.manifest(name, chosen.digest)
        digest = stored.digest
        document = parse_manifest(stored.raw, stored.media_type)
    return view_image(store, name, digest, document, index, first)


def walk_documents(store: Store, name: str, digest: Digest) -> Iterator[tuple[Digest, Manifest | Index]]:
    """The manifest or index of a digest, and what it lists, directly or through other indexes: each document once.

    One is in memory at a time, as long as the caller keeps none. At most `MAX_DOCUMENTS` are looked up, and no more
    after `MAX_DOCUMENT_BYTES` have been read. What an index lists and is not there is left out, and so is what is
    behind more than `MAX_INDEX_DEPTH` indexes.

    Raises:
        ManifestUnknownError, NameUnknownError: the first is not there.
    """
    waiting, seen = deque(((digest, 0),)), {digest}
    size = 0
    while waiting and size < MAX_DOCUMENT_BYTES:
        found, depth = waiting.popleft()
        try:
            stored = store.registry.manifest(name, found)
        except NotFoundError:
            if found == digest:
                raise
            continue
        size += len(stored.raw)
        document = parse_manifest(stored.raw, stored.media_type)
        del stored
        for entry in document.manifests if isinstance(document, Index) and depth < MAX_INDEX_DEPTH else ():
            if len(seen) == MAX_DOCUMENTS:
                break
            if entry.digest not in seen:
                seen.add(entry.digest)
                waiting.append((entry.digest, depth + 1))
        yield found, document
        del document


def listed_blobs(document: Index) -> Iterator[Descriptor]:
    """What an index lists that is no document: the layers of a build cache."""
    return (entry for entry in document.manifests if entry.media_type not in DOCUMENTS)


def view_image(
    store: Store,
    name: str,
    digest: Digest,
    manifest: Manifest,
    index: Digest | None = None,
    first: int | None = None,
) -> ImageView:
    """An image of a repository whose manifest is at hand. Arguments and errors as of `resolve_image`."""
    count = len(manifest.layers)
    if first is not None and not 1 <= first <= count:
        raise InvalidError(str(first), f"{digest} has {count} layers")
    first = None if first == count else first
    with store.env.read() as txn:
        layers = tuple(_view_layer(store, txn, name, descriptor) for descriptor in manifest.layers[:first])
    if not manifest.is_image:
        problem = f"it is no image: its configuration is of type {manifest.config.media_type}"
        return ImageView(digest, index, manifest, None, problem, layers, first)
    try:
        config = parse_config(read_config(store, manifest))
    except (ImageInvalidError, BlobUnknownError, LimitError) as error:
        return ImageView(digest, index, manifest, None, f"its configuration cannot be used: {error}", layers, first)
    view = ImageView(digest, index, manifest, config, _contradiction(config, count, layers), layers, first)
    if view.state == READY and (problem := TreeCache(store.data / "trees").problem_of(view.origin)):
        return replace(view, problem=problem)
    return view


def read_config(store: Store, manifest: Manifest) -> bytes:
    """The configuration's bytes.

    Raises:
        BlobUnknownError: it is not there.
        LimitError: it is larger than any configuration.
    """
    digest = manifest.config.digest
    size = store.blobs.stat(digest).size
    if size > MAX_CONFIG_SIZE:
        raise LimitError("configuration", size, MAX_CONFIG_SIZE)
    return b"".join(store.blobs.read(digest))


def describe_image(view: ImageView, name: str, reference: str, config: bytes | None) -> dict[str, Any]:
    """An image as JSON."""
    return {
        "name": name,
        "reference": reference,
        "digest": str(view.digest),
        "index": None if view.index is None else str(view.index),
        "media_type": view.manifest.media_type,
        "size": view.size,
        "platform": None if view.config is None else view.config.platform.to_json(),
        "state": view.state,
        "reason": view.reason,
        "config": None if config is None else json.loads(config),
        "layers": [_describe_layer(layer) for layer in view.layers],
    }


def describe_tag(store: Store, image: TaggedImage) -> dict[str, Any]:
    """An entry of the list of images, as JSON.

    Raises:
        ManifestUnknownError, NameUnknownError: it was deleted meanwhile.
        CorruptError: something of it cannot be read.
    """
    documents = walk_documents(store, image.repository, image.digest)
    _, document = next(documents)
    summary = {
        "name": image.repository,
        "tag": image.tag,
        "digest": str(image.digest),
        "media_type": document.media_type,
        "updated_ns": image.updated_ns,
    }
    if isinstance(document, Index):
        platforms = _platforms(document)
        sizes = {entry.digest: entry.size for entry in listed_blobs(document)}
        del document
        return {**summary, **_summarise_index(store, image.repository, documents, sizes), "platforms": platforms}
    view = view_image(store, image.repository, image.digest, document)
    return {
        **summary,
        "size": view.size,
        "platform": None if view.config is None else view.config.platform.to_json(),
        "created": _created(view),
        "state": view.state,
        "reason": view.reason,
    }


def describe_damage(repository: str, tag: str, error: CorruptError, image: TaggedImage | None = None) -> dict[str, Any]:
    """The entry of an image of which something cannot be read, or of a tag that cannot."""
    return {
        "name": repository,
        "tag": tag,
        "digest": "" if image is None else str(image.digest),
        "media_type": "",
        "updated_ns": None if image is None else image.updated_ns,
        "size": None,
        "platform": None,
        "created": "",
        "state": DAMAGED,
        "reason": str(error),
    }


def _summarise_index(
    store: Store, name: str, documents: Iterator[tuple[Digest, Manifest | Index]], sizes: dict[Digest, int]
) -> dict[str, Any]:
    """What an index is as a whole: ready as soon as one of its images is, pending while one may come to be.

    Args:
        name: of the repository.
        documents: all behind it.
        sizes: of what it lists itself that is no document.
    """
    states: set[str] = set()
    created = ""
    for digest, document in documents:
        if isinstance(document, Manifest):
            view = view_image(store, name, digest, document)
            states.add(view.state)
            created = max(created, _created(view))
            sizes |= {blob.digest: blob.size for blob in document.blobs}
            del view
        else:
            sizes |= {entry.digest: entry.size for entry in listed_blobs(document)}
        del document
    state = next((state for state in (READY, PENDING) if state in states), UNMOUNTABLE)
    return {
        "size": sum(sizes.values()),
        "platform": None,
        "created": created,
        "state": state,
        "reason": _reason(state, states),
    }


def _reason(state: str, states: set[str]) -> str:
    if state != UNMOUNTABLE:
        return ""
    return "none of its images can be mounted" if states else "it lists no image"


def _platforms(document: Index) -> list[str]:
    """The platforms that an index names, each once, as far as anyone would read them."""
    entries = (entry for entry in document.manifests if entry.platform is not None and not is_attestation(entry))
    found = dict.fromkeys(str(entry.platform) for entry in entries)
    return list(found)[:_MOST_PLATFORMS]


def _created(view: ImageView) -> str:
    return "" if view.config is None else view.config.created[:_LONGEST_DATE]


def _view_layer(store: Store, txn: Reader, name: str, descriptor: Descriptor) -> LayerView:
    # A manifest may name a layer that its repository lacks (`is_foreign_layer`), and another may have that.
    if store.registry.link_record(txn, Table.LINKS, name, descriptor.digest) is None:
        return LayerView(descriptor, None, None)
    try:
        record = store.blobs.record(txn, descriptor.digest)
    except BlobUnknownError:
        return LayerView(descriptor, None, None)
    return LayerView(descriptor, record, store.blobs.layer(txn, record))


def _contradiction(config: Config, count: int, layers: tuple[LayerView, ...]) -> str:
    """What a configuration and its layers, of which these are the first, disagree about; "" if nothing."""
    if len(config.diff_ids) != count:
        return f"its configuration names {len(config.diff_ids)} layers, the manifest {count}"
    for said, layer in zip(config.diff_ids, layers, strict=False):
        found = None if layer.record is None else layer.record.diff_id
        if found is not None and found.algorithm == said.algorithm and found != said:
            return f"layer {layer.descriptor.digest} has the diff_id {found}, the configuration says {said}"
    return ""


def _describe_layer(layer: LayerView) -> dict[str, Any]:
    record = layer.record
    return {
        "digest": str(layer.descriptor.digest),
        "media_type": layer.descriptor.media_type,
        "size": layer.descriptor.size,
        "diff_id": "" if record is None or record.diff_id is None else str(record.diff_id),
        "state": layer.state,
        "reason": layer.reason,
        "plain_size": None if layer.layer is None else layer.layer.plain_size,
        "members": None if layer.layer is None else layer.layer.members,
    }
