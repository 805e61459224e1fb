"""Referrers: manifests about a manifest; on registries without the API, by the tag that stands in for it.

Follows distribution-spec v1.1.0, "Listing Referrers", "Referrers Tag Schema" and "Pushing Manifests with
Subject".
"""

from __future__ import annotations

from dataclasses import replace

from pagepool.digest import Digest
from pagepool.errors import ManifestInvalidError
from pagepool.oci.descriptor import Descriptor
from pagepool.oci.manifest import Index, Manifest, encode_index


def referrers_tag(subject: Digest) -> str:
    """The tag under which clients keep the list of referrers of `subject`."""
    return f"{subject.algorithm[:32]}-{subject.hex[:64]}"


def describe_referrer(manifest: Manifest | Index) -> Descriptor:
    """The entry for a manifest in the list of its subject's referrers."""
    return replace(manifest.descriptor, artifact_type=manifest.artifact_type, annotations=dict(manifest.annotations))


def plan_referrers(current: Manifest | Index | None, referrer: Descriptor) -> Index | None:
    """The list to push after `referrer` was pushed; None if it has it already. Pure.

    Args:
        current: what the tag names now, if anything.
        referrer: the new entry.

    Raises:
        ManifestInvalidError: the tag names something else than a list.
    """
    if current is None:
        return encode_index([referrer])
    if not isinstance(current, Index):
        raise ManifestInvalidError(current.media_type, "the tag of a list of referrers names an image")
    if any(entry.digest == referrer.digest for entry in current.manifests):
        return None
    return encode_index([*current.manifests, referrer], annotations=current.annotations)


def filter_referrers(entries: tuple[Descriptor, ...], artifact_type: str) -> tuple[Descriptor, ...]:
    """Those of one artifact type; all, if that is ""."""
    return tuple(entry for entry in entries if not artifact_type or entry.artifact_type == artifact_type)
