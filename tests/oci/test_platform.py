"""Which image of an index is chosen."""

from __future__ import annotations

import pytest

from pagepool.digest import Digest
from pagepool.errors import InvalidError, ManifestUnknownError
from pagepool.oci import Descriptor, Platform, mediatypes, select_platform


def _index(*platforms: str) -> list[Descriptor]:
    return [
        Descriptor(
            mediatypes.OCI_MANIFEST,
            Digest.of(str(number).encode()),
            number,
            platform=Platform.parse(text) if text else None,
        )
        for number, text in enumerate(platforms)
    ]


@pytest.mark.parametrize(
    ("wanted", "offered", "chosen"),
    [
        ("linux/amd64", ["linux/arm64", "linux/amd64"], 1),
        ("linux/amd64", ["linux/amd64", "linux/amd64"], 0),
        ("linux/amd64", ["windows/amd64", "linux/amd64"], 1),
        ("linux/x86_64", ["linux/arm64", "linux/amd64"], 1),
        ("linux/arm64", ["linux/arm/v7", "linux/arm64/v8"], 1),
        ("linux/arm64/v8", ["linux/arm/v7", "linux/arm64"], 1),
        ("linux/aarch64", ["linux/arm64"], 0),
        ("linux/arm/v7", ["linux/arm/v5", "linux/arm/v6"], 1),
        ("linux/arm", ["linux/arm/v6", "linux/arm/v7"], 1),
        ("linux/amd64/v3", ["linux/amd64", "linux/amd64/v2", "linux/amd64/v4"], 1),
        ("linux/amd64", ["", "linux/amd64"], 1),
        ("linux/amd64", ["linux/arm64", ""], 1),
    ],
)
def test_choice(wanted: str, offered: list[str], chosen: int) -> None:
    assert select_platform(_index(*offered), Platform.parse(wanted)).size == chosen


@pytest.mark.parametrize(
    ("wanted", "offered"),
    [
        ("linux/amd64", []),
        ("linux/amd64", ["linux/arm64"]),
        ("linux/amd64", ["linux/amd64/v2"]),
        ("linux/arm/v6", ["linux/arm/v7"]),
        ("linux/arm64", ["linux/arm64/v9"]),
    ],
)
def test_nothing_suits(wanted: str, offered: list[str]) -> None:
    with pytest.raises(ManifestUnknownError, match=offered[0] if offered else "no platform"):
        select_platform(_index(*offered), Platform.parse(wanted))


def test_attestations_are_never_chosen() -> None:
    attestation = Descriptor(
        mediatypes.OCI_MANIFEST,
        Digest.of(b"a"),
        0,
        annotations={"vnd.docker.reference.type": "attestation-manifest"},
    )
    image = _index("linux/arm64", "linux/amd64")[1]
    assert select_platform([attestation, image], Platform.parse("linux/amd64")) is image


def test_blobs_are_never_chosen() -> None:
    """Caches of builds are indexes of layers and a configuration."""
    layer = Descriptor(mediatypes.OCI_LAYER_GZIP, Digest.of(b"a"), 1)
    with pytest.raises(ManifestUnknownError, match="no platform"):
        select_platform([layer], Platform.parse("linux/amd64"))
    assert select_platform([layer, *_index("")], Platform.parse("linux/amd64")).size == 0


def test_artifacts_are_chosen_last() -> None:
    artifact = Descriptor(mediatypes.OCI_MANIFEST, Digest.of(b"a"), 7, artifact_type="application/spdx+json")
    assert select_platform([artifact, *_index("")], Platform.parse("linux/amd64")).size == 0
    assert select_platform([artifact, *_index("linux/arm64")], Platform.parse("linux/amd64")) is artifact
    image = Descriptor(mediatypes.OCI_MANIFEST, Digest.of(b"b"), 8, artifact_type=mediatypes.OCI_CONFIG)
    assert select_platform([image, *_index("")], Platform.parse("linux/amd64")) is image


def test_what_needs_features_is_chosen_last() -> None:
    """Converters list an image in a form of their own (nydus, EROFS) beside the plain one, for the same platform."""
    nydus = Platform("linux", "amd64", os_features=("nydus.remoteimage.v1",))
    special = Descriptor(mediatypes.OCI_MANIFEST, Digest.of(b"a"), 7, platform=nydus)
    for plain in ("linux/amd64", ""):
        assert select_platform([special, *_index(plain)], Platform.parse("linux/amd64")).size == 0
    assert select_platform([special, *_index("linux/arm64")], Platform.parse("linux/amd64")) is special
    assert select_platform([*_index("linux/arm64"), special], nydus) is special
    artifact = Descriptor(mediatypes.OCI_MANIFEST, Digest.of(b"b"), 8, artifact_type="application/spdx+json")
    assert select_platform([artifact, special], Platform.parse("linux/amd64")) is special


@pytest.mark.parametrize("text", ["", "linux", "linux/", "/amd64", "a/b/c/d"])
def test_bad_platforms(text: str) -> None:
    with pytest.raises(InvalidError):
        Platform.parse(text)


def test_local_platform_is_linux() -> None:
    assert Platform.local().os == "linux"
    assert Platform.parse(str(Platform.local())) == Platform.local()
