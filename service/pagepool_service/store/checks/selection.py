"""Which manifests, blobs and layers belong to given images."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pagepool.digest import Digest
from pagepool.errors import ManifestUnknownError
from pagepool.oci import Index, Reference, parse_manifest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pagepool_service.store.catalogue import StoredManifest
    from pagepool_service.store.registry import Registry


@dataclass(frozen=True, slots=True)
class Selection:
    """What given images are made of."""

    manifests: set[Digest] = field(default_factory=set)
    blobs: set[Digest] = field(default_factory=set)


def select_images(registry: Registry, images: Iterable[str]) -> Selection:
    """Find what images are made of: their manifests, those an index lists, configs and layers.

    Args:
        images: references; a host in them is not looked at.

    Raises:
        ReferenceInvalidError: one that cannot be parsed.
        ManifestUnknownError, NameUnknownError: one that is not there.
    """
    selection = Selection()
    for image in images:
        reference = Reference.parse(image)
        pending: list[Digest | str] = [reference.digest or reference.target]
        while pending:
            stored = _manifest(registry, reference, pending.pop())
            if stored.digest in selection.manifests:
                continue
            selection.manifests.add(stored.digest)
            document = parse_manifest(stored.raw, stored.media_type)
            if isinstance(document, Index):
                pending.extend(entry.digest for entry in document.manifests)
            else:
                selection.blobs.update(entry.digest for entry in document.blobs)
    return selection


def _manifest(registry: Registry, reference: Reference, target: Digest | str) -> StoredManifest:
    try:
        return registry.manifest(reference.repository, target)
    except ManifestUnknownError:
        joint = "@" if isinstance(target, Digest) else ":"
        raise ManifestUnknownError(f"{reference.repository}{joint}{target}") from None
