"""An overlay of an image: its files with private changes, and what can be made of those."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Self

from pagepool.digest import Digest
from pagepool.errors import InvalidError, ManifestUnknownError
from pagepool.library.changed import Changed
from pagepool.oci import Reference
from pagepool.overlay import OverlayFileSystem, discard, plan_overlay, read_info
from pagepool.upper import find_upper
from pagepool.vfs import MutableRootfs

if TYPE_CHECKING:
    from collections.abc import Callable

    from pagepool.library.client import Client
    from pagepool.library.image import Image
    from pagepool.overlay import Change


class Overlay(Changed, MutableRootfs):
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
        directory = Path(directory).absolute()  # wherever the process goes
        if find_upper(directory) is not None:
            raise InvalidError(str(directory), "a kernel mount wrote it: only a mount can change it")
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

    def __repr__(self) -> str:
        return f"<Overlay {self.directory} of {self.image.repository} {self.image.tree}>"

    def changes(self) -> list[Change]:
        """See `Changed`."""
        return plan_overlay(self._overlay)

    def discard(self) -> None:
        """Close it, and remove its directory with everything that was changed.

        Raises:
            InvalidError: the directory holds something else, too; nothing was removed.
        """
        self.close()
        discard(self.directory)

    def parent(self) -> Reference:
        """See `Changed`."""
        noted = read_info(self.directory).info
        if "manifest" in noted:
            return Reference(self.image.repository, digest=Digest.parse(str(noted["manifest"])))
        if "image" not in noted:  # it was made over a tree alone
            raise ManifestUnknownError(str(self.image.tree))
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
