"""The demo's second half: read the images by the library, change one in an overlay, and mount it if that can be done:
by the kernel (`kernelmount`), else by FUSE.

Everything is below the demo's directory: the client's own pool, the overlay, the mount point. Each file that is read is
compared with the digest that the image has of it. A FUSE mount is served by this process, and gone before the service.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pagepool.content import Sharing, measure_sharing
from pagepool.digest import Digest, blake3_raw
from pagepool.errors import DigestMismatchError, PagepoolError, StoreFullError, UnsupportedError
from pagepool.image import Kind
from pagepool.library import Client
from pagepool.vfs import ROOT
from pagepool_service.demo.kernelmount import KernelMounted, mount_by_kernel, why_not

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pagepool.digest import Digest as DigestType
    from pagepool.library import Image
    from pagepool.oci import Reference
    from pagepool.vfs import TreeFileSystem
    from pagepool_service.demo.progress import Narrator

CHANGED = "/demo/changed"
NEW_TAG = "changed"


@dataclass(frozen=True, slots=True)
class Reading:
    """What reading has shown.

    Args:
        images: that were read.
        files: regular files in them, each compared with its digest.
        logical_bytes: of all of them.
        unique_bytes: of their contents, each once: what is in memory.
        overlay_bytes: that an overlay takes in which one block of a file was changed.
        committed: the image that the overlay was pushed as; "" if none was.
        mounted: whether an image was mounted.
        not_mounted: why not.
        backend: ``kernel`` or ``fuse``; "" if it was not mounted.
        not_kernel: why it was not mounted by the kernel; "" if it was.
        kernel: what the kernel's mount has shown; None if there was none.
    """

    images: int
    files: int
    logical_bytes: int
    unique_bytes: int
    overlay_bytes: int
    committed: str
    mounted: bool
    not_mounted: str
    backend: str
    not_kernel: str
    kernel: KernelMounted | None

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def read_images(
    url: str, directory: Path, references: Sequence[Reference], narrator: Narrator, *, run: bool = False
) -> Reading | None:
    """Read images, change the last one, mount it.

    Args:
        directory: for everything that is kept meanwhile.
        references: images that are ready.
        run: whether a program of theirs may be run on this machine: they are of its own files.

    Returns:
        what was seen; None if there is no image.

    Raises:
        DigestMismatchError: a file is not what its image says.
    """
    if not references:
        return None
    with Client(url, directory=directory / "client", shared=False) as client:
        images = [client.image(reference) for reference in references]
        files = 0
        for reference, image in zip(references, images, strict=True):
            with narrator.step(f"read every file of {reference}") as step:
                count, step.size = _read(image)
                step.what = "compared with their digests"
                files += count
        sharing = _sharing(images)
        overlay_bytes, committed = _change(images[-1], references[-1], directory / "overlay", narrator)
        found, not_kernel = _mount_by_kernel(url, references[-1], directory / "node", narrator, run=run)
        reason = "" if found else _mount(images[-1], directory / "mount", narrator)
    backend = "kernel" if found else "" if reason else "fuse"
    return Reading(
        len(images),
        files,
        sharing.logical_bytes,
        sharing.unique_bytes,
        overlay_bytes,
        committed,
        not reason,
        reason,
        backend,
        not_kernel,
        found,
    )


def _read(image: Image) -> tuple[int, int]:
    """Read all files; how many, and their bytes."""
    with suppress(StoreFullError):  # on a small disk; then files are fetched as they are read
        image.fill()
    count = size = 0
    with image.open() as root:
        fs: TreeFileSystem = root.fs  # type: ignore[assignment] # an image's
        for ino in _files(fs):
            node = fs.node(ino)
            data = fs.read(ino, 0, node.size)
            if node.size:
                expected, got = fs.tree.object(node.object).digest, blake3_raw(data)
                if expected != got:
                    raise DigestMismatchError(_blake3(expected), _blake3(got), len(data))
            count += 1
            size += len(data)
    return count, size


def _blake3(raw: bytes) -> DigestType:
    return Digest("blake3", raw)


def _files(fs: TreeFileSystem) -> Iterator[int]:
    todo = [ROOT]
    while todo:
        for entry in fs.entries(todo.pop()):
            if entry.kind is Kind.DIRECTORY:
                todo.append(entry.ino)
            elif entry.kind is Kind.REGULAR:
                yield entry.ino


def _sharing(images: Sequence[Image]) -> Sharing:
    trees = [image.client.load_tree(image.repository, image.tree) for image in images]
    present = {tree.object(index).digest for tree in trees for index in range(tree.object_count)}
    return measure_sharing(trees, present)


def _change(image: Image, reference: Reference, directory: Path, narrator: Narrator) -> tuple[int, str]:
    """Change a block of the largest file and add a new one, in an overlay; push it as a new image."""
    with (
        narrator.step("change a block of it, push it as a new image"),
        image.overlay(directory) as root,
    ):
        largest = max(_files_of(image), key=lambda pair: pair[1])[0]
        root.fs.write(largest, 4096, b"changed".ljust(4096, b"."))  # type: ignore[attr-defined] # an overlay's
        root.mkdir(os.path.dirname(CHANGED), parents=True, exist_ok=True)  # noqa: PTH120 - a path in the image
        root.write_text(CHANGED, "by pagepool demo\n")
        root.sync()
        taken = sum(path.stat().st_blocks * 512 for path in directory.iterdir())
        target = f"{reference.repository}:{NEW_TAG}"
        root.commit(target)
    with image.client.image(target).open() as made:
        made.read_text(CHANGED)
    return taken, target


def _files_of(image: Image) -> list[tuple[int, int]]:
    with image.open() as root:
        fs: TreeFileSystem = root.fs  # type: ignore[assignment] # an image's
        return [(ino, fs.node(ino).size) for ino in _files(fs)] or [(ROOT, 0)]


def _mount_by_kernel(
    url: str, reference: Reference, state: Path, narrator: Narrator, *, run: bool
) -> tuple[KernelMounted | None, str]:
    """Mount an image by the kernel and read all of it; or why that cannot be done."""
    if reason := why_not(state):
        return None, reason
    with narrator.step("mount it by the kernel, and read every file") as step:
        try:
            found = mount_by_kernel(url, reference, state, run=run)
        except UnsupportedError as error:
            step.done = False
            return None, str(error)
        step.size, step.what = found.bytes, "compared with their digests"
    return found, ""


def _mount(image: Image, directory: Path, narrator: Narrator) -> str:
    """Mount an image and list it; why that cannot be done, or ""."""
    directory.mkdir()
    with narrator.step("mount it by FUSE, and list all of it") as step:
        try:
            with image.mount(directory) as mounted:
                found = sum(len(names) + len(others) for _, names, others in os.walk(mounted.path))
        except (PagepoolError, OSError) as error:
            step.done = False
            return (error.strerror if isinstance(error, OSError) else None) or str(error)
    return "" if found else "the mount is empty"
