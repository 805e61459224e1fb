"""What images are copied between: sources and sinks. Registries, layouts and archives implement both.

A source hands out content as it is: whoever consumes it verifies it. A sink verifies everything it takes, and
publishes nothing before `commit`, which comes last.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from pagepool.oci import Descriptor, Index, Manifest, Readable

Progress = Callable[[int], None]
"""Told how many more bytes have gone through; a negative number takes back what must go again."""


class ImageSource(Protocol):
    """Where one image, or one index of images, is read from. Methods may be called by several threads at once."""

    def root(self) -> Descriptor:
        """What was asked for: an image's manifest, or an index."""
        ...

    def read_manifest(self, descriptor: Descriptor) -> Manifest | Index:
        """Read a manifest or index, checked against its descriptor.

        Raises:
            PagepoolError: it is missing, or is not what the descriptor says.
        """
        ...

    def has_blob(self, blob: Descriptor) -> bool:
        """Tell whether a blob is there."""
        ...

    def open_blob(self, blob: Descriptor) -> Readable:
        """Open a blob, unchecked; the caller closes it.

        Raises:
            PagepoolError: it is missing.
        """
        ...

    def close(self) -> None:
        """Release what is held."""
        ...


class ImageSink(Protocol):
    """Where one image, or one index of images, is written to.

    Called in this order: `begin`, `put_blob` for all blobs (by several threads at once), `put_manifest` for
    all manifests below the root (what a manifest refers to comes before it), `commit`, `close`.
    """

    def begin(self, root: Manifest | Index) -> None:
        """Hear what is coming, before any of it.

        Raises:
            PagepoolError: this sink cannot hold it.
        """
        ...

    def put_blob(self, blob: Descriptor, open_content: Callable[[], Readable], progress: Progress) -> bool:
        """Take a blob, unless it is here already.

        Args:
            blob: what it is.
            open_content: opens it at its beginning, unchecked; may be called several times. The sink closes
                it.
            progress: told of the bytes as they go through.

        Returns:
            Whether bytes were transferred.

        Raises:
            DigestMismatchError: the content is not what `blob` says; nothing of it is kept.
        """
        ...

    def put_manifest(self, descriptor: Descriptor, manifest: Manifest | Index) -> None:
        """Take a manifest or index below the root."""
        ...

    def commit(self, descriptor: Descriptor, root: Manifest | Index, /) -> None:
        """Take the root, and publish everything under the name the sink was made for."""
        ...

    def close(self) -> None:
        """Release what is held; what was not committed is removed, as far as it is ours alone."""
        ...
