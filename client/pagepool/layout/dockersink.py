"""Writing docker archives: what `docker load`, podman and skopeo read.

The archive is of the newer kind (Docker 25): `manifest.json` for those who know docker archives, and an OCI
layout of the same blobs for those who prefer one. Layers are plain; the config is byte for byte the image's
own, so that the image keeps its id.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pagepool.digest import Digest, new_hasher
from pagepool.errors import DigestMismatchError, ImageInvalidError
from pagepool.layout.inflate import inflate
from pagepool.layout.interface import Progress
from pagepool.layout.publish import drop_stage, dropping, make_stage, translated
from pagepool.layout.sink import MARKER, copy_content, write_archive
from pagepool.layout.source import CONTAINERD_NAME, blob_name
from pagepool.oci import (
    REF_NAME,
    Descriptor,
    Index,
    Manifest,
    Readable,
    VerifyingReader,
    encode_index,
    encode_manifest,
    mediatypes,
    parse_config,
)


@dataclass(frozen=True, slots=True)
class _Plain:
    """A layer that was decompressed: where it lies, its digest and its size."""

    path: Path
    digest: Digest
    size: int


class DockerArchiveSink:
    """A docker archive, which replaces what is there. Holds one image. `put_blob` is thread-safe.

    Args:
        path: the file.
        name: what the image is to be called, ``repository:tag``; "" for no name.

    Raises:
        ImageInvalidError: a directory is there.
    """

    def __init__(self, path: Path, name: str) -> None:
        if path.is_dir():
            raise ImageInvalidError(str(path), "is a directory; an archive is a file")
        self._path = path
        self._name = name
        self._lock = threading.Lock()
        self._layers: dict[Digest, _Plain] = {}
        self._config: Path | None = None
        self._config_digest: Digest | None = None
        self._stage = make_stage(path)
        with dropping(self._stage):
            (self._stage / "plain").mkdir()

    def begin(self, root: Manifest | Index) -> None:
        """Refuse what is not one image."""
        if isinstance(root, Index):
            raise ImageInvalidError(str(self._path), "a docker archive holds one image, not an index: use --platform")
        if not root.is_image:
            kind = root.config.media_type
            raise ImageInvalidError(str(self._path), f"a docker archive holds images, and this is a {kind}")
        self._config_digest = root.config.digest

    def put_blob(self, blob: Descriptor, open_content: Callable[[], Readable], progress: Progress) -> bool:
        """Take the config as it is, and layers decompressed."""
        path = self._stage / "plain" / blob.digest.hex
        with VerifyingReader(open_content(), blob) as content:
            if blob.digest == self._config_digest:
                with path.open("wb") as file:
                    copy_content(content, file, progress)
                self._config = path
                return True
            plain = self._write_plain(path, content, str(blob.digest), progress)
        with self._lock:
            self._layers[blob.digest] = plain
        return True

    def put_manifest(self, descriptor: Descriptor, manifest: Manifest | Index) -> None:
        """Not called: there is nothing below an image's manifest."""

    def commit(self, descriptor: Descriptor, root: Manifest | Index, /) -> None:
        """Check the layers against the config, and write the archive."""
        assert isinstance(root, Manifest)
        assert self._config is not None
        config = parse_config(self._config.read_bytes())
        missing = [layer.digest for layer in root.layers if layer.digest not in self._layers]
        if missing:
            raise ImageInvalidError(str(self._path), f"layer {missing[0]} may not be distributed, and is missing")
        layers = [self._layers[layer.digest] for layer in root.layers]
        if len(config.diff_ids) != len(layers):
            count = f"the manifest has {len(layers)} layers, and the config has {len(config.diff_ids)}"
            raise ImageInvalidError(str(descriptor.digest), count)
        for diff_id, layer in zip(config.diff_ids, layers, strict=True):
            if layer.digest != diff_id:
                raise DigestMismatchError(diff_id, layer.digest, layer.size)
        write_archive(self._arrange(root, config.raw, layers), self._path)

    def close(self) -> None:
        """Remove all that is not the archive."""
        drop_stage(self._stage)

    def _write_plain(self, path: Path, content: VerifyingReader, name: str, progress: Progress) -> _Plain:
        hasher, size, taken = new_hasher("sha256"), 0, 0

        def counted() -> Iterator[bytes]:
            nonlocal taken
            for chunk in content:
                taken += len(chunk)
                progress(len(chunk))
                yield chunk

        try:
            with translated(path), path.open("wb") as file:
                for plain in inflate(counted(), name):
                    hasher.update(plain)
                    size += len(plain)
                    file.write(plain)
        except Exception:
            progress(-taken)
            raise
        return _Plain(path, Digest("sha256", hasher.digest()), size)

    def _arrange(self, root: Manifest, config: bytes, layers: list[_Plain]) -> Path:
        """Give the files the names they have in the archive, and add the documents."""
        place = self._stage / "archive"
        (place / "blobs" / "sha256").mkdir(parents=True)
        for layer in layers:
            target = place / blob_name(layer.digest)
            if not target.exists():
                layer.path.rename(target)
        config_descriptor = Descriptor.of(mediatypes.OCI_CONFIG, config)
        plain = [Descriptor(mediatypes.OCI_LAYER, layer.digest, layer.size) for layer in layers]
        manifest = encode_manifest(config_descriptor, plain, annotations=root.annotations)
        index = encode_index([replace(manifest.descriptor, annotations=self._annotations())])
        (place / blob_name(config_descriptor.digest)).write_bytes(config)
        (place / blob_name(manifest.descriptor.digest)).write_bytes(manifest.raw)
        (place / "oci-layout").write_bytes(MARKER)
        (place / "index.json").write_bytes(index.raw)
        saved = {
            "Config": blob_name(config_descriptor.digest),
            "RepoTags": [self._name] if self._name else None,
            "Layers": [blob_name(layer.digest) for layer in layers],
        }
        (place / "manifest.json").write_text(json.dumps([saved], separators=(",", ":")))
        return place

    def _annotations(self) -> dict[str, str]:
        """The image's name as containerd spells it, and its tag."""
        if not self._name:
            return {}
        first, slash, _ = self._name.partition("/")
        named = self._name
        if not slash:
            named = f"docker.io/library/{named}"
        elif not (set(".:") & set(first) or first == "localhost"):
            named = f"docker.io/{named}"
        return {CONTAINERD_NAME: named, REF_NAME: self._name.rsplit(":", 1)[1]}
