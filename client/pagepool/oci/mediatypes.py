"""Media types of OCI and Docker schema 2 content, and what follows from them.

Owns the names, and the two questions asked of them: which document is this, and how is this layer compressed.
A media type is a claim of whoever pushed: ingest looks at the bytes and treats it as a hint.

Follows image-spec v1.1.0 `media-types.md` and Docker's `manifest-v2-2.md`.
"""

from __future__ import annotations

import re
from typing import Final, Literal

OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
OCI_EMPTY: Final = "application/vnd.oci.empty.v1+json"
OCI_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP: Final = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI_LAYER_ZSTD: Final = "application/vnd.oci.image.layer.v1.tar+zstd"
OCI_FOREIGN_LAYER: Final = "application/vnd.oci.image.layer.nondistributable.v1.tar"
OCI_FOREIGN_LAYER_GZIP: Final = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
OCI_FOREIGN_LAYER_ZSTD: Final = "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"

DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_MANIFEST_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG: Final = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER: Final = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER_GZIP: Final = "application/vnd.docker.image.rootfs.diff.tar.gzip"
DOCKER_LAYER_ZSTD: Final = "application/vnd.docker.image.rootfs.diff.tar.zstd"
DOCKER_FOREIGN_LAYER: Final = "application/vnd.docker.image.rootfs.foreign.diff.tar"
DOCKER_FOREIGN_LAYER_GZIP: Final = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"

MANIFESTS: Final = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
"""Documents of one image: a config and layers."""

INDEXES: Final = frozenset({OCI_INDEX, DOCKER_MANIFEST_LIST})
"""Documents that list other documents, usually one per platform."""

DOCUMENTS: Final = MANIFESTS | INDEXES
"""What a registry keeps as manifests."""

CONFIGS: Final = frozenset({OCI_CONFIG, DOCKER_CONFIG})
"""Configurations of an image that can be run; any other config makes the manifest an artifact."""

ACCEPT_MANIFESTS: Final = (OCI_INDEX, OCI_MANIFEST, DOCKER_MANIFEST_LIST, DOCKER_MANIFEST)
"""What a client that takes every kind puts into ``Accept``, the preferred first."""

MAX_MANIFEST_SIZE: Final = 4 << 20
"""Bytes of manifest that every registry should take (distribution-spec 1.1, "Pushing manifests")."""

MAX_CONFIG_SIZE: Final = 8 << 20
"""Bytes of an image's configuration that are read at most."""

Compression = Literal["none", "gzip", "zstd"]

_FOREIGN: Final = frozenset(
    {
        *(OCI_FOREIGN_LAYER, OCI_FOREIGN_LAYER_GZIP, OCI_FOREIGN_LAYER_ZSTD),
        *(DOCKER_FOREIGN_LAYER, DOCKER_FOREIGN_LAYER_GZIP),
    }
)

# RFC 6838, section 4.2: restricted-name "/" restricted-name.
_NAME = r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}"
_MEDIA_TYPE = re.compile(f"{_NAME}/{_NAME}")
_PRINTED = re.compile(r"[!-~][ -~]{0,254}")


def is_foreign_layer(media_type: str) -> bool:
    """Tell whether a registry may lack the blob, because it may not be distributed."""
    return media_type in _FOREIGN


def is_media_type(text: str) -> bool:
    """Tell whether `text` is ``type/subtype``, without parameters, as descriptors must give it."""
    return _MEDIA_TYPE.fullmatch(text) is not None


def may_be_type(text: str) -> bool:
    """Tell whether `text` is taken as a descriptor's media type: printable ASCII.

    Sigstore's bundles have parameters (``application/vnd.dev.sigstore.bundle+json;version=0.2``), and those who
    push artifacts choose words without a slash. Other registries take both, and what they have must be copied.
    """
    return _PRINTED.fullmatch(text) is not None


def strip_parameters(content_type: str) -> str:
    """The media type in a ``Content-Type`` header: without parameters, in lower case."""
    return content_type.partition(";")[0].strip().lower()
