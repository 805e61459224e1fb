"""A new image: the parent's layers, one of what changed, and documents that say so.

`build_commit` makes the image; it is a source like any other (`layout.ImageSource`), so that `layout.run_copy` brings
it wherever images go: into a registry, which has the parent's layers already or mounts them, or into a file. Nothing is
published before all of it is there.

What is committed is the file system at one moment only if nobody writes to it meanwhile.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pagepool.commit.document import encode_config, encode_image, layer_media_type
from pagepool.commit.stage import StagedLayer
from pagepool.errors import ImageInvalidError, InvalidError, LimitError
from pagepool.oci import MAX_INDEX_DEPTH, Index, Manifest, Platform, parse_config, read_verified, select_platform
from pagepool.oci.mediatypes import MAX_CONFIG_SIZE
from pagepool.overlay import iter_layer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from typing import Self

    from pagepool.commit.instructions import Instruction
    from pagepool.layout import ImageSource
    from pagepool.oci import Config, Descriptor, Readable
    from pagepool.oci.mediatypes import Compression
    from pagepool.overlay import Change
    from pagepool.vfs import FileSystem


class UnchangedError(InvalidError):
    """There is nothing to commit."""

    what = "commit"

    def __init__(self, name: object) -> None:
        super().__init__(name, "nothing was changed")


@dataclass(frozen=True, slots=True)
class CommitOptions:
    """What is said of the new image.

    Args:
        compression: of the new layer. Plain suits pagepool's service, which stores every extent once, and keeps a
            compressed copy beside it otherwise; gzip suits everybody else.
        instructions: changes of what is run.
        author: whose work it is; "": the parent's author.
        comment: for the history.
        created_by: the command, for the history.
        created: when; None: now.
        allow_empty: make an image also where nothing changed: it has no new layer then.
        platform: of a parent that is an index, which image; None: this machine's.
    """

    compression: Compression = "gzip"
    instructions: Sequence[Instruction] = ()
    author: str = ""
    comment: str = ""
    created_by: str = "pagepool commit"
    created: datetime | None = None
    allow_empty: bool = False
    platform: Platform | None = None

    @property
    def timestamp(self) -> str:
        """When, RFC 3339, in UTC."""
        return (self.created or datetime.now(UTC)).astimezone(UTC).isoformat().replace("+00:00", "Z")


class CommittedImage:
    """A new image; implements `layout.ImageSource`. Close it: that drops the layer, and leaves the parent open.

    Args:
        parent: where the parent's blobs are.
        manifest: of the new image.
        config: its bytes.
        layer: what is new; None if nothing is.
    """

    def __init__(self, parent: ImageSource, manifest: Manifest, config: bytes, layer: StagedLayer | None) -> None:
        self._parent = parent
        self.manifest = manifest
        self.config = config
        self.layer = layer

    def root(self) -> Descriptor:
        """The new image's manifest."""
        return self.manifest.descriptor

    def read_manifest(self, descriptor: Descriptor) -> Manifest:
        """The new image's manifest."""
        if descriptor.digest != self.root().digest:
            raise ImageInvalidError(str(descriptor.digest), "is not the manifest of the new image")
        return self.manifest

    def has_blob(self, blob: Descriptor) -> bool:
        """Tell whether a blob is there: here, or in the parent."""
        own = (self.manifest.config.digest, self.layer.descriptor.digest if self.layer else None)
        return blob.digest in own or self._parent.has_blob(blob)

    def open_blob(self, blob: Descriptor) -> Readable:
        """Open a blob, unchecked."""
        if self.layer and blob.digest == self.layer.descriptor.digest:
            return self.layer.open()
        if blob.digest == self.manifest.config.digest:
            return io.BytesIO(self.config)
        return self._parent.open_blob(blob)

    def close(self) -> None:
        """Drop the layer."""
        if self.layer:
            self.layer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def build_commit(
    now: FileSystem,
    changes: Sequence[Change],
    parent: ImageSource,
    options: CommitOptions,
    *,
    directory: Path | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> CommittedImage:
    """Make an image of a parent and what changed.

    Args:
        now: the file system as it is.
        changes: from the parent's, as `overlay.plan_diff` gives them.
        parent: the image that the changes are to; it stays open, and is asked for its blobs when they are copied.
        options: what is said of the new image.
        directory: where the layer is kept meanwhile; None: where temporary files are.
        progress: told how many more bytes of the layer have been written.

    Returns:
        the image, to be closed.

    Raises:
        UnchangedError: there are no changes, and `options` do not allow that.
        LayerInvalidError: a changed file cannot be in a layer.
        ImageInvalidError: the parent is no image, or contradicts itself.
    """
    if not changes and not options.allow_empty:
        raise UnchangedError(str(parent.root().digest))
    manifest, config = _read_parent(parent, options.platform)
    layer = None
    if changes:
        media_type = layer_media_type(manifest, options.compression)
        layer = StagedLayer(iter_layer(now, changes), media_type, options.compression, directory, progress)
    try:
        document = _encode_config(config, layer, options)
        made = encode_image(manifest, document, layer.descriptor if layer else None)
    except BaseException:
        if layer:
            layer.close()
        raise
    return CommittedImage(parent, made, document, layer)


def _encode_config(config: Config, layer: StagedLayer | None, options: CommitOptions) -> bytes:
    return encode_config(
        config,
        layer.diff_id if layer else None,
        created=options.timestamp,
        created_by=options.created_by,
        author=options.author,
        comment=options.comment,
        instructions=options.instructions,
    )


def _read_parent(parent: ImageSource, platform: Platform | None) -> tuple[Manifest, Config]:
    found: Manifest | Index = parent.read_manifest(parent.root())
    depth = 0
    while isinstance(found, Index):
        depth += 1
        if depth > MAX_INDEX_DEPTH:
            raise LimitError(f"depth of indexes within {parent.root().digest}", depth, MAX_INDEX_DEPTH)
        found = parent.read_manifest(select_platform(found.manifests, platform or Platform.local()))
    if not found.is_image:
        raise ImageInvalidError(str(parent.root().digest), "is not an image that can be committed to")
    if found.config.size > MAX_CONFIG_SIZE:
        raise ImageInvalidError(str(found.config.digest), f"a config of {found.config.size} bytes")
    config = parse_config(read_verified(parent.open_blob(found.config), found.config))
    if len(config.diff_ids) != len(found.layers):
        counts = f"its config has {len(config.diff_ids)} layers, and its manifest {len(found.layers)}"
        raise ImageInvalidError(str(parent.root().digest), counts)
    return found, config
