"""A small image whose metadata is mounted by the kernel."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.kernelmounts import KernelImage, scratch, skip_without_kernel_mounts
from tests.support.trees import TreeBuilder

BIG = bytes(range(256)) * 64


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory on a real file system, for mounts; skips where the kernel cannot have them."""
    skip_without_kernel_mounts()
    with scratch() as path:
        path.chmod(0o755)
        yield path


@pytest.fixture
def image(place: Path) -> KernelImage:
    """/etc/passwd, /bin/tool with a link /bin/other, /etc/link, /empty, /d/e/deep."""
    builder = TreeBuilder()
    builder.file("etc/passwd", b"root\n", uid=1, gid=2, xattrs={b"user.a": b"1"}, mtime_ns=1_600_000_000_123_456_789)
    builder.symlink("etc/link", "passwd")
    tool = builder.file("bin/tool", BIG, 0o4755)
    builder.add("bin/other", tool)
    builder.file("empty")
    builder.file("d/e/deep", b"deep")
    builder.directory("d", 0o1777, xattrs={b"trusted.overlay.opaque": b"y"})
    return KernelImage(place, builder)
