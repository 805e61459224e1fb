"""Read-write mounts: the same system calls as in a plain directory do the same."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.mount.actions import Actions, Held, act
from tests.mount.conftest import Mounting
from tests.mount.memoryfs import MemoryFileSystem
from tests.mount.trees import links, see


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A plain directory to compare with."""
    path = tmp_path / "plain"
    path.mkdir(mode=0o755)
    return path


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    """The usual umask."""
    old = os.umask(0o022)
    yield
    os.umask(old)


@pytest.mark.parametrize("seed", range(4))
def test_random_system_calls(mounting: Mounting, point: Path, plain: Path, seed: int) -> None:
    """Each returns the same in both, and in the end the trees are the same."""
    mounting(MemoryFileSystem())
    actions, held = Actions(seed), ({}, {})
    roots: tuple[Path, Path] = (point, plain)
    try:
        for number in range(1500):
            name, action = actions.next()
            ours, theirs = (act(action, root, files) for root, files in zip(roots, held, strict=True))
            assert ours == theirs, f"seed {seed}: {name} as number {number}"
    finally:
        _close(held)
    assert see(point) == see(plain)
    assert links(point) == links(plain)


def _close(held: tuple[Held, ...]) -> None:
    for files in held:
        for descriptor in files.values():
            with suppress(OSError):
                os.close(descriptor)
