"""Manifests and indexes: parsed strictly, kept byte for byte.

`parse_manifest` takes any bytes whatsoever and gives a `Manifest`, an `Index`, or ManifestInvalidError that
names the bad field. The value keeps the original bytes in `raw`, because those carry the digest; fields that
this module does not know are ignored and live on in `raw`.

Follows image-spec v1.1.0 `manifest.md` and `image-index.md`, and Docker's `manifest-v2-2.md`. More lenient than
these, as other registries are: a manifest may lack `layers`, and a media type may be any word. Stricter: a document
that could be read as both an image and an index is refused, since two clients would run two different things from one
digest (CVE-2021-41190).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pagepool.digest import Digest
from pagepool.oci.descriptor import Descriptor, optional_media_type
from pagepool.oci.fields import Object, load_object
from pagepool.oci.mediatypes import (
    CONFIGS,
    DOCKER_MANIFEST,
    DOCKER_MANIFEST_LIST,
    INDEXES,
    MANIFESTS,
    OCI_INDEX,
    OCI_MANIFEST,
    strip_parameters,
)

MAX_INDEX_DEPTH = 8
"""Most indexes that are looked through, one within the other, for an image. Builders make two or three."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """One image, or artifact: a config and layers, lowest first.

    Args:
        raw: the document as it came.
        media_type: of the document.
        config: the configuration.
        layers: lowest first.
        subject: the manifest that this one is about, if any.
        annotations: free text by key.
        own_artifact_type: the field ``artifactType``, or "".
    """

    raw: bytes = field(repr=False)
    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    subject: Descriptor | None = None
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    own_artifact_type: str = ""

    @property
    def artifact_type(self) -> str:
        """What the referrers API says this is: ``artifactType``, or else the media type of the config."""
        return self.own_artifact_type or self.config.media_type

    @property
    def is_image(self) -> bool:
        """Tell whether this is an image that can be run, rather than some other artifact."""
        return self.config.media_type in CONFIGS

    @property
    def blobs(self) -> tuple[Descriptor, ...]:
        """Every blob the document needs: the config, then the layers, each digest once."""
        return _unique((self.config, *self.layers))

    @property
    def descriptor(self) -> Descriptor:
        """What an index would say about this document (SHA-256)."""
        return Descriptor(self.media_type, Digest.of(self.raw), len(self.raw))


@dataclass(frozen=True, slots=True)
class Index:
    """A list of manifests, usually of one image for several platforms.

    Args:
        raw: the document as it came.
        media_type: of the document.
        manifests: in the order of the document.
        subject: the manifest that this one is about, if any.
        annotations: free text by key.
        own_artifact_type: the field ``artifactType``, or "".
    """

    raw: bytes = field(repr=False)
    media_type: str
    manifests: tuple[Descriptor, ...]
    subject: Descriptor | None = None
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    own_artifact_type: str = ""

    @property
    def artifact_type(self) -> str:
        """What the referrers API says this is: ``artifactType``, or ""."""
        return self.own_artifact_type

    @property
    def descriptor(self) -> Descriptor:
        """What another index would say about this document (SHA-256)."""
        return Descriptor(self.media_type, Digest.of(self.raw), len(self.raw))


def parse_manifest(data: bytes, media_type: str | None = None) -> Manifest | Index:
    """Parse a manifest or an index.

    Args:
        data: the document. The caller has limited its size.
        media_type: what the document is said to be (``Content-Type``; parameters are ignored). None: believe
            the document, and its shape if it does not say either, as the files of a layout are read.

    Raises:
        ManifestInvalidError: not such a document; it names the bad field. Nothing else is ever raised.
    """
    fields = load_object(data, "document")
    if fields.integer("schemaVersion", 1, 2) != 2:
        fields.refuse("schemaVersion", "schema 1 is not supported")
    kind = _kind(fields, media_type)
    if kind in INDEXES:
        _refuse_fields(fields, kind, ("config", "layers", "fsLayers"))
        return Index(
            raw=bytes(data),
            media_type=kind,
            manifests=tuple(Descriptor.from_fields(entry) for entry in fields.objects("manifests")),
            **_common(fields),
        )
    _refuse_fields(fields, kind, ("manifests", "fsLayers"))
    layers = fields.objects("layers") if fields.has("layers") else ()  # artifacts of old may lack them
    return Manifest(
        raw=bytes(data),
        media_type=kind,
        config=Descriptor.from_fields(fields.object("config")),
        layers=tuple(Descriptor.from_fields(layer) for layer in layers),
        **_common(fields),
    )


def encode_manifest(
    config: Descriptor,
    layers: Sequence[Descriptor],
    *,
    media_type: str = OCI_MANIFEST,
    annotations: Mapping[str, str] | None = None,
    subject: Descriptor | None = None,
    artifact_type: str = "",
) -> Manifest:
    """Write an image manifest, deterministically."""
    body: dict[str, Any] = {"schemaVersion": 2, "mediaType": media_type, "artifactType": artifact_type}
    body |= {"config": config.to_json(), "layers": [layer.to_json() for layer in layers]}
    raw = _encode(body, subject, annotations)
    return Manifest(raw, media_type, config, tuple(layers), subject, annotations or {}, artifact_type)


def encode_index(
    manifests: Sequence[Descriptor],
    *,
    media_type: str = OCI_INDEX,
    annotations: Mapping[str, str] | None = None,
    subject: Descriptor | None = None,
    artifact_type: str = "",
) -> Index:
    """Write an index, deterministically. Also the answer of the referrers API."""
    body: dict[str, Any] = {"schemaVersion": 2, "mediaType": media_type, "artifactType": artifact_type}
    body["manifests"] = [entry.to_json() for entry in manifests]
    raw = _encode(body, subject, annotations)
    return Index(raw, media_type, tuple(manifests), subject, annotations or {}, artifact_type)


def _encode(body: dict[str, Any], subject: Descriptor | None, annotations: Mapping[str, str] | None) -> bytes:
    body["subject"] = subject.to_json() if subject else None
    body["annotations"] = dict(annotations or {})
    kept = {name: value for name, value in body.items() if value or isinstance(value, list)}
    return json.dumps(kept, ensure_ascii=False, separators=(",", ":")).encode()


def _kind(fields: Object, said: str | None) -> str:
    """The media type of the document: what was said, what it says itself, or its shape; they must agree."""
    own = optional_media_type(fields, "mediaType")
    kind = strip_parameters(said) if said is not None else own
    if not kind:
        kind = OCI_INDEX if fields.has("manifests") else OCI_MANIFEST
    if kind not in MANIFESTS and kind not in INDEXES:
        fields.refuse("mediaType", f"{kind[:80]!r} is not the media type of a supported manifest")
    if own and own != kind:
        fields.refuse("mediaType", f"{own[:80]!r} contradicts the content type {kind!r}")
    if not own and kind in (DOCKER_MANIFEST, DOCKER_MANIFEST_LIST):
        fields.refuse("mediaType", "is missing, and Docker's manifests must have it")
    return kind


def _common(fields: Object) -> dict[str, Any]:
    return {
        "subject": Descriptor.from_fields(fields.object("subject")) if fields.has("subject") else None,
        "annotations": fields.string_map("annotations"),
        "own_artifact_type": optional_media_type(fields, "artifactType"),
    }


def _refuse_fields(fields: Object, kind: str, names: Sequence[str]) -> None:
    for name in names:
        if fields.has(name):
            fields.refuse(name, f"does not belong into a document of type {kind}")


def _unique(descriptors: Sequence[Descriptor]) -> tuple[Descriptor, ...]:
    return tuple({entry.digest: entry for entry in reversed(descriptors)}.values())[::-1]
