"""Paths: symlinks and ``..`` never lead out of the root, and everything else is as Linux has it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagepool.vfs import FileSystem, TreeFileSystem, resolve, resolve_parent
from pagepool.vfs.paths import path_of
from tests.support.trees import TreeBuilder

LINKS = {
    "abs": "/etc/passwd",
    "rel": "etc/passwd",
    "etc/up": "../etc/passwd",
    "far": "../../../../../../etc/passwd",
    "dirlink": "etc",
    "a/b/c/back": "../../..",
    "loop": "loop",
    "ping": "pong",
    "pong": "ping",
    "dangling": "nowhere/at/all",
    "tofile": "etc/passwd/",
    "slashes": "//etc///./passwd",
}
CHAIN = {"1": "etc/passwd"} | {f"{links}": f"{links - 1}" for links in range(2, 42)}
"""Each leads to a file over so many links."""


def build() -> TreeBuilder:
    tree = TreeBuilder()
    tree.file("etc/passwd", b"root:x:0:0::/root:/bin/sh\n")
    tree.directory("a/b/c")
    for name, target in {**LINKS, **CHAIN}.items():
        tree.symlink(name, target)
    return tree


@pytest.fixture(scope="module")
def fs() -> TreeFileSystem:
    return build().file_system()


def number(fs: FileSystem, path: str) -> int:
    """The errno of resolving, 0 if it is found. An error names the path, as it was given."""
    named, found = path, 0
    try:
        resolve(fs, path)
    except OSError as error:
        named, found = error.filename, error.errno or -1
    assert named == path
    return found


@pytest.mark.parametrize("name", ["abs", "rel", "etc/up", "far", "dirlink/passwd", "a/b/c/back/rel", "slashes"])
def test_symlinks_are_followed_inside_the_root(fs: TreeFileSystem, name: str) -> None:
    assert resolve(fs, name) == resolve(fs, "/etc/passwd")
    assert resolve(fs, f"/../../{name}") == resolve(fs, "/etc/passwd")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("loop", errno.ELOOP),
        ("ping", errno.ELOOP),
        ("dangling", errno.ENOENT),
        ("etc/passwd/", errno.ENOTDIR),
        ("etc/passwd/.", errno.ENOTDIR),
        ("etc/passwd/..", errno.ENOTDIR),
        ("etc/passwd/x", errno.ENOTDIR),
        ("etc/nothing/x", errno.ENOENT),
        ("etc/nothing/..", errno.ENOENT),
        ("tofile", errno.ENOTDIR),
        ("", errno.ENOENT),
        ("x" * 256, errno.ENAMETOOLONG),
        ("x/" * 2100, errno.ENAMETOOLONG),
        ("/", 0),
        ("..", 0),
        ("etc/", 0),
        ("etc/..", 0),
        ("dirlink/", 0),
    ],
)
def test_errors_are_those_of_linux(fs: TreeFileSystem, path: str, expected: int) -> None:
    assert number(fs, path) == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("40", 0),
        ("41", errno.ELOOP),
        ("etc/passwd".rjust(4095, "/"), 0),
        ("etc/passwd".rjust(4096, "/"), errno.ENAMETOOLONG),
    ],
    ids=["links", "too many links", "long", "too long"],
)
def test_limits_are_those_of_linux(
    fs: TreeFileSystem, tmp_path_factory: pytest.TempPathFactory, path: str, expected: int
) -> None:
    """The most symlinks on the way to a file, and bytes of a path: one more is an error, in the kernel too."""
    assert number(fs, path) == _in_root(_plain(tmp_path_factory), path) == expected


def test_a_slash_follows_a_symlink(fs: TreeFileSystem) -> None:
    """Though the last component is not to be followed: as lstat(2) has it."""
    assert resolve(fs, "dirlink/", follow=False) == resolve(fs, "etc")
    assert resolve(fs, "dirlink", follow=False) != resolve(fs, "etc")


def test_a_null_byte_is_refused(fs: TreeFileSystem) -> None:
    with pytest.raises(ValueError, match="null"):
        resolve(fs, "a\0b")


@pytest.mark.parametrize("path", ["/", ".", "..", "etc/..", "a/."])
def test_what_has_no_name_has_no_parent(fs: TreeFileSystem, path: str) -> None:
    if path == "a/.":
        assert resolve_parent(fs, path)[1] == b"a"
        return
    with pytest.raises(OSError) as caught:  # noqa: PT011 # the errno says it
        resolve_parent(fs, path)
    assert caught.value.errno == errno.EBUSY


def test_the_path_of_a_directory(fs: TreeFileSystem) -> None:
    assert path_of(fs, resolve(fs, "a/b/c")) == b"/a/b/c"
    assert path_of(fs, resolve(fs, "/")) == b"/"


PART = st.sampled_from(["..", ".", "", "etc", "passwd", "a", "b", "c", "nowhere", *LINKS, "x"])


@given(st.lists(PART, min_size=1, max_size=8).map("/".join))
def test_it_agrees_with_the_kernel_in_a_chroot(tmp_path_factory: pytest.TempPathFactory, path: str) -> None:
    """The same tree on disk, resolved by openat2(2) inside of it."""
    root = _plain(tmp_path_factory)
    fs = build().file_system()
    inside = _in_root(root, path)
    assert number(fs, path) == inside, path


_roots: list[Path] = []


def _plain(factory: pytest.TempPathFactory) -> Path:
    if not _roots:
        root = factory.mktemp("plain")
        (root / "etc").mkdir()
        (root / "etc/passwd").write_text("x")
        (root / "a/b/c").mkdir(parents=True)
        for name, target in {**LINKS, **CHAIN}.items():
            (root / name).symlink_to(target)
        _roots.append(root)
    return _roots[0]


_OPENAT2 = 437
_RESOLVE_IN_ROOT = 0x10


def _in_root(root: Path, path: str) -> int:
    """The errno of openat2(2) with RESOLVE_IN_ROOT, 0 if it opens."""
    import ctypes
    import struct

    libc = ctypes.CDLL(None, use_errno=True)
    how = struct.pack("<QQQ", os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT)
    directory = os.open(root, os.O_PATH | os.O_DIRECTORY)
    try:
        # EAGAIN: somewhere on the machine something was renamed or mounted, and the kernel is not sure of a "..".
        while (found := libc.syscall(_OPENAT2, directory, path.encode(), how, len(how))) < 0:
            if ctypes.get_errno() != errno.EAGAIN:
                return ctypes.get_errno()
        os.close(found)
        return 0
    finally:
        os.close(directory)
