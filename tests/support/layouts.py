"""OCI images as tests read them, from layouts and registries: by the specification, with nothing of pagepool's.

Follows image-spec v1.1.0 (``image-layout.md``, ``manifest.md``) and distribution-spec v1.1.0. Whatever is read
is checked against its digest here.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_PIECE = 1 << 20
_REF_NAME = "org.opencontainers.image.ref.name"
_ACCEPT = ", ".join(
    (
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    )
)


@dataclass(frozen=True, slots=True)
class Blob:
    """What a descriptor says of a blob."""

    media_type: str
    digest: str
    size: int

    @classmethod
    def parse(cls, descriptor: dict[str, Any]) -> Blob:
        """Read a descriptor."""
        return cls(descriptor["mediaType"], descriptor["digest"], descriptor["size"])

    def check(self, pieces: Iterable[bytes]) -> None:
        """Check that these bytes are the blob's."""
        hasher, size = hashlib.sha256(), 0
        for piece in pieces:
            hasher.update(piece)
            size += len(piece)
        assert (f"sha256:{hasher.hexdigest()}", size) == (self.digest, self.size)


@dataclass(frozen=True, slots=True)
class Image:
    """An image by its manifest. Two that are equal are the same bytes throughout, as every blob was checked."""

    manifest: Blob
    config: Blob
    layers: tuple[Blob, ...]
    diff_ids: tuple[str, ...]

    @property
    def blobs(self) -> tuple[Blob, ...]:
        """Configuration and layers."""
        return (self.config, *self.layers)


def read_image(layout: Path, tag: str | None = None) -> Image:
    """The image with that name in a layout, or the only one there is."""

    def path(digest: str) -> Path:
        return layout / "blobs" / digest.replace(":", "/")

    entries = json.loads((layout / "index.json").read_bytes())["manifests"]
    (entry,) = [one for one in entries if tag is None or one.get("annotations", {}).get(_REF_NAME) == tag]
    root = Blob.parse(entry)
    manifest = json.loads(path(root.digest).read_bytes())
    image = _image(root, manifest, path(manifest["config"]["digest"]).read_bytes())
    for blob in (root, *image.blobs):
        with path(blob.digest).open("rb") as file:
            blob.check(iter(lambda: file.read(_PIECE), b""))  # used up within this turn of the loop
    return image


def fetch_image(url: str, repository: str, reference: str) -> Image:
    """The image of that name in a registry."""
    with httpx.Client(base_url=f"{url}/v2/{repository}/", timeout=120) as http:
        answer = http.get(f"manifests/{reference}", headers={"Accept": _ACCEPT})
        answer.raise_for_status()
        root = Blob(answer.headers["content-type"], answer.headers["docker-content-digest"], len(answer.content))
        root.check([answer.content])
        manifest = answer.json()
        config = http.get(f"blobs/{manifest['config']['digest']}").raise_for_status().content
        image = _image(root, manifest, config)
        for blob in set(image.blobs):
            blob.check(_stream(http, blob))
    return image


def write_plain(source: Path, target: Path) -> None:
    """Make a layout with the image of another, tag ``latest``, its gzip layers as plain tars."""
    image = read_image(source)
    blobs = target / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def put(kind: str, pieces: Iterable[bytes]) -> dict[str, Any]:
        hasher, size, unnamed = hashlib.sha256(), 0, target / "unnamed"
        with unnamed.open("wb") as file:
            for piece in pieces:
                hasher.update(piece)
                size += file.write(piece)
        unnamed.rename(blobs / hasher.hexdigest())
        return {
            "mediaType": f"application/vnd.oci.image.{kind}",
            "digest": f"sha256:{hasher.hexdigest()}",
            "size": size,
        }

    def inflated(layer: Blob) -> Iterator[bytes]:
        with gzip.open(source / "blobs" / layer.digest.replace(":", "/")) as file:
            yield from iter(lambda: file.read(_PIECE), b"")

    config = (source / "blobs" / image.config.digest.replace(":", "/")).read_bytes()
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": put("config.v1+json", [config]),
        "layers": [put("layer.v1.tar", inflated(layer)) for layer in image.layers],
    }
    entry = put("manifest.v1+json", [json.dumps(manifest).encode()]) | {"annotations": {_REF_NAME: "latest"}}
    (target / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (target / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


def _stream(http: httpx.Client, blob: Blob) -> Iterator[bytes]:
    with http.stream("GET", f"blobs/{blob.digest}") as answer:
        answer.raise_for_status()
        assert answer.headers["content-length"] == str(blob.size)
        yield from answer.iter_raw(_PIECE)


def _image(root: Blob, manifest: dict[str, Any], config: bytes) -> Image:
    layers = tuple(map(Blob.parse, manifest["layers"]))
    diff_ids = tuple(json.loads(config)["rootfs"]["diff_ids"])
    assert len(layers) == len(diff_ids)
    return Image(root, Blob.parse(manifest["config"]), layers, diff_ids)
