"""Overlays to be mounted, opened by whichever process serves them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from pagepool.image import Kind
from pagepool.overlay import OverlayFileSystem
from tests.mount.actions import NAMES
from tests.support.trees import TreeBuilder

BIG = bytes(range(251)) * 4000


def image() -> TreeBuilder:
    """A small image."""
    builder = TreeBuilder()
    builder.directory("etc", mtime_ns=1_600_000_000_123_456_789)
    passwd = builder.file("etc/passwd", b"root:x:0:0\n" * 999, mode=0o640, gid=42)
    builder.add("etc/passwd-", passwd)
    builder.file("usr/bin/big", BIG, mode=0o755, xattrs={b"user.a": b"b"})
    builder.file("usr/bin/privileged", b"#!/bin/sh\n", mode=0o6755)
    builder.symlink("bin", "usr/bin")
    builder.device("dev/null", Kind.CHAR, (1, 3), mode=0o666)
    return builder


def crowded_image() -> TreeBuilder:
    """An image that has something under most of the names that random actions use."""
    builder = TreeBuilder()
    for number, first in enumerate(NAMES[:3]):
        builder.directory(first, mtime_ns=1_000_000_000 + number)
        builder.file(f"{first}/{NAMES[0]}", b"%d" % number * 50_000, mode=0o4755, xattrs={b"user.a": b"1"})
        builder.file(f"{first}/{NAMES[1]}/{NAMES[2]}", b"deep" * 3, uid=7, gid=70_000)
        builder.symlink(f"{first}/{NAMES[3]}", NAMES[number])
    builder.add(f"{NAMES[3]}", builder.file(f"{NAMES[0]}/{NAMES[4]}", b"linked" * 1000))
    return builder


@contextlib.contextmanager
def open_overlay(directory: Path, make_image: Callable[[], TreeBuilder] = image) -> Iterator[OverlayFileSystem]:
    """An overlay over an image.

    Args:
        directory: its own.
        make_image: gives the image.
    """
    base = make_image().file_system()
    with contextlib.closing(base), contextlib.closing(base.tree):
        overlay = OverlayFileSystem.open(directory, base, tree=base.tree.digest)
        with contextlib.closing(overlay):
            yield overlay
