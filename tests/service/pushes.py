"""Pushing by plain HTTP, as small as it can be."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from typing import TYPE_CHECKING, Any

from pagepool.digest import Digest
from pagepool.oci.mediatypes import OCI_CONFIG, OCI_INDEX, OCI_LAYER_GZIP, OCI_MANIFEST

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import httpx


def begin_upload(http: httpx.Client, repository: str) -> str:
    """Begin an upload; its location."""
    answer = http.post(f"/v2/{repository}/blobs/uploads/")
    assert answer.status_code == 202, answer.text
    return str(answer.headers["location"])


def finishing(location: str, digest: object) -> str:
    """Where the upload at a location is finished: it may have a query of its own."""
    return f"{location}{'&' if '?' in location else '?'}digest={digest}"


def push_blob(http: httpx.Client, repository: str, data: bytes, algorithm: str = "sha256") -> Digest:
    """Push a blob with POST and PUT, which every registry knows."""
    digest = Digest.of(data, algorithm)
    answer = http.put(finishing(begin_upload(http, repository), digest), content=data)
    assert answer.status_code == 201, answer.text
    return digest


def tar_layer(files: Mapping[str, bytes]) -> bytes:
    """A plain tar with these files; programs can be run."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            member.mode = 0o755 if data.startswith(b"\x7fELF") else 0o644
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def descriptor(media_type: str, data: bytes, algorithm: str = "sha256") -> dict[str, Any]:
    """A descriptor of some content."""
    return {"mediaType": media_type, "digest": str(Digest.of(data, algorithm)), "size": len(data)}


def image_parts(
    files: Mapping[str, bytes] | None = None, tar: bytes | None = None, **extra: Any
) -> tuple[bytes, bytes, bytes]:
    """The manifest, configuration and only layer of an image; `extra` are more fields of the manifest."""
    tar = tar_layer(files or {"etc/hello": b"hello\n"}) if tar is None else tar
    manifest, config, (layer,) = layered_parts([tar], **extra)
    return manifest, config, layer


def layered_parts(tars: Sequence[bytes], **extra: Any) -> tuple[bytes, bytes, list[bytes]]:
    """The manifest, configuration and layers of an image."""
    layers = [gzip.compress(tar, mtime=0) for tar in tars]
    rootfs = {"type": "layers", "diff_ids": [str(Digest.of(tar)) for tar in tars]}
    config = json.dumps({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs}).encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(OCI_CONFIG, config),
        "layers": [descriptor(OCI_LAYER_GZIP, layer) for layer in layers],
        **extra,
    }
    return json.dumps(manifest).encode(), config, layers


def push_image(
    http: httpx.Client, repository: str, reference: str, files: Mapping[str, bytes] | None = None, **extra: Any
) -> Digest:
    """Push an image of one layer."""
    manifest, config, layer = image_parts(files, **extra)
    for blob in (config, layer):
        push_blob(http, repository, blob)
    return put_manifest(http, repository, reference, manifest)


def push_layers(http: httpx.Client, repository: str, reference: str, tars: Sequence[bytes]) -> Digest:
    """Push an image of these layers, the lowest first."""
    manifest, config, layers = layered_parts(tars)
    for blob in (config, *layers):
        push_blob(http, repository, blob)
    return put_manifest(http, repository, reference, manifest)


def put_manifest(
    http: httpx.Client, repository: str, reference: str, manifest: bytes, media_type: str = OCI_MANIFEST
) -> Digest:
    """Push a manifest."""
    url = f"/v2/{repository}/manifests/{reference}"
    answer = http.put(url, content=manifest, headers={"Content-Type": media_type})
    assert answer.status_code == 201, answer.text
    return Digest.parse(answer.headers["docker-content-digest"])


def index_of(*manifests: bytes, **extra: Any) -> bytes:
    """An index of some manifests."""
    entries = [descriptor(OCI_MANIFEST, manifest) for manifest in manifests]
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries, **extra}).encode()
