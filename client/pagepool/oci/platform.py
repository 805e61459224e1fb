"""Platforms, and the choice of one image out of an index.

The names are Go's (``linux/arm64/v8``), as image-spec v1.1.0 `image-index.md` says; the choice follows what
containerd does: an exact variant first, then a lesser variant that the wanted CPU also runs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pagepool.errors import InvalidError, ManifestUnknownError
from pagepool.oci import mediatypes

if TYPE_CHECKING:
    from pagepool.oci.descriptor import Descriptor
    from pagepool.oci.fields import Object

_ARCHITECTURES = {
    "aarch64": ("arm64", ""),
    "armhf": ("arm", "v7"),
    "armv7l": ("arm", "v7"),
    "armel": ("arm", "v6"),
    "armv6l": ("arm", "v6"),
    "i386": ("386", ""),
    "i686": ("386", ""),
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
}
# What a platform without a variant means, and what is left out when it is written.
_DEFAULT_VARIANTS = {"arm": "v7", "arm64": "v8", "amd64": "v1"}
# Ranks beyond all that say something: of what names no platform, and in addition of what wants features that are not
# there, and of what is an artifact.
_UNKNOWN, _FEATURES, _ARTIFACT = 1000, 5000, 10_000
_ATTESTATION = "vnd.docker.reference.type"


@dataclass(frozen=True, slots=True)
class Platform:
    """What an image runs on. Empty text is "not said".

    Args:
        os: operating system, as Go names it.
        architecture: CPU, as Go names it.
        variant: variant of the CPU: ``v7``.
        os_version: version of the operating system (Windows).
        os_features: features of the operating system that must be there (of Windows, or of a snapshotter).
    """

    os: str
    architecture: str
    variant: str = ""
    os_version: str = ""
    os_features: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Platform:
        """Parse ``os/architecture[/variant]``; usual other names of a CPU (``x86_64``) are understood.

        Raises:
            InvalidError: not of that form.
        """
        parts = text.strip().lower().split("/")
        if not 2 <= len(parts) <= 3 or not all(parts):
            raise InvalidError(text, "a platform is os/architecture or os/architecture/variant")
        architecture, variant = _ARCHITECTURES.get(parts[1], (parts[1], ""))
        return cls(parts[0], architecture, parts[2] if len(parts) == 3 else variant)

    @classmethod
    def from_fields(cls, fields: Object) -> Platform:
        """Read a ``platform`` object, or the fields of the same names in an image config.

        Builders leave out what they do not know, so absent is empty here, although the specification requires
        ``os`` and ``architecture``.
        """
        return cls(
            os=fields.optional_string("os"),
            architecture=fields.optional_string("architecture"),
            variant=fields.optional_string("variant"),
            os_version=fields.optional_string("os.version"),
            os_features=fields.strings("os.features"),
        )

    @classmethod
    def local(cls) -> Platform:
        """The platform of this machine, with Linux as the operating system: images are for containers."""
        machine = os.uname().machine.lower()
        architecture, variant = _ARCHITECTURES.get(machine, (machine, ""))
        return cls("linux", architecture, variant)

    @property
    def effective_variant(self) -> str:
        """The variant, or the one that an architecture without a variant means."""
        return self.variant or _DEFAULT_VARIANTS.get(self.architecture, "")

    def to_json(self) -> dict[str, Any]:
        """The ``platform`` object of a descriptor."""
        fields: dict[str, Any] = {"architecture": self.architecture, "os": self.os}
        if self.os_version:
            fields["os.version"] = self.os_version
        if self.os_features:
            fields["os.features"] = list(self.os_features)
        if self.variant:
            fields["variant"] = self.variant
        return fields

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


def rank(wanted: Platform, offered: Platform | None) -> int | None:
    """How well an image suits a platform: 0 is exact, more is worse, None is not at all. Pure."""
    if offered is None:
        return _UNKNOWN
    if (offered.os, offered.architecture) != (wanted.os, wanted.architecture):
        return None
    if wanted.os_version and offered.os_version and offered.os_version != wanted.os_version:
        return None
    base = 0 if set(offered.os_features) <= set(wanted.os_features) else _FEATURES
    if offered.effective_variant == wanted.effective_variant:
        return base
    have, want = _level(offered.effective_variant), _level(wanted.effective_variant)
    if have is None or want is None or have > want:
        return None
    # An arm64 machine is not asked to run another major version; 32-bit arm and amd64 levels are upward
    # compatible.
    return None if wanted.architecture == "arm64" else base + want - have


def select_platform(manifests: Sequence[Descriptor], wanted: Platform) -> Descriptor:
    """Choose the entry of an index that suits a platform best; the first of equals.

    What is no document of an image or of images is passed over (builders list the layers of a cache so), and so are
    attestations. What wants features of the operating system that are not there (images that nydus converted, beside
    the plain ones) is taken if there is nothing else, and so is, after that, what says that it is an artifact.

    Raises:
        ManifestUnknownError: none does; it names those that are there.
    """
    ranked: list[tuple[int, int]] = []
    for position, entry in enumerate(manifests):
        if is_attestation(entry) or entry.media_type not in mediatypes.DOCUMENTS:
            continue
        if (worth := rank(wanted, entry.platform)) is not None:
            is_artifact = entry.artifact_type and entry.artifact_type not in mediatypes.CONFIGS
            ranked.append((worth + _ARTIFACT if is_artifact else worth, position))
    if not ranked:
        offered = ", ".join(sorted({str(entry.platform) for entry in manifests if entry.platform})) or "no platform"
        raise ManifestUnknownError(f"for {wanted} (the index offers {offered})")
    return manifests[min(ranked)[1]]


def is_attestation(entry: Descriptor) -> bool:
    """Whether an entry of an index is what buildkit says of an image beside it: its platform is unknown/unknown."""
    return _ATTESTATION in entry.annotations


def _level(variant: str) -> int | None:
    digits = variant[1:]
    return int(digits) if variant[:1] == "v" and digits.isascii() and digits.isdigit() and len(digits) < 4 else None
