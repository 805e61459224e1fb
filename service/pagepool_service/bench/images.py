"""The images that are measured: OCI layouts, as files that can be sent as they lie.

Follows the OCI image layout, image-spec v1.1.0, ``image-layout.md``. Only directories: out of an archive nothing
could be sent without reading it first. The blobs are not checked here; the registries do that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pagepool.errors import ImageInvalidError
from pagepool.oci import Index, Manifest, mediatypes, parse_manifest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from pagepool.digest import Digest
    from pagepool.oci import Descriptor


@dataclass(frozen=True, slots=True)
class SourceBlob:
    """A blob, and the file that has it."""

    digest: Digest
    size: int
    path: Path


@dataclass(frozen=True, slots=True)
class SourceImage:
    """An image to measure.

    Args:
        name: of its layout; the repository it is pushed to.
        manifest: parsed, with its bytes.
        config: its configuration.
        layers: lowest first.
    """

    name: str
    manifest: Manifest
    config: SourceBlob
    layers: tuple[SourceBlob, ...]

    @property
    def blobs(self) -> tuple[SourceBlob, ...]:
        """Layers and configuration, each once."""
        return tuple(dict.fromkeys((*self.layers, self.config)))


def find_images(places: Iterable[Path]) -> list[SourceImage]:
    """The images in layouts, and in directories of layouts, by name.

    Raises:
        ImageInvalidError: a place has no layout in it, or one with something else than one image.
    """
    found: dict[str, SourceImage] = {}
    for place in places:
        layouts = sorted(_layouts(place))
        if not layouts:
            raise ImageInvalidError(str(place), "neither an OCI layout nor a directory of OCI layouts")
        found |= {layout.name: load_image(layout) for layout in layouts}
    return list(found.values())


def load_image(layout: Path) -> SourceImage:
    """The only image of a layout.

    Raises:
        ImageInvalidError: there is none, or there are several.
        ManifestInvalidError: a document in it cannot be used.
    """
    try:
        index = parse_manifest((layout / "index.json").read_bytes(), mediatypes.OCI_INDEX)
        entries = index.manifests if isinstance(index, Index) else ()
        if len(entries) != 1:
            raise ImageInvalidError(str(layout), f"it has {len(entries)} images; one is measured at a time")
        manifest = parse_manifest(_path(layout, entries[0].digest).read_bytes(), entries[0].media_type)
    except OSError as error:
        raise ImageInvalidError(str(layout), f"{error.filename}: {error.strerror}") from error
    if not isinstance(manifest, Manifest):
        raise ImageInvalidError(str(layout), "it holds an index, not an image")
    layers = tuple(_blob(layout, layer) for layer in manifest.layers)
    return SourceImage(layout.resolve().name, manifest, _blob(layout, manifest.config), layers)


def find_pair(images: Sequence[SourceImage]) -> tuple[SourceImage, SourceImage] | None:
    """Two near-identical images: NAME-old and NAME-new, numpy's if they are there, else the first two."""
    known = {image.name: image for image in images}
    for name in ("numpy-old", *known):
        newer = f"{name.removesuffix('-old')}-new"
        if name in known and name.endswith("-old") and newer in known:
            return known[name], known[newer]
    return (images[0], images[1]) if len(images) > 1 else None


def _layouts(place: Path) -> Iterator[Path]:
    if (place / "oci-layout").is_file():
        yield place
    elif place.is_dir():
        yield from (child for child in place.iterdir() if (child / "oci-layout").is_file())


def _blob(layout: Path, descriptor: Descriptor) -> SourceBlob:
    return SourceBlob(descriptor.digest, descriptor.size, _path(layout, descriptor.digest))


def _path(layout: Path, digest: Digest) -> Path:
    return layout / "blobs" / digest.algorithm / digest.hex
