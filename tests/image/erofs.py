"""EROFS images for tests: made of any tree, mounted, and compared with the tree by system calls alone."""

from __future__ import annotations

import io
import os
import shutil
import stat
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from pagepool.image import Kind, TreeFile
from pagepool.image.erofs import ErofsInfo, node_number, write_erofs
from pagepool.image.treefile import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

_FORMATS: Final = {
    Kind.DIRECTORY: stat.S_IFDIR,
    Kind.REGULAR: stat.S_IFREG,
    Kind.SYMLINK: stat.S_IFLNK,
    Kind.CHAR: stat.S_IFCHR,
    Kind.BLOCK: stat.S_IFBLK,
    Kind.FIFO: stat.S_IFIFO,
}


def needs(*kinds: str) -> pytest.MarkDecorator:
    """Skip unless root may mount these kinds of file system."""
    known = Path("/proc/filesystems").read_text().split()
    missing = [kind for kind in kinds if kind not in known]
    reason = "needs root" if os.geteuid() else f"this kernel has no {', '.join(missing)}"
    return pytest.mark.skipif(bool(os.geteuid() or missing), reason=reason)


def content_of(digest: bytes, size: int) -> bytes:
    """Made-up content of an object."""
    return (digest * (size // len(digest) + 1))[:size]


def reader(tree: TreeFile) -> Callable[[Sequence[int]], Iterable[tuple[int, bytes]]]:
    """Reads made-up content, the last object first."""

    def read(indices: Sequence[int]) -> Iterator[tuple[int, bytes]]:
        for index in reversed(indices):
            info = tree.object(index)
            yield index, content_of(info.digest, info.size)

    return read


def make_image(tree: TreeFile, inline_max: int = 1024) -> tuple[bytes, ErofsInfo]:
    """The image of a tree whose objects have made-up content."""
    out = io.BytesIO()
    info = write_erofs(tree, reader(tree), out, inline_max=inline_max)
    return out.getvalue(), info


def check_with_fsck(image: Path) -> None:
    """Have fsck.erofs look at an image, where it is installed."""
    if shutil.which("fsck.erofs"):
        subprocess.run(["fsck.erofs", str(image)], check=True, capture_output=True, timeout=60)


@contextmanager
def mounted(kind: str, source: str, at: Path, options: str) -> Iterator[Path]:
    """Mount something for as long as the block runs."""
    at.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", kind, "-o", options, source, str(at)], check=True, timeout=60)
    try:
        yield at
    finally:
        subprocess.run(["umount", str(at)], check=True, timeout=60)


def compare(
    tree: TreeFile,
    root: bytes,
    xattrs: Callable[[int], Mapping[bytes, bytes]],
    inline_max: int,
    image: bytes | None = None,
) -> int:
    """Compare every name of a mounted tree with the tree.

    Args:
        xattrs: what the attributes of a node have to be.
        inline_max: of larger files the content is not read; -1 reads none.
        image: to compare inode numbers by.

    Returns:
        how many names there were.
    """
    waiting = [(ROOT, root)]
    seen = 0
    while waiting:
        number, path = waiting.pop()
        seen += 1
        _compare_node(tree, number, path, inline_max)
        found = {os.fsencode(name): os.getxattr(path, name, follow_symlinks=False) for name in _names(path)}
        assert found == xattrs(number), path
        if image is not None:
            assert node_number(image, os.lstat(path).st_ino) == number
        if tree.kind(number) is Kind.DIRECTORY:
            entries = dict(tree.entries(number))
            assert sorted(Path(os.fsdecode(path)).iterdir()) == sorted(_paths(path, entries)), path
            waiting += [(child, path + b"/" + name) for name, child in entries.items()]
    return seen


def _paths(directory: bytes, names: Iterable[bytes]) -> list[Path]:
    return [Path(os.fsdecode(directory + b"/" + name)) for name in names]


def _names(path: bytes) -> list[str]:
    return os.listxattr(path, follow_symlinks=False)


def _compare_node(tree: TreeFile, number: int, path: bytes, inline_max: int) -> None:
    node, found = tree.node(number), os.lstat(path)
    size = node.size if node.kind in (Kind.REGULAR, Kind.SYMLINK) else found.st_size
    got = (found.st_mode, found.st_uid, found.st_gid, found.st_nlink, found.st_size, found.st_mtime_ns)
    assert got == (_FORMATS[node.kind] | node.mode, node.uid, node.gid, node.nlink, size, node.mtime_ns), path
    if node.kind in (Kind.CHAR, Kind.BLOCK):
        assert (os.major(found.st_rdev), os.minor(found.st_rdev)) == (node.devmajor, node.devminor), path
    elif node.kind is Kind.SYMLINK:
        assert os.fsencode(Path(os.fsdecode(path)).readlink()) == node.target
    elif node.kind is Kind.REGULAR and node.size <= inline_max:
        expected = b"" if node.object < 0 else content_of(tree.object(node.object).digest, node.size)
        assert Path(os.fsdecode(path)).read_bytes() == expected, path
