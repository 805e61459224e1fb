"""The documents of a new image: what its config and manifest say, out of the parent's.

Follows image-spec v1.1.0 `config.md` and `manifest.md`, and Docker's schema 2: the new image is of the parent's family
of media types. Fields of the parent's config that nothing here knows are kept, but for those that describe the
container it was committed from.

Pure functions.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from pagepool.commit.instructions import apply_instructions
from pagepool.oci import Descriptor, Manifest, encode_manifest, mediatypes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pagepool.commit.instructions import Instruction
    from pagepool.digest import Digest
    from pagepool.oci import Config

_OF_THE_CONTAINER: Final = ("container", "container_config", "id", "parent", "Id", "Size")
_LAYERS: Final[dict[tuple[bool, mediatypes.Compression], str]] = {
    (False, "none"): mediatypes.OCI_LAYER,
    (False, "gzip"): mediatypes.OCI_LAYER_GZIP,
    (False, "zstd"): mediatypes.OCI_LAYER_ZSTD,
    (True, "none"): mediatypes.DOCKER_LAYER,
    (True, "gzip"): mediatypes.DOCKER_LAYER_GZIP,
    (True, "zstd"): mediatypes.DOCKER_LAYER_ZSTD,
}
_BASE_DIGEST: Final = "org.opencontainers.image.base.digest"


def layer_media_type(parent: Manifest, compression: mediatypes.Compression) -> str:
    """The media type of a layer on top of a parent."""
    return _LAYERS[parent.media_type == mediatypes.DOCKER_MANIFEST, compression]


def encode_config(
    parent: Config,
    diff_id: Digest | None,
    *,
    created: str,
    created_by: str,
    author: str = "",
    comment: str = "",
    instructions: Iterable[Instruction] = (),
) -> bytes:
    """The config of the new image.

    Args:
        parent: the parent's.
        diff_id: of the new layer; None if there is none, and only the config changes.
        created: when, RFC 3339.
        created_by: the command, for the history.
        author: whose work it is; without one the parent's author stays.
        comment: for the history.
        instructions: changes of what is run.
    """
    fields: dict[str, Any] = {
        name: value for name, value in json.loads(parent.raw).items() if name not in _OF_THE_CONTAINER
    }
    fields["created"] = created
    if author:
        fields["author"] = author
    run = dict(fields.get("config") or {})
    apply_instructions(run, instructions)
    fields["config"] = run
    fields["rootfs"] = {
        "type": "layers",
        "diff_ids": [str(entry) for entry in (*parent.diff_ids, *([diff_id] if diff_id else []))],
    }
    entry = {"created": created, "created_by": created_by, "author": author, "comment": comment}
    step: dict[str, Any] = {name: value for name, value in entry.items() if value}
    if diff_id is None:
        step["empty_layer"] = True
    fields["history"] = [*_full_history(fields.get("history"), len(parent.diff_ids)), step]
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()


def encode_image(parent: Manifest, config: bytes, layer: Descriptor | None) -> Manifest:
    """The manifest of the new image."""
    described = Descriptor.of(parent.config.media_type, config)
    layers = [*parent.layers, *([layer] if layer else [])]
    docker = parent.media_type == mediatypes.DOCKER_MANIFEST
    annotations = None if docker else {_BASE_DIGEST: str(parent.descriptor.digest)}
    return encode_manifest(described, layers, media_type=parent.media_type, annotations=annotations)


def _full_history(history: Any, layers: int) -> list[dict[str, Any]]:
    """A history with an entry for each layer: many tools refuse an image whose history has another number."""
    entries = [entry for entry in history or [] if isinstance(entry, dict)]
    known = sum(not entry.get("empty_layer") for entry in entries)
    if known > layers:  # whatever it tells, it is not about these layers
        entries, known = [], 0
    return entries + [{"created_by": "unknown"} for _ in range(layers - known)]
