"""Small images, made up in memory, and a source and a sink that misbehave on demand."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import zstandard

from pagepool.digest import Digest
from pagepool.errors import BlobUnknownError
from pagepool.oci import (
    Descriptor,
    Index,
    Manifest,
    Platform,
    Readable,
    encode_index,
    encode_manifest,
    mediatypes,
    parse_manifest,
)

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    mediatypes.OCI_LAYER: lambda data: data,
    mediatypes.OCI_LAYER_GZIP: lambda data: gzip.compress(data, 1, mtime=0),
    mediatypes.OCI_LAYER_ZSTD: lambda data: zstandard.compress(data, 1),
    mediatypes.DOCKER_LAYER_GZIP: lambda data: gzip.compress(data, 1, mtime=0),
}


def tar(files: dict[str, bytes]) -> bytes:
    """A tar with these files."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


@dataclass
class Sample:
    """Content by digest, and what it is the content of. Is an `ImageSource`."""

    content: dict[Digest, bytes] = field(default_factory=dict)
    top: Descriptor | None = None
    opened: list[Digest] = field(default_factory=list)

    def add(self, media_type: str, data: bytes) -> Descriptor:
        """Add content, and describe it."""
        descriptor = Descriptor.of(media_type, data)
        self.content[descriptor.digest] = data
        return descriptor

    def add_image(
        self,
        layers: list[bytes],
        platform: str = "linux/amd64",
        media_type: str = mediatypes.OCI_LAYER_GZIP,
        kind: str = mediatypes.OCI_MANIFEST,
    ) -> Descriptor:
        """Add an image of plain layers, to be stored as `media_type` says; it becomes the root."""
        parsed = Platform.parse(platform)
        config = parsed.to_json() | {
            "config": {"Cmd": ["sh"], "Env": ["A=ä"]},
            "rootfs": {"type": "layers", "diff_ids": [str(Digest.of(layer)) for layer in layers]},
        }
        docker = kind == mediatypes.DOCKER_MANIFEST
        config_type = mediatypes.DOCKER_CONFIG if docker else mediatypes.OCI_CONFIG
        described = self.add(config_type, json.dumps(config).encode())
        stored = [self.add(media_type, COMPRESS[media_type](layer)) for layer in layers]
        return self._root(encode_manifest(described, stored, media_type=kind), parsed)

    def add_index(self, entries: list[Descriptor]) -> Descriptor:
        """Add an index; it becomes the root."""
        return self._root(encode_index(entries), None)

    def _root(self, document: Manifest | Index, platform: Platform | None) -> Descriptor:
        self.content[document.descriptor.digest] = document.raw
        found = document.descriptor
        self.top = Descriptor(found.media_type, found.digest, found.size, platform=platform)
        return self.top

    def write_layout(self, path: Path, names: dict[str, Descriptor]) -> Path:
        """Write an OCI layout by hand, sharing no code with what is tested."""
        for digest, data in self.content.items():
            target = path / "blobs" / digest.algorithm / digest.hex
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        entries = []
        for name, descriptor in names.items():
            entry = descriptor.to_json()
            if name:
                entry["annotations"] = {"org.opencontainers.image.ref.name": name}
            entries.append(entry)
        (path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": entries}))
        return path

    # -- ImageSource -------------------------------------------------------------------------------------

    def root(self) -> Descriptor:
        assert self.top is not None
        return self.top

    def read_manifest(self, descriptor: Descriptor) -> Manifest | Index:
        if descriptor.digest not in self.content:
            raise BlobUnknownError(descriptor.digest)
        return parse_manifest(self.content[descriptor.digest], descriptor.media_type)

    def has_blob(self, blob: Descriptor) -> bool:
        return blob.digest in self.content

    def open_blob(self, blob: Descriptor) -> Readable:
        self.opened.append(blob.digest)
        if blob.digest not in self.content:
            raise BlobUnknownError(blob.digest)
        return io.BytesIO(self.content[blob.digest])

    def close(self) -> None:
        """Nothing is held."""


def simple(layers: int = 2, media_type: str = mediatypes.OCI_LAYER_GZIP) -> Sample:
    """One image."""
    sample = Sample()
    sample.add_image([tar({f"file{n}": b"content %d" % n * 1000}) for n in range(layers)], media_type=media_type)
    return sample


def multi_platform() -> tuple[Sample, Descriptor]:
    """An index of three platforms in an index; and the descriptor of the arm64 image."""
    sample = Sample()
    shared = tar({"shared": b"s" * 5000})
    entries = [
        sample.add_image([shared, tar({"p": platform.encode()})], platform)
        for platform in ("linux/amd64", "linux/arm64", "linux/arm/v7")
    ]
    inner = sample.add_index(entries)
    sample.add_index([inner])
    return sample, entries[1]


def contents(directory: Path) -> dict[str, bytes]:
    """All files below a directory."""
    return {
        item.relative_to(directory).as_posix(): item.read_bytes() for item in directory.rglob("*") if item.is_file()
    }
