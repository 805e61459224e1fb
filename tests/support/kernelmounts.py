"""Images mounted by the kernel, without a service: the metadata by mkfs.erofs, contents in a directory of objects."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pagepool.image import Kind
from pagepool.linux import mounts
from pagepool.mount.kernel import Layers, Way, mount_erofs, mount_overlay, probe
from pagepool.mount.kernel.loop import loop_files
from pagepool.mount.mountinfo import mount_points
from pagepool.vfs import ROOT, TreeFileSystem
from tests.support.trees import TreeBuilder

if TYPE_CHECKING:
    from pagepool.vfs import Attributes

_ESCAPED = b"trusted.overlay."
_METACOPY, _REDIRECT = "trusted.overlay.metacopy", "trusted.overlay.redirect"


def skip_without_kernel_mounts() -> None:
    """Skip the test where this machine has no kernel mounts, or no mkfs.erofs."""
    support = probe(Path(tempfile.gettempdir()))
    if not support.kernel:
        pytest.skip(f"no kernel mounts: {support.reason}")
    if shutil.which("mkfs.erofs") is None:
        pytest.skip("mkfs.erofs (erofs-utils) is not installed")


@contextlib.contextmanager
def scratch(place: Path | None = None) -> Iterator[Path]:
    """A directory; at the end whatever is mounted below it is unmounted, and it is removed."""
    with tempfile.TemporaryDirectory(dir=place, ignore_cleanup_errors=True) as name:
        path = Path(name).resolve()
        try:
            yield path
        finally:
            for point in reversed(mount_points()):
                if point.path.is_relative_to(path):
                    mounts.unmount(point.path, mounts.MNT_DETACH)


@dataclass
class KernelImage:
    """An image whose metadata is mounted.

    Args:
        root: a directory for all of it, see `scratch`.
        image: what it is.
        pool: where the objects are; None: there, too.
    """

    root: Path
    image: TreeBuilder | TreeFileSystem
    pool: Path | None = None

    def __post_init__(self) -> None:
        self.fs = self.image if isinstance(self.image, TreeFileSystem) else self.image.file_system()
        self.meta, staging = self.root / "meta", self.root / "staging"
        self.objects = (self.pool or self.root) / "objects"
        for directory in (self.meta, self.objects, staging):
            directory.mkdir()
        for index in range(self.fs.tree.object_count):
            found = self.fs.tree.object(index)
            name = found.digest.hex()
            (self.objects / name[:2]).mkdir(exist_ok=True)
            (self.objects / name[:2] / name[2:]).write_bytes(self.fs.content.view(index, 0, found.size))
            (self.objects / name[:2] / name[2:]).chmod(0o444)
        unpack(self.fs, staging, metadata_only=True)
        make_erofs(staging, self.root / "tree.erofs")
        mount_erofs(self.root / "tree.erofs", self.meta)

    def container(self, name: str = "container", place: Path | None = None) -> Container:
        """Directories for a container, on the file system of `place`."""
        directory = (place or self.root) / name
        made = Container(self, directory)
        for path in (directory, made.upper, made.work, made.at):
            path.mkdir()
        return made


@dataclass
class Container:
    """An upper and what belongs to it."""

    image: KernelImage
    directory: Path

    @property
    def upper(self) -> Path:
        """What is written."""
        return self.directory / "upper"

    @property
    def work(self) -> Path:
        """The kernel's."""
        return self.directory / "work"

    @property
    def at(self) -> Path:
        """Where it is mounted."""
        return self.directory / "at"

    def layers(self, *, read_only: bool = False) -> Layers:
        """What the overlay is made of."""
        data = [self.image.objects]
        return Layers(self.image.meta, data) if read_only else Layers(self.image.meta, data, self.upper, self.work)

    @contextlib.contextmanager
    def mounted(self, way: Way | None = None, *, read_only: bool = False) -> Iterator[Path]:
        """The overlay, for a time."""
        mount_overlay(self.layers(read_only=read_only), self.at, source="test:1", way=way, nodev=False)
        try:
            yield self.at
        finally:
            mounts.unmount(self.at)


def make_erofs(directory: Path, image: Path) -> None:
    """Make an EROFS image of a directory. Holes stay holes."""
    command = ["mkfs.erofs", "--quiet", "--chunksize=1048576", str(image), str(directory)]
    subprocess.run(command, check=True, capture_output=True)


def unpack(fs: TreeFileSystem, directory: Path, *, metadata_only: bool = False) -> None:
    """Write an image's files into a directory, with all that they have.

    Args:
        metadata_only: leave contents out, and say where they are as an image's metadata layer does; attributes of the
            image that belong to overlays are escaped.
    """
    links: dict[int, Path] = {}
    with ExitStack() as later:
        _unpack(fs, ROOT, directory, metadata_only, links, later)


def _unpack(
    fs: TreeFileSystem, ino: int, path: Path, metadata_only: bool, links: dict[int, Path], later: ExitStack
) -> None:
    found = fs.attributes(ino)
    if found.kind is Kind.DIRECTORY:
        path.mkdir(exist_ok=True)
        later.callback(os.utime, path, ns=(found.mtime_ns, found.mtime_ns))
        for entry in fs.entries(ino):
            _unpack(fs, entry.ino, path / os.fsdecode(entry.name), metadata_only, links, later)
    elif ino in links:
        os.link(links[ino], path, follow_symlinks=False)
        return
    else:
        links[ino] = path
        _make(fs, found, path, metadata_only)
    os.chown(path, found.uid, found.gid, follow_symlinks=False)
    if found.kind is not Kind.SYMLINK:
        path.chmod(found.mode)
    for name, value in fs.xattrs(ino).items():
        shown = _ESCAPED + b"overlay." + name.removeprefix(_ESCAPED) if name.startswith(_ESCAPED) else name
        os.setxattr(path, shown if metadata_only else name, value, follow_symlinks=False)
    if found.kind is not Kind.DIRECTORY:
        os.utime(path, ns=(found.mtime_ns, found.mtime_ns), follow_symlinks=False)


def _make(fs: TreeFileSystem, found: Attributes, path: Path, metadata_only: bool) -> None:
    if found.kind is Kind.SYMLINK:
        path.symlink_to(os.fsdecode(fs.readlink(found.ino)))
    elif found.kind is not Kind.REGULAR:
        os.mknod(path, found.st_mode, found.st_rdev)
    elif metadata_only and found.size:
        path.touch()
        os.truncate(path, found.size)
        name = fs.tree.object(fs.node(found.ino).object).digest.hex()
        os.setxattr(path, _METACOPY, b"")
        os.setxattr(path, _REDIRECT, f"/{name[:2]}/{name[2:]}".encode())
    else:
        path.write_bytes(fs.read(found.ino, 0, found.size))


def wait_detached(file: Path) -> None:
    """Wait until no loop device has a file. Another test's mount namespace, with copies of all mounts, may."""
    deadline = time.monotonic() + 60
    while file in loop_files().values():
        assert time.monotonic() < deadline, f"{file} is still mounted somewhere"
        time.sleep(0.05)
