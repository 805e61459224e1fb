"""What the service's extent cache may expect of a pool, held against the real one and against the tests' stand-in."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pagepool.pool import Pool
from tests.pool.helpers import thing
from tests.support.objects import MemoryPool

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pagepool.content import PartialFile, SharedPool, WholeFile

SIZE = 300_000  # three extents


@pytest.fixture(params=["Pool on tmpfs", "Pool on disk", "MemoryPool"])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SharedPool]:
    """Each of them, empty. That they can be returned here is what the type checker says about it."""
    if request.param == "MemoryPool":
        yield MemoryPool()
        return
    memory = Path(tempfile.mkdtemp(dir="/dev/shm"))
    try:
        with Pool.open((memory if "tmpfs" in request.param else tmp_path) / "pool", budget=64 << 20) as pool:
            yield pool
    finally:
        shutil.rmtree(memory)


def test_names(shared: SharedPool) -> None:
    """An id to compare, and where it is."""
    assert len(shared.id) == 32
    assert isinstance(shared.path, Path)


def test_whole_objects(shared: SharedPool) -> None:
    """Absent, then put, then got; views outlive the file."""
    one = thing(1, 5000)
    assert shared.get(one.digest) is None
    put: WholeFile | None = shared.put(one.digest, memoryview(one.data))
    assert put is not None
    view = put.view
    put.close()
    got = shared.get(one.digest)
    assert got is not None
    assert bytes(got.view[10:20]) == one.data[10:20]
    got.close()
    assert view == one.data
    assert view.readonly


def test_partial_objects(shared: SharedPool) -> None:
    """Filled in any order, twice if need be; seen as far as they are filled; then all of it."""
    one = thing(2, SIZE)
    partial: PartialFile = shared.partial(one.digest, one.size, one.extents)
    assert partial.missing(0, 3) == [0, 1, 2]
    for number in (2, 0, 0):
        partial.write(number, memoryview(one.parts[number]))
    assert [partial.has(number) for number in range(3)] == [True, False, True]
    assert partial.missing(0, 3) == [1]
    tail = partial.view(2 << 17, SIZE - (2 << 17))
    assert tail == one.parts[2]
    assert tail.readonly
    partial.write(1, memoryview(one.parts[1]))
    assert partial.missing(0, 3) == []
    view = partial.view(0, SIZE)
    partial.close()
    assert view == one.data
