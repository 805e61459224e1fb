"""A store with one of everything: images that share layers, an index, a referrer, artifacts, a spool, waiting jobs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pagepool.digest import Digest
from pagepool.oci import Descriptor, Index, Manifest, encode_index, encode_manifest
from pagepool.oci.mediatypes import OCI_CONFIG, OCI_LAYER, OCI_LAYER_GZIP, OCI_LAYER_ZSTD
from pagepool_service.store.store import Store
from tests.store.helpers import gzipped, ingest_all, make_tar, noise, push, text, zstd

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SHARED = {"usr/lib/shared.so": text(400_000, "shared"), "usr/share/noise": noise(200_000, "shared")}
BASE = make_tar({**SHARED, "etc/os-release": text(300, "os")})
APP = make_tar({"srv/app": text(600_000, "app"), "srv/small": text(500, "app")})
NEWER = make_tar({**SHARED, "etc/os-release": text(310, "newer"), "usr/bin/tool": text(150_000, "tool")})
ALONE = make_tar({"only/here": text(250_000, "alone")})
OPAQUE = noise(300_000, "opaque")
SPOOLED = noise(280_000, "spooled")


@dataclass(frozen=True, slots=True)
class Sample:
    """What `fill_store` put in: the bytes of every blob, and every image's manifest."""

    blobs: dict[Digest, bytes]
    images: dict[str, Digest]


def descriptor(blob: bytes, media_type: str) -> Descriptor:
    """The descriptor of some bytes."""
    return Descriptor(media_type, Digest.of(blob), len(blob))


def push_image(
    store: Store, repository: str, tag: str, layers: Sequence[tuple[bytes, str]], *, subject: Descriptor | None = None
) -> Manifest:
    """Push an image with its blobs; returns the manifest."""
    config = json.dumps({"architecture": "amd64", "os": "linux", "of": [tag]}).encode()
    for blob, _ in ((config, OCI_CONFIG), *layers):
        push(store, blob, repository=repository)
    entries = [descriptor(blob, media_type) for blob, media_type in layers]
    manifest = encode_manifest(descriptor(config, OCI_CONFIG), entries, subject=subject)
    store.registry.put_manifest(repository, Digest.of(manifest.raw), manifest, [tag] if tag else [])
    return manifest


def put_index(store: Store, repository: str, tag: str, manifests: Sequence[Manifest]) -> Index:
    """Push an index of manifests that are there."""
    index = encode_index([manifest.descriptor for manifest in manifests])
    store.registry.put_manifest(repository, Digest.of(index.raw), index, [tag])
    return index


def fill_store(store: Store) -> Sample:
    """Put one of everything in.

    ``lib/one:1`` and ``lib/two:1`` share a gzip layer, ``lib/two:1`` has a plain layer besides; ``lib/three:1`` has a
    zstd layer that shares files with them, and a layer of its own; ``multi:1`` is an index of two images without tags;
    ``lib/one`` has a referrer, ``lib/three`` a lease on a tree of its first layer. One blob is settled and no layer,
    one waits in the spool with its job.
    """
    gzip_base, zstd_newer = gzipped(BASE), zstd(NEWER)
    one = push_image(store, "lib/one", "1", [(gzip_base, OCI_LAYER_GZIP)])
    two = push_image(store, "lib/two", "1", [(gzip_base, OCI_LAYER_GZIP), (APP, OCI_LAYER)])
    three = push_image(store, "lib/three", "1", [(zstd_newer, OCI_LAYER_ZSTD), (gzipped(ALONE), OCI_LAYER_GZIP)])
    children = [push_image(store, "multi", "", [(blob, OCI_LAYER_GZIP)]) for blob in (gzip_base, gzipped(APP))]
    index = put_index(store, "multi", "1", children)
    about = push_image(store, "lib/one", "", [(OPAQUE, "application/spdx+json")], subject=one.descriptor)
    ingest_all(store)
    store.leases.take("lib/three", b"\x77" * 32, "a node", 10**6, (Digest.of(three.raw), [Digest.of(NEWER)]))
    push(store, SPOOLED, repository="waiting")
    blobs = [gzip_base, APP, zstd_newer, gzipped(ALONE), gzipped(APP), OPAQUE, SPOOLED]
    manifests: dict[str, Manifest | Index] = {
        "lib/one:1": one,
        "lib/two:1": two,
        "lib/three:1": three,
        "multi:1": index,
        "about": about,
    }
    images = {name: Digest.of(manifest.raw) for name, manifest in manifests.items()}
    return Sample({Digest.of(blob): blob for blob in blobs}, images)


def make_sample(data: Path) -> Sample:
    """`fill_store` in a new store, closed again."""
    with Store.open(data) as store:
        return fill_store(store)
