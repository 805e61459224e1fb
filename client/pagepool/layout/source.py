"""Reading images from files: OCI layouts (in a directory or a tar) and docker archives (in a tar).

Follows image-spec v1.1.0 `image-layout.md`, and what `docker save` writes: a `manifest.json` that names a
config and plain layers. A docker archive has no manifest that a registry would take, so one is made: Docker
schema 2, the config as it is, the layers as they lie in the archive.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from pagepool.digest import Digest, new_hasher
from pagepool.errors import DigestMismatchError, ImageInvalidError
from pagepool.layout.files import Files, read_document
from pagepool.oci import (
    Config,
    Descriptor,
    Index,
    Manifest,
    Readable,
    encode_manifest,
    mediatypes,
    parse_config,
    parse_manifest,
)
from pagepool.oci.fields import Object, load_object, load_objects
from pagepool.oci.verify import CHUNK_SIZE, read_verified

CONTAINERD_NAME = "io.containerd.image.name"
"""The annotation with the whole name of an image, in what newer Docker versions save."""

_MAGIC = {b"\x1f\x8b": mediatypes.DOCKER_LAYER_GZIP, b"\x28\xb5\x2f\xfd": mediatypes.DOCKER_LAYER_ZSTD}
_HEX_NAME = re.compile(r"(?:.*/)?([0-9a-f]{64})(?:\.json|\.tar|/layer\.tar)?")


def blob_name(digest: Digest) -> str:
    """Where a layout has a blob."""
    return f"blobs/{digest.algorithm}/{digest.hex}"


class LayoutSource:
    """One image or index out of an OCI layout. Thread-safe.

    Args:
        files: the layout; this object closes it.
        name: which one: its name in the layout's index, or its digest; None if the layout has only one.

    Raises:
        ImageInvalidError: not a layout, or it has no such image, or several and none was named.
    """

    def __init__(self, files: Files, name: str | None) -> None:
        self._files = files
        check_layout(files)
        index = parse_index(files)
        self._root = _choose(index, name, files.where)

    def root(self) -> Descriptor:
        """The chosen entry of the layout's index."""
        return self._root

    def read_manifest(self, descriptor: Descriptor) -> Manifest | Index:
        """Read a manifest or index."""
        if descriptor.size > mediatypes.MAX_MANIFEST_SIZE * 4:
            raise ImageInvalidError(self._files.where, f"manifest {descriptor.digest} has {descriptor.size} bytes")
        raw = read_verified(self._files.open(blob_name(descriptor.digest)), descriptor)
        return parse_manifest(raw, descriptor.media_type)

    def has_blob(self, blob: Descriptor) -> bool:
        """Tell whether a blob is there."""
        return self._files.size(blob_name(blob.digest)) is not None

    def open_blob(self, blob: Descriptor) -> Readable:
        """Open a blob, unchecked."""
        return self._files.open(blob_name(blob.digest))

    def close(self) -> None:
        """Release the files."""
        self._files.close()

    def is_complete(self) -> bool:
        """Tell whether everything below the root is there. Docker saves indexes of which it has only a part."""
        waiting = [self._root]
        while waiting:
            entry = waiting.pop()
            if not self.has_blob(entry):
                return False
            if entry.media_type in mediatypes.MANIFESTS | mediatypes.INDEXES:
                manifest = self.read_manifest(entry)
                waiting += manifest.manifests if isinstance(manifest, Index) else manifest.blobs
        return True


def check_layout(files: Files) -> None:
    """Check the file that marks a layout.

    Raises:
        ImageInvalidError: it is missing, or of a version that is not understood.
    """
    marker = load_object(read_document(files, "oci-layout"), "oci-layout", ImageInvalidError)
    version = marker.string("imageLayoutVersion")
    if not re.fullmatch(r"1\.[0-9]+\.[0-9]+", version):
        raise ImageInvalidError(files.where, f"layout version {version[:20]!r} is not supported")


def parse_index(files: Files) -> Index:
    """Read the index of a layout."""
    index = parse_manifest(read_document(files, "index.json"))
    if not isinstance(index, Index):
        raise ImageInvalidError(files.where, "index.json is not an index")
    return index


def _choose(index: Index, name: str | None, where: str) -> Descriptor:
    entries = index.manifests
    if name is not None:
        entries = tuple(entry for entry in entries if name in _names(entry))
        if not entries:
            offered = _offer(index.manifests)
            raise ImageInvalidError(where, f"has no image {name!r}{offered}")
    if len({entry.digest for entry in entries}) > 1:
        raise ImageInvalidError(where, f"has {len(entries)} images; name one as PATH:NAME{_offer(entries)}")
    if not entries:
        raise ImageInvalidError(where, "has no image")
    return entries[0]


def _names(entry: Descriptor) -> set[str]:
    """What an entry may be called: its annotations, the tag alone if they hold a whole name, and its digest."""
    names = {entry.ref_name, entry.annotations.get(CONTAINERD_NAME, "")} - {""}
    tags = {name.rsplit(":", 1)[1] for name in names if ":" in name.rsplit("/", 1)[-1]}
    return names | tags | _familiar(names) | {str(entry.digest), f"@{entry.digest}"}


def _familiar(names: Iterable[str]) -> set[str]:
    """The names as people write them, where Docker's tools spell them out."""
    return {name.removeprefix("docker.io/").removeprefix("library/") for name in names}


def _offer(entries: tuple[Descriptor, ...]) -> str:
    shown = [entry.ref_name or str(entry.digest) for entry in entries[:10]]
    return f"; it has {', '.join(shown)}" if shown else ""


@dataclass(frozen=True, slots=True)
class _Saved:
    """One image in `manifest.json`."""

    config: str
    layers: tuple[str, ...]
    tags: tuple[str, ...]

    @classmethod
    def from_fields(cls, fields: Object) -> _Saved:
        return cls(fields.string("Config"), fields.strings("Layers"), fields.strings("RepoTags"))


class DockerArchiveSource:
    """One image out of what `docker save` wrote. Thread-safe.

    Layers that are compressed in the archive are read once more, to learn their digest.

    Args:
        files: the archive; this object closes it.
        name: which image: one of its tags, or ``@N`` for the N-th; None if the archive has only one.

    Raises:
        ImageInvalidError: not such an archive, or the image is damaged or missing, or several and none was
            named.
        DigestMismatchError: the config is not what its name says.
    """

    def __init__(self, files: Files, name: str | None) -> None:
        self._files = files
        document = read_document(files, "manifest.json")
        images = [_Saved.from_fields(entry) for entry in load_objects(document, "manifest.json", ImageInvalidError)]
        saved = _choose_saved(images, name, files.where)
        self._places: dict[Digest, str] = {}
        config, descriptor = self._config(saved.config)
        if len(config.diff_ids) != len(saved.layers):
            count = f"{len(saved.layers)} layers, and its config has {len(config.diff_ids)}"
            raise ImageInvalidError(files.where, f"manifest.json has {count}")
        layers = [self._layer(*pair) for pair in zip(saved.layers, config.diff_ids, strict=True)]
        self._manifest = encode_manifest(descriptor, layers, media_type=mediatypes.DOCKER_MANIFEST)

    def root(self) -> Descriptor:
        """The manifest that was made for the image."""
        return self._manifest.descriptor

    def read_manifest(self, descriptor: Descriptor) -> Manifest:
        """The manifest that was made for the image."""
        if descriptor.digest != self._manifest.descriptor.digest:
            raise ImageInvalidError(self._files.where, f"manifest {descriptor.digest} is missing")
        return self._manifest

    def has_blob(self, blob: Descriptor) -> bool:
        """Tell whether a blob is there."""
        return blob.digest in self._places

    def open_blob(self, blob: Descriptor) -> Readable:
        """Open the config or a layer, unchecked."""
        if blob.digest not in self._places:
            raise ImageInvalidError(self._files.where, f"blob {blob.digest} is missing")
        return self._files.open(self._places[blob.digest])

    def close(self) -> None:
        """Release the files."""
        self._files.close()

    def _config(self, name: str) -> tuple[Config, Descriptor]:
        raw = read_document(self._files, name)
        descriptor = Descriptor.of(mediatypes.DOCKER_CONFIG, raw)
        said = _HEX_NAME.fullmatch(name)
        if said and said[1] != descriptor.digest.hex:
            raise DigestMismatchError(Digest("sha256", bytes.fromhex(said[1])), descriptor.digest, len(raw))
        self._places[descriptor.digest] = name
        return parse_config(raw), descriptor

    def _layer(self, name: str, diff_id: Digest) -> Descriptor:
        size = self._files.size(name)
        source = self._files.open(name)
        try:
            head = source.read(4)
        finally:
            source.close()
        compressed = (kind for magic, kind in _MAGIC.items() if head.startswith(magic))
        media_type = next(compressed, mediatypes.DOCKER_LAYER)
        digest = diff_id if media_type == mediatypes.DOCKER_LAYER else self._hash(name)
        self._places[digest] = name
        return Descriptor(media_type, digest, size or 0)

    def _hash(self, name: str) -> Digest:
        hasher = new_hasher("sha256")
        source = self._files.open(name)
        try:
            while chunk := source.read(CHUNK_SIZE):
                hasher.update(chunk)
        finally:
            source.close()
        return Digest("sha256", hasher.digest())


def _choose_saved(images: list[_Saved], name: str | None, where: str) -> _Saved:
    if name is not None and re.fullmatch(r"@[0-9]{1,6}", name):
        images = images[int(name[1:]) :][:1]
    elif name is not None:
        images = [image for image in images if name in _saved_names(image)]
    if not images:
        raise ImageInvalidError(where, "has no image" if name is None else f"has no image {name!r}")
    if len(images) > 1:
        offered = ", ".join(image.tags[0] if image.tags else f"@{at}" for at, image in enumerate(images[:10]))
        raise ImageInvalidError(where, f"has {len(images)} images; name one as PATH:NAME; it has {offered}")
    return images[0]


def _saved_names(image: _Saved) -> set[str]:
    tails = {tag.rsplit(":", 1)[1] for tag in image.tags if ":" in tag.rsplit("/", 1)[-1]}
    names = set(image.tags) | _familiar(image.tags)
    return names | tails | {name.removesuffix(":latest") for name in names}
