"""What can be made of an image's files that were changed: a list, a layer, a new image."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pagepool.commit import CommitOptions, build_commit
from pagepool.layout import plan_copy, run_copy
from pagepool.oci import Reference
from pagepool.overlay import iter_layer
from pagepool.transport.images import RegistrySink, RegistrySource
from pagepool.vfs import Rootfs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pagepool.digest import Digest
    from pagepool.library.image import Image
    from pagepool.overlay import Change


class Changed(Rootfs):
    """An image's files, with changes. `changes` and `parent` are what kinds of it differ in."""

    image: Image
    """What was changed."""

    def changes(self) -> list[Change]:
        """What was changed, by path, in the order of a layer. Costs what was changed, not what there is."""
        raise NotImplementedError

    def parent(self) -> Reference:
        """The image that this lies over: by digest where that was noted, because its tag may have moved.

        Raises:
            ManifestUnknownError: neither was noted, since the image was opened by its tree alone.
        """
        raise NotImplementedError

    def diff(self) -> Iterator[bytes | memoryview]:
        """What was changed as an OCI layer: an uncompressed tar in pieces, with whiteouts for what was removed.

        Nobody may change anything while it is read. The same changes give the same bytes.

        Raises:
            LayerInvalidError: no layer can hold a file, one whose name begins with ``.wh.`` for example.
            CorruptError, UnreachableError: content of a changed file cannot be had.
        """
        return iter_layer(self.fs, self.changes())

    def commit(
        self,
        reference: str | Reference,
        options: CommitOptions | None = None,
        *,
        progress: Callable[[int], None] = lambda _: None,
    ) -> Digest:
        """Push the image with what was changed as one more layer.

        Args:
            reference: its name, on the same server.
            options: what is said of it; None: nothing, and a plain layer, which pagepool's service stores once.
            progress: told how many more bytes of the layer have been written.

        Returns:
            the digest of its manifest.

        Raises:
            ReferenceInvalidError: no reference, or one of another host.
            UnchangedError: nothing was changed, and the options do not allow that.
            ManifestUnknownError: the image that it lies over is not there any more, or was opened by its tree alone.
            LayerInvalidError, CorruptError, UnreachableError: as `diff`.
        """
        target = self.image.client.parse_reference(reference)
        registry = self.image.client.registry
        parent = RegistrySource(registry, self.parent())
        chosen = CommitOptions(compression="none") if options is None else options
        with build_commit(self.fs, self.changes(), parent, chosen, progress=progress) as made:
            run_copy(plan_copy(made), made, RegistrySink(registry, target, mount_from=self.image.repository))
            return made.root().digest
