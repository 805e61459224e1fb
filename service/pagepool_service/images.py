"""Images as the service understands them: a manifest, its configuration, and how far each layer has been read.

Read-only over the store, and the one place that brings catalogue, blobs and layers together. Everything blocks.

An image is *unmountable* once any of its layers is, or if its parts contradict each other; else *pending* while a
layer is still being read; else *ready*. An index is resolved to the image for one platform.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pagepool.errors import BlobUnknownError, ImageInvalidError, LimitError, NotFoundError
from pagepool.oci import Config, Index, Manifest, Platform, parse_config, parse_manifest, select_platform

from pagepool_service.store.schema import LayerState

if TYPE_CHECKING:
    from pagepool.digest import Digest
    from pagepool.oci import Descriptor

    from pagepool_service.store.environment import Reader
    from pagepool_service.store.registry import TaggedImage
    from pagepool_service.store.schema import BlobRecord, LayerRecord
    from pagepool_service.store.store import Store

PENDING, READY, UNMOUNTABLE = "pending", "ready", "unmountable"
MAX_CONFIG_SIZE = 8 << 20
_STATES = {LayerState.PENDING: PENDING, LayerState.READY: READY, LayerState.UNMOUNTABLE: UNMOUNTABLE}


@dataclass(frozen=True, slots=True)
class LayerView:
    """One layer of an image: what the manifest says of it, and what the store knows."""

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
    """

    digest: Digest
    index: Digest | None
    manifest: Manifest
    config: Config | None
    problem: str
    layers: tuple[LayerView, ...]

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


def resolve_image(store: Store, name: str, reference: Digest | str, platform: Platform | None = None) -> ImageView:
    """The image that a reference names.

    Args:
        platform: which image of an index; None for the one this machine runs.

    Raises:
        ManifestUnknownError, NameUnknownError: there is none, or none for the platform.
    """
    stored = store.registry.manifest(name, reference)
    document = parse_manifest(stored.raw, stored.media_type)
    index = None
    digest = stored.digest
    while isinstance(document, Index):
        index = index or stored.digest
        chosen = select_platform(document.manifests, platform or Platform.local())
        stored = store.registry.manifest(name, chosen.digest)
        digest = stored.digest
        document = parse_manifest(stored.raw, stored.media_type)
    return view_image(store, digest, document, index)


def view_image(store: Store, digest: Digest, manifest: Manifest, index: Digest | None = None) -> ImageView:
    """An image whose manifest is at hand."""
    with store.env.read() as txn:
        layers = tuple(_view_layer(store, txn, descriptor) for descriptor in manifest.layers)
    if not manifest.is_image:
        problem = f"it is no image: its configuration is of type {manifest.config.media_type}"
        return ImageView(digest, index, manifest, None, problem, layers)
    try:
        config = parse_config(read_config(store, manifest))
    except (ImageInvalidError, BlobUnknownError, LimitError) as error:
        return ImageView(digest, index, manifest, None, f"its configuration cannot be used: {error}", layers)
    return ImageView(digest, index, manifest, config, _contradiction(config, layers), layers)


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
    """An entry of the list of images, as JSON."""
    stored = image.manifest
    document = parse_manifest(stored.raw, stored.media_type)
    summary = {
        "name": image.repository,
        "tag": image.tag,
        "digest": str(stored.digest),
        "media_type": stored.media_type,
        "updated_ns": image.updated_ns,
    }
    if isinstance(document, Index):
        return {**summary, **_summarise_index(store, image.repository, document)}
    view = view_image(store, stored.digest, document)
    return {
        **summary,
        "size": view.size,
        "platform": None if view.config is None else view.config.platform.to_json(),
        "created": "" if view.config is None else view.config.created,
        "state": view.state,
        "reason": view.reason,
    }


def _summarise_index(store: Store, name: str, document: Index) -> dict[str, Any]:
    """What an index is as a whole: ready as soon as one of its images is, pending while one may come to be."""
    views = []
    for entry in document.manifests:
        try:
            stored = store.registry.manifest(name, entry.digest)
        except NotFoundError:
            continue
        child = parse_manifest(stored.raw, stored.media_type)
        if isinstance(child, Manifest):
            views.append(view_image(store, stored.digest, child))
    states = {view.state for view in views}
    state = next((state for state in (READY, PENDING) if state in states), UNMOUNTABLE)
    sizes = {blob.digest: blob.size for view in views for blob in view.manifest.blobs}
    platforms = [str(entry.platform) for entry in document.manifests if entry.platform is not None]
    return {
        "size": sum(sizes.values()),
        "platform": None,
        "platforms": platforms,
        "created": max((view.config.created for view in views if view.config), default=""),
        "state": state,
        "reason": "" if state != UNMOUNTABLE else "none of its images can be mounted",
    }


def _view_layer(store: Store, txn: Reader, descriptor: Descriptor) -> LayerView:
    try:
        record = store.blobs.record(txn, descriptor.digest)
    except BlobUnknownError:
        return LayerView(descriptor, None, None)
    return LayerView(descriptor, record, store.blobs.layer(txn, record))


def _contradiction(config: Config, layers: tuple[LayerView, ...]) -> str:
    """What a configuration and its layers disagree about; "" if nothing."""
    if len(config.diff_ids) != len(layers):
        return f"its configuration names {len(config.diff_ids)} layers, the manifest {len(layers)}"
    for said, layer in zip(config.diff_ids, layers, strict=True):
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
