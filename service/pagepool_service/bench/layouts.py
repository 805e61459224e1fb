"""OCI layouts of images that only measurements need."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_TYPES: Final = "application/vnd.oci.image"


def blobs_of(layout: Path) -> Path:
    """Where a layout's blobs are, by the digits of their SHA-256."""
    return layout / "blobs/sha256"


def write_programs(layout: Path, programs: Mapping[str, bytes], command: Sequence[str]) -> None:
    """Write a layout of an image with some programs.

    Args:
        layout: its directory; made here.
        programs: content by path.
        command: what a container runs that is told nothing.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in programs.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o755
            archive.addfile(member, io.BytesIO(data))
    blobs_of(layout).mkdir(parents=True)
    digest = hashlib.sha256(buffer.getbuffer()).hexdigest()
    (blobs_of(layout) / digest).write_bytes(buffer.getbuffer())
    complete_layout(layout, digest, command)


def complete_layout(layout: Path, layer: str, command: Sequence[str] = ()) -> None:
    """Write all that a layout has beside the blob of its image's only layer.

    Args:
        layout: its directory.
        layer: SHA-256 of the layer, which is there: a tar, not compressed.
        command: what a container runs that is told nothing.
    """

    def put(document: object, kind: str) -> dict[str, object]:
        data = json.dumps(document).encode()
        digest = hashlib.sha256(data).hexdigest()
        (blobs_of(layout) / digest).write_bytes(data)
        return {"mediaType": f"{_TYPES}.{kind}", "digest": f"sha256:{digest}", "size": len(data)}

    rootfs = {"type": "layers", "diff_ids": [f"sha256:{layer}"]}
    wanted = {"Cmd": list(command)} if command else {}
    described = {"mediaType": f"{_TYPES}.layer.v1.tar", "digest": f"sha256:{layer}"}
    config = put({"architecture": "amd64", "os": "linux", "config": wanted, "rootfs": rootfs}, "config.v1+json")
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{_TYPES}.manifest.v1+json",
        "config": config,
        "layers": [{**described, "size": (blobs_of(layout) / layer).stat().st_size}],
    }
    index = {"schemaVersion": 2, "manifests": [put(manifest, "manifest.v1+json")]}
    (layout / "index.json").write_text(json.dumps(index))
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
