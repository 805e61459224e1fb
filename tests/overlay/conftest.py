"""A small image, and overlays over it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from pagepool.overlay import OverlayFileSystem
from tests.overlay.harness import TREE, build_image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pagepool.vfs import FileSystem


@pytest.fixture
def base() -> FileSystem:
    """The image."""
    return build_image(1).file_system()


@pytest.fixture
def opened(tmp_path: Path, base: FileSystem) -> Iterator[Callable[..., OverlayFileSystem]]:
    """Opens overlays by name, and closes them in the end."""
    with contextlib.ExitStack() as stack:

        def open_overlay(name: str = "upper", **options: object) -> OverlayFileSystem:
            found = OverlayFileSystem.open(tmp_path / name, base, **{"tree": TREE, **options})  # type: ignore[arg-type]
            stack.callback(found.close)
            return found

        yield open_overlay


@pytest.fixture
def overlay(opened: Callable[..., OverlayFileSystem]) -> OverlayFileSystem:
    """An overlay."""
    return opened()
