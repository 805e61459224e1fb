"""What programs wrote in a kernel mount of an image, to be read and made into a layer: without mounting it again."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from pagepool.errors import ManifestUnknownError
from pagepool.library.changed import Changed
from pagepool.library.image import Image
from pagepool.oci import Reference
from pagepool.overlay import plan_diff
from pagepool.upper import UpperFileSystem, UpperUnknownError, find_upper, read_upper, read_upper_info

if TYPE_CHECKING:
    from collections.abc import Callable

    from pagepool.library.client import Client
    from pagepool.overlay import Change


class Upper(Changed):
    """An image's files as a kernel mount with this upper showed them. Read-only; made by `Client.upper`; close it.

    Args:
        fs: closed with this.
        image: what it lies over.
        directory: the upper.
        on_close: called once afterwards.
    """

    def __init__(self, fs: UpperFileSystem, image: Image, directory: Path, on_close: Callable[[], object]) -> None:
        super().__init__(fs, on_close)
        self.image = image
        self.directory = directory
        self._upper = fs

    def changes(self) -> list[Change]:
        """See `Changed`."""
        return plan_diff(self._upper, self._upper.base, self._upper)

    def is_current(self) -> bool:
        """Whether nothing was written since this was opened, as far as the times of files tell (those of what is
        written through a mapping may come later). Where the upper is mounted, what was read meanwhile is of one moment
        then."""
        return self._upper.is_current()

    def parent(self) -> Reference:
        """See `Changed`."""
        if self.image.manifest is not None:
            return Reference(self.image.repository, digest=self.image.manifest)
        if self.image.reference is None:
            raise ManifestUnknownError(str(self.image.tree))
        return self.image.reference


def open_upper(client: Client, directory: str | Path) -> Upper:
    """See `Client.upper`."""
    upper = find_upper(Path(directory).absolute())
    if upper is None:
        raise UpperUnknownError(directory)
    noted = read_upper_info(upper)
    reference = Reference.parse(noted.image) if noted.image else None
    place = client.tree(noted.repository, noted.tree).pool
    image = Image(client, noted.repository, noted.tree, reference=reference, manifest=noted.manifest, pool=place)
    with ExitStack() as stack:
        base, release = image.open_tree()
        stack.callback(release)
        stack.callback(base.close)
        # What is in it is read, and not mounted: devices do no harm.
        fs = UpperFileSystem(upper, read_upper(upper, base.tree, devices=True), base)
        undo = stack.pop_all()
    return Upper(fs, image, upper, undo.close)
