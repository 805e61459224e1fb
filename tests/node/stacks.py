"""A container's stack of layers, made by hand from mkfs.erofs and mount(8): metadata, data-only layers, an upper."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from pagepool.digest import blake3_raw
from pagepool.pool.layout import object_name
from tests.support.tools import ToolError, require, run


@dataclass(frozen=True, slots=True)
class Stack:
    """What is mounted.

    Args:
        root: the overlay.
        meta: the metadata image, mounted.
        objects: the data-only layer; names as in a pool.
        upper: what is written.
    """

    root: Path
    meta: Path
    objects: Path
    upper: Path

    def object_path(self, data: bytes) -> Path:
        """The file of an object."""
        return self.objects / object_name(blake3_raw(data))


@contextmanager
def mounted_stack(directory: Path, files: Mapping[str, bytes], inlined: Mapping[str, bytes]) -> Iterator[Stack]:
    """Mount files of an image for the length of the block, or skip.

    Args:
        directory: an empty one.
        files: path -> content, kept as objects; not empty.
        inlined: path -> content, kept in the metadata image.
    """
    if os.geteuid():
        pytest.skip("mounting needs root")
    require("mkfs.erofs", "mount", "umount")
    stack = Stack(*(directory / name for name in ("root", "meta", "objects", "upper")))
    source, image, work = directory / "source", directory / "image.erofs", directory / "work"
    for path in (stack.root, stack.meta, stack.objects, stack.upper, source, work):
        path.mkdir(parents=True)
    for name, data in {**files, **inlined}.items():
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if name in inlined else b"")
        if name in files:
            os.truncate(path, len(data))
            redirect = f"/{object_name(blake3_raw(data))}".encode()
            try:
                os.setxattr(path, "trusted.overlay.metacopy", b"")
                os.setxattr(path, "trusted.overlay.redirect", redirect)
            except OSError as error:
                pytest.skip(f"trusted xattrs: {error.strerror}")
            target = stack.object_path(data)
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(data)
    subprocess.run(["mkfs.erofs", "--quiet", "--chunksize=4096", image, source], check=True, capture_output=True)
    options = f"lowerdir={stack.meta}::{stack.objects},upperdir={stack.upper},workdir={work},metacopy=on"
    _mount("-t", "erofs", "-o", "ro", image, stack.meta)
    try:
        _mount("-t", "overlay", "-o", f"{options},redirect_dir=on,xino=auto", "overlay", stack.root)
        try:
            yield stack
        finally:
            run(["umount", stack.root])
    finally:
        run(["umount", stack.meta])


def _mount(*arguments: str | Path) -> None:
    try:
        run(["mount", *arguments])
    except ToolError as error:
        pytest.skip(f"cannot mount: {error}")
