"""A small image mounted by the kernel, and a container of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.kernelmounts import Container, KernelImage, scratch, skip_without_kernel_mounts
from tests.support.trees import TreeBuilder


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory for mounts; skips where the kernel cannot have them."""
    skip_without_kernel_mounts()
    with scratch() as path:
        yield path


@pytest.fixture
def container(place: Path) -> Container:
    """Of an image with /a/b/f, /a/g, /a/h, /l/1 and /l/2 (one file), /s -> t, /big, /other/x; with odd attributes."""
    builder = TreeBuilder()
    xattrs = {b"user.root": b"1", b"nobody.knows": b"1", b"system.posix_acl_access": b"none"}
    builder.directory("", 0o751, uid=3, gid=4, mtime_ns=1_500_000_000_000_000_001, xattrs=xattrs)
    builder.file("a/b/f", b"f" * 5000)
    builder.file("a/g", b"g" * 100, mtime_ns=5_000_000_000)
    builder.file("a/h", b"h" * 9, xattrs={b"user.h": b"1", b"trusted.overlay.opaque": b"own"})
    linked = builder.file("l/1", b"linked")
    builder.add("l/2", linked)
    builder.symlink("s", "t")
    builder.file("big", b"z" * 9000)
    builder.file("other/x", b"x")
    return KernelImage(place, builder).container()
