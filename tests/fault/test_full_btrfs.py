"""A full btrfs: what is changed there goes to another place, so changing a page that is mapped can end the process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pagepool import linux
from pagepool.digest import blake3_raw
from pagepool.errors import StoreFullError
from pagepool.extents import EXTENT_SIZE
from pagepool.pool import Pool
from tests.fault.pushing import read_image
from tests.fault.test_disk import assert_full, refused_push, serving, state_of, wait_for
from tests.faults import fill, in_child, small_file_system
from tests.service.pushes import push_image
from tests.store.helpers import noise

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx

_SIZE = 128 << 20
_OBJECTS = [noise(20_000 + number, number) for number in range(70)]
_LARGE = noise(3 * EXTENT_SIZE, 99)
_EXTENTS = [_LARGE[start : start + EXTENT_SIZE] for start in range(0, len(_LARGE), EXTENT_SIZE)]


@pytest.fixture
def btrfs(tmp_path: Path) -> Iterator[Path]:
    with small_file_system(tmp_path, _SIZE, "btrfs") as mounted:
        yield mounted


def fill_up(directory: Path) -> None:
    """Leave no room, and nothing that is still to be written: what is in memory only is changed there once more."""
    fill(directory / "ballast")
    descriptor = os.open(directory, os.O_RDONLY)
    linux.syncfs(descriptor)
    os.close(descriptor)


def use_a_full_pool(directory: Path) -> int:
    """All that is done with a pool, the disk being full. Returns how many objects it has in the end."""
    with Pool.open(directory / "pool", budget=64 << 20) as pool:
        for data in _OBJECTS:
            _close(pool, data)
        partial = pool.partial(blake3_raw(_LARGE), len(_LARGE), [blake3_raw(extent) for extent in _EXTENTS])
        partial.write(0, _EXTENTS[0])
        fill_up(directory)
        for data in _OBJECTS:
            found = pool.get(blake3_raw(data))
            assert found is not None
            assert found.read() == data
            found.close()
        for more in range(2):
            try:
                _close(pool, noise(1 << 20, 1000 + more))
                partial.write(1, _EXTENTS[1])
            except StoreFullError:
                pass
        assert partial.view(0, EXTENT_SIZE) == _EXTENTS[0]
        partial.close()
    with Pool.open(directory / "pool", budget=64 << 20) as pool:
        return pool.stats().objects


def _close(pool: Pool, data: bytes) -> None:
    file = pool.put(blake3_raw(data), data)
    if file is not None:
        file.close()


def test_a_pool_can_be_read_and_goes_on(btrfs: Path) -> None:
    outcome = in_child(use_a_full_pool, btrfs)
    assert (outcome.signal, outcome.error) == (None, "")
    assert outcome.value


def test_a_service_refuses_pushes_and_serves_pulls(btrfs: Path) -> None:
    """Whoever reads the database says so in its lock file, which is mapped."""
    with serving(btrfs / "data", "--workers", "1") as (service, http):
        push_image(http, "before", "1", {"file": noise(200_000)})
        wait_for(lambda: state_of(http, "before") == "ready", "the image is not read")
        children = set(service.children())
        fill_up(btrfs)
        assert read_image(http, "before", "1")
        assert_full(refused_push(http, "during", noise(5_000_000, "during")))
        assert read_image(http, "before", "1")
        (btrfs / "ballast").unlink()
        wait_for(lambda: _takes(http), "nothing can be pushed, though there is room again")
        assert set(service.children()) == children, f"a process has died of it: {service.log()}"


def _takes(http: httpx.Client) -> bool:
    """Whether an image can be pushed. Btrfs gives room back when it next commits."""
    try:
        push_image(http, "after", "1", {"file": noise(1_000_000, "after")})
    except AssertionError:
        return False
    return True
