"""A smaller image of a real one's own files: what programs need, without what only people read.

As the slim images of distributions are made. What podman, docker and umoci take for an image of a whole distribution is
much of the time of the tests that have them; those that are not about the size of an image take this one.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, cast

from isal import igzip

from tests.support.sharing import share

if TYPE_CHECKING:
    from pathlib import Path
    from typing import IO

    import pytest

_LEFT_OUT = (
    *("usr/share/bash-completion", "usr/share/info", "usr/share/lintian", "usr/share/locale", "usr/share/man"),
    *("usr/share/perl", "usr/share/perl5", "usr/lib/x86_64-linux-gnu/gconv", "usr/lib/x86_64-linux-gnu/perl"),
    *("usr/lib/x86_64-linux-gnu/perl-base", "var/cache/debconf"),
)
_DOCUMENTED = "usr/share/doc"
_KEPT_DOCUMENTS = 40  # packages whose documentation stays
_LEVEL = 3  # igzip's highest


def share_slim(layout: Path, factory: pytest.TempPathFactory) -> Path:
    """The slim image of an OCI layout, which all processes of a run of the tests have in common."""
    return share(factory, f"slim-{layout.name}", lambda place: make_slim(layout, place))


def make_slim(layout: Path, to: Path) -> Path:
    """Make an image of another one's: the first layer has fewer files, those above it are the same.

    Args:
        layout: an OCI layout of one image.
        to: does not exist yet; an OCI layout with the tag ``latest``. The same layer always gives the same bytes.
    """
    blobs = to / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    entry = _read(layout / "index.json")["manifests"][0]
    manifest = _read(_blob(layout, entry))
    config = _read(_blob(layout, manifest["config"]))
    part = to / "layer"
    with igzip.IGzipFile(part, "wb", _LEVEL, mtime=0) as packed:  # type: ignore[no-untyped-call]
        plain = _Hashing(cast("IO[bytes]", packed))
        with (
            tarfile.open(_blob(layout, manifest["layers"][0])) as source,
            tarfile.open(fileobj=cast("IO[bytes]", plain), mode="w|", format=tarfile.PAX_FORMAT) as target,
        ):
            _copy(source, target)
    with part.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    layer = {**manifest["layers"][0], "digest": f"sha256:{digest}", "size": part.stat().st_size}
    part.rename(blobs / digest)
    config["rootfs"]["diff_ids"][0] = f"sha256:{plain.hash.hexdigest()}"
    above = manifest["layers"][1:]
    for one in above:
        shutil.copy(_blob(layout, one), blobs)
    described = _write(blobs, {**config}, manifest["config"]["mediaType"])
    written = _write(blobs, {**manifest, "config": described, "layers": [layer, *above]}, entry["mediaType"])
    tagged = {**written, "annotations": {"org.opencontainers.image.ref.name": "latest"}}
    (to / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [tagged]}))
    (to / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return to


def _copy(source: tarfile.TarFile, target: tarfile.TarFile) -> None:
    documents: set[str] = set()
    for member in source:
        path = PurePosixPath(member.name)
        if any(path.is_relative_to(left_out) for left_out in _LEFT_OUT):
            continue
        if path.is_relative_to(_DOCUMENTED) and len(path.parts) > 3:
            if len(documents) == _KEPT_DOCUMENTS and path.parts[3] not in documents:
                continue
            documents.add(path.parts[3])
        if member.islnk() and PurePosixPath(member.linkname).is_relative_to("usr/share/man"):
            continue
        target.addfile(member, source.extractfile(member) if member.isreg() else None)


class _Hashing:
    """A file that is written through, and hashed."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.hash = hashlib.sha256()

    def write(self, data: bytes) -> int:
        """Write."""
        self.hash.update(data)
        return self._file.write(data)


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_bytes()))


def _blob(layout: Path, descriptor: dict[str, Any]) -> Path:
    digest: str = descriptor["digest"]
    return layout / "blobs" / digest.replace(":", "/")


def _write(blobs: Path, document: dict[str, Any], media_type: str) -> dict[str, Any]:
    """Write a blob of JSON. Returns its descriptor."""
    data = json.dumps(document, separators=(",", ":")).encode()
    digest = hashlib.sha256(data).hexdigest()
    (blobs / digest).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}
