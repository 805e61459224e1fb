"""Descriptors: what one document says about the bytes of another.

Follows image-spec v1.1.0 `descriptor.md`. A descriptor is a claim: whoever fetches its content checks size
and digest. Only `data`, content carried inside the descriptor, is checked here.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pagepool.digest import Digest
from pagepool.oci.fields import Object
from pagepool.oci.mediatypes import may_be_type
from pagepool.oci.platform import Platform

REF_NAME = "org.opencontainers.image.ref.name"
"""The annotation that holds an image's tag in the index of a layout."""


@dataclass(frozen=True, slots=True)
class Descriptor:
    """Media type, digest and size of some content, and what is said about it.

    Args:
        media_type: of the content.
        digest: of the content.
        size: of the content, in bytes.
        urls: where else the content may be had.
        annotations: free text by key.
        data: the content itself, if it came along; size and digest were checked.
        artifact_type: what kind of artifact the content is, if it is a manifest of one; else "".
        platform: what the content runs on, if it is a manifest in an index.
    """

    media_type: str
    digest: Digest
    size: int
    urls: tuple[str, ...] = ()
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    data: bytes | None = None
    artifact_type: str = ""
    platform: Platform | None = None

    @classmethod
    def from_fields(cls, fields: Object) -> Descriptor:
        """Read a descriptor out of a document.

        Raises:
            InvalidError: of the class that `fields` carries, naming the bad field.
        """
        descriptor = cls(
            media_type=_media_type(fields, "mediaType"),
            digest=fields.digest("digest"),
            size=fields.integer("size"),
            urls=fields.strings("urls"),
            annotations=fields.string_map("annotations"),
            data=_data(fields),
            artifact_type=optional_media_type(fields, "artifactType"),
            platform=Platform.from_fields(fields.object("platform")) if fields.has("platform") else None,
        )
        if descriptor.data is not None:
            _check_data(fields, descriptor, descriptor.data)
        return descriptor

    @classmethod
    def of(cls, media_type: str, data: bytes) -> Descriptor:
        """Describe bytes at hand, by SHA-256."""
        return cls(media_type, Digest.of(data), len(data))

    @property
    def ref_name(self) -> str:
        """The tag that the index of a layout gives this content; "" if none."""
        return self.annotations.get(REF_NAME, "")

    def to_json(self) -> dict[str, Any]:
        """The JSON object, fields in the order in which other tools write them, absent ones left out."""
        fields: dict[str, Any] = {
            "mediaType": self.media_type,
            "digest": str(self.digest),
            "size": self.size,
            "urls": list(self.urls),
            "annotations": dict(self.annotations),
            "data": base64.b64encode(self.data).decode() if self.data is not None else "",
            "platform": self.platform.to_json() if self.platform else None,
            "artifactType": self.artifact_type,
        }
        return {name: value for name, value in fields.items() if name == "size" or value}


def optional_media_type(fields: Object, name: str) -> str:
    """Read a field that holds a media type, "" if absent or empty."""
    return _media_type(fields, name) if fields.optional_string(name) else ""


def _media_type(fields: Object, name: str) -> str:
    text = fields.string(name)
    if not may_be_type(text):
        fields.refuse(name, f"{text[:80]!r} is not a media type")
    return text


def _data(fields: Object) -> bytes | None:
    if not fields.has("data"):
        return None
    try:
        return base64.b64decode(fields.string("data"), validate=True)
    except (binascii.Error, ValueError):  # ValueError: a character beyond ASCII
        fields.refuse("data", "is not base64")


def _check_data(fields: Object, descriptor: Descriptor, data: bytes) -> None:
    if len(data) != descriptor.size:
        fields.refuse("data", f"holds {len(data)} bytes, and size says {descriptor.size}")
    if Digest.of(data, descriptor.digest.algorithm) != descriptor.digest:
        fields.refuse("data", f"does not have the digest {descriptor.digest}")
