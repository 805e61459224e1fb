"""Images to collect: pushed into a store, and what must be there of them, worked out without the store's help."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from blake3 import blake3

from pagepool.digest import Digest
from pagepool.errors import ManifestUnknownError, NameUnknownError
from pagepool.oci import parse_manifest
from pagepool_service.store.collect import Collector, Policy, Report
from pagepool_service.store.environment import Table
from tests.store.helpers import gzipped, make_tar, noise, push, read, text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pagepool_service.store.store import Store

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
_EXTENT = 128 << 10


@dataclass(frozen=True)
class Layer:
    """A layer: its files, and the blob it comes as."""

    files: Mapping[str, bytes]
    packed: bool = False

    @property
    def blob(self) -> bytes:
        """The bytes that are pushed."""
        tar = make_tar(self.files)
        return gzipped(tar, 1) if self.packed else tar

    @property
    def digest(self) -> Digest:
        """Of the blob."""
        return Digest.of(self.blob)

    def extents(self) -> set[bytes]:
        """The names of all extents that the store needs for it."""
        found = {name for content in self.files.values() for name in cut(content)}
        return found | cut(self.blob) if self.packed else found


def cut(content: bytes) -> set[bytes]:
    """The extents of some bytes."""
    return {blake3(content[start : start + _EXTENT]).digest() for start in range(0, len(content), _EXTENT)}


def contents(count: int) -> list[bytes]:
    """Files to make layers of: small, of one extent, of several."""
    sizes = (0, 10, 700, 5000, 60_000, 131_072, 300_000)
    made = [text(sizes[number % len(sizes)], number) for number in range(count)]
    return [content if number % 5 else noise(len(content), number) for number, content in enumerate(made)]


@dataclass
class Pushed:
    """A manifest or index that was pushed, and what it needs."""

    digest: Digest
    children: Sequence[Pushed] = ()
    subject: Digest | None = None
    blobs: dict[Digest, bytes] = field(default_factory=dict)
    extents: set[bytes] = field(default_factory=set)


def push_image(
    store: Store,
    repository: str,
    layers: Sequence[Layer],
    *,
    tags: Sequence[str] = (),
    subject: Digest | None = None,
    note: str = "",
) -> Pushed:
    """Push layers, a configuration, and the manifest."""
    config = json.dumps({"architecture": "amd64", "os": "linux", "note": note}).encode()
    blobs = {Digest.of(config): config} | {layer.digest: layer.blob for layer in layers}
    for data in blobs.values():
        push(store, data, repository=repository)
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": CONFIG, "digest": str(Digest.of(config)), "size": len(config)},
        "layers": [{"mediaType": LAYER, "digest": str(one.digest), "size": len(one.blob)} for one in layers],
    }
    if subject is not None:
        document["subject"] = {"mediaType": MANIFEST, "digest": str(subject), "size": 1}
    extents = cut(config).union(*(layer.extents() for layer in layers))
    return Pushed(_put(store, repository, document, tags), (), subject, blobs, extents)


def push_index(store: Store, repository: str, children: Sequence[Pushed], *, tags: Sequence[str] = ()) -> Pushed:
    """Push an index of manifests that are there."""
    sizes = [len(store.registry.manifest(repository, one.digest).raw) for one in children]
    entries = [
        {"mediaType": MANIFEST, "digest": str(one.digest), "size": size}
        for one, size in zip(children, sizes, strict=True)
    ]
    document = {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}
    return Pushed(_put(store, repository, document, tags), children)


def _put(store: Store, repository: str, document: dict[str, object], tags: Sequence[str]) -> Digest:
    raw = json.dumps(document).encode()
    digest = Digest.of(raw)
    store.registry.put_manifest(repository, digest, parse_manifest(raw, None), tags)
    return digest


def keys(store: Store, table: Table) -> set[bytes]:
    """All keys of a table."""
    with store.env.read() as txn:
        return {key for key, _ in txn.scan(table)}


def assert_whole(store: Store, repository: str, image: Pushed) -> None:
    """An image, with all it needs, comes back bit for bit."""
    assert store.registry.manifest(repository, image.digest).digest == image.digest
    for digest, data in image.blobs.items():
        store.registry.stat_blob(repository, digest)
        assert read(store, digest) == data
    for child in image.children:
        assert_whole(store, repository, child)


REPOSITORY = "lib/app"
AT_ONCE = Policy(grace_s=0, untagged_s=0)
FILES = contents(21)


def layer(*numbers: int, packed: bool = False) -> Layer:
    """A layer of some of the files."""
    return Layer({f"f{number}": FILES[number] for number in numbers}, packed)


def collect(store: Store, policy: Policy = AT_ONCE) -> Report:
    """Run a whole cycle."""
    return Collector(store, policy).run()


def gone(store: Store, image: Pushed, repository: str = REPOSITORY) -> bool:
    """Whether a manifest is gone, and all blobs that only it had."""
    with pytest.raises((ManifestUnknownError, NameUnknownError)):
        store.registry.manifest(repository, image.digest)
    return not any(store.blobs.exists(digest) for digest in image.blobs)
