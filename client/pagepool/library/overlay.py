"""An overlay of an image: its files with private changes, and what can be made of those."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Self

from pagepool.commit import CommitOptions, build_commit
from pagepool.digest import Digest
from pagepool.layout import plan_copy, run_copy
from pagepool.oci import Reference
from pagepool.overlay import OverlayFileSystem, discard, iter_layer, plan_overlay, read_info
from pagepool.transport.images import RegistrySink, RegistrySource
from pagepool.vfs import MutableRootfs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pagepool.library.client import Client
    from pagepool.library.image import Image
    from pagepool.overlay import Change


class Overlay(MutableRootfs):
    """An image's files with private changes in a directory. Made by `Image.overlay`; close it.

    What an operation did is kept though the process is killed right after; `sync` makes it survive the loss of power.

    Args:
        fs: closed with this.
        image: what it lies over.
        directory: where the changes are.
        on_close: called once afterwards.
    """

    def __init__(self, fs: OverlayFileSystem, image: Image, directory: Path, on_close: Callable[[], object]) -> None:
        super().__init__(fs, on_close)
        self.image = image
        self.directory = directory
        self._overlay = fs

    @classmethod
    def open_image(cls, image: Image, directory: str | Path) -> Self:
        """See `Image.overlay`."""
        directory = Path(directory)
        with ExitStack() as stack:
            base, release = image.open_tree()
            stack.callback(release)
            stack.callback(base.close)
            info = {"server": str(image.client.session.base), "repository": image.repository}
            if image.manifest is not None:
                info["manifest"] = str(image.manifest)
            if image.reference is not None:
                info["image"] = str(image.reference)
            fs = OverlayFileSystem.open(directory, base, tree=image.tree.raw, info=info)
            stack.pop_all()

        def close() -> None:
            base.close()
            release()

        return cls(fs, image, directory, close)

    def changes(self) -> list[Change]:
        """What was changed, by path, in the order of a layer. Costs what was changed, not what there is."""
        return plan_overlay(self._overlay)

    def diff(self) -> Iterator[bytes | memoryview]:
        """What was changed as an OCI layer: an uncompressed tar in pieces, with whiteouts for what was removed.

        Nobody may change the overlay while it is read. The same changes give the same bytes.

        Raises:
            LayerInvalidError: no layer can hold a file, one whose name begins with ``.wh.`` for example.
            CorruptError, UnreachableError: content of a changed file cannot be had.
        """
        return iter_layer(self._overlay, self.changes())

    def commit(
        self,
        reference: str | Reference,
        options: CommitOptions | None = None,
        *,
        progress: Callable[[int], None] = lambda _: None,
    ) -> Digest:
        """Push the image with what was changed as one more layer.

        Args:
            reference: its name, on the same server; a host in it must be that server's.
            options: what is said of it; None: nothing, and a plain layer, which pagepool's service stores once.
            progress: told how many more bytes of the layer have been written.

        Returns:
            the digest of its manifest.

        Raises:
            ReferenceInvalidError: no reference, or one of another host.
            UnchangedError: nothing was changed, and the options do not allow that.
            ManifestUnknownError: the image that it lies over is not there any more.
            LayerInvalidError, CorruptError, UnreachableError: as `diff`.
        """
        target = self.image.client.parse_reference(reference)
        registry = self.image.client.registry
        parent = RegistrySource(registry, self.parent())
        chosen = CommitOptions(compression="none") if options is None else options
        with build_commit(self._overlay, self.changes(), parent, chosen, progress=progress) as made:
            run_copy(plan_copy(made), made, RegistrySink(registry, target, mount_from=self.image.repository))
            return made.root().digest

    def discard(self) -> None:
        """Close it, and remove its directory with everything that was changed.

        Raises:
            InvalidError: the directory holds something else, too; nothing was removed.
        """
        self.close()
        discard(self.directory)

    def parent(self) -> Reference:
        """The image that this lies over: by digest where that was noted, because its tag may have moved."""
        noted = read_info(self.directory).info
        if "manifest" in noted:
            return Reference(self.image.repository, digest=Digest.parse(str(noted["manifest"])))
        return Reference.parse(str(noted["image"]))


def open_overlay(client: Client, directory: str | Path) -> Overlay:
    """Take up an overlay that is there, whatever image it lies over; the service need not be asked for that.

    Raises:
        OverlayUnknownError: there is none.
        BusyError: somebody has it open.
        UnreachableError: the image's tree file is not here, and the service cannot be reached.
    """
    directory = Path(directory)
    found = read_info(directory)
    image = client.tree(str(found.info["repository"]), Digest("blake3", found.tree))
    return Overlay.open_image(image, directory)
