"""What the disk did not take of a pool is removed, and fetched again, before memory lets go of what is right."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from pagepool import linux
from pagepool.node.scrubbing import NodeScrub
from pagepool.node.writeback import Writeback
from pagepool.pool import Pool
from pagepool.pool.scrub import hash_on_disk
from tests.faults import filled, small_file_system
from tests.pool.helpers import object_path, thing
from tests.pool.test_scrub import flip, put

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.pool.helpers import Thing


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    with Pool.open(tmp_path / "pool", budget=1 << 24) as opened:
        if not opened.durable:
            pytest.skip("the directory of tests is in memory")
        yield opened


class Disk:
    """Says once, as the kernel does, that something was lost."""

    def __init__(self) -> None:
        self.asked = 0
        self.lost = False

    def syncfs(self, descriptor: int) -> None:
        self.asked += 1
        os.fstat(descriptor)
        if self.lost:
            self.lost = False
            raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    found = Disk()
    monkeypatch.setattr(linux, "syncfs", found.syncfs)
    return found


def test_what_was_lost_is_fetched_again_and_the_rest_is_left_alone(pool: Pool, disk: Disk) -> None:
    things = {one.digest: one for one in (thing(number, 5000 + number) for number in range(9))}
    before, good, lost = (list(things.values())[start : start + 3] for start in (0, 3, 6))
    put(pool, *before)
    pool.sync()
    fetched: list[bytes] = []

    def bring(digest: bytes) -> bool:
        fetched.append(digest)
        put(pool, things[digest])
        return True

    scrub = NodeScrub(pool, bring)
    watch = Writeback(pool, scrub.check_since)
    assert watch.look()
    put(pool, *good, *lost)
    for one in (before[0], *lost):
        flip(object_path(pool.path, one.digest), 4999)
    _stamp_again(pool, [before[0]], 0)
    _stamp_again(pool, lost, pool.published()[0])
    disk.lost = True
    assert not watch.look()
    assert sorted(fetched) == sorted(one.digest for one in lost)
    for one in (*good, *lost):
        assert object_path(pool.path, one.digest).read_bytes() == one.data
    assert (scrub.damaged, scrub.repaired) == (3, 3)
    assert watch.look()  # what was fetched again has reached the disk
    watch.close()


def test_the_disk_is_asked_only_when_something_was_published(pool: Pool, disk: Disk) -> None:
    watch = Writeback(pool, NodeScrub(pool, lambda _digest: False).check_since)
    for _ in range(3):
        assert watch.look()
    assert disk.asked == 1
    put(pool, thing(1, 5000))
    for _ in range(3):
        assert watch.look()
    assert disk.asked == 2
    watch.close()


def test_what_cannot_be_removed_is_looked_for_again(pool: Pool, disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that the kernel has stopped takes no removal either; others that are wrong are named, too."""
    watch = Writeback(pool, NodeScrub(pool, lambda _digest: False).check_since)
    things = [thing(number, 5000) for number in range(2)]
    put(pool, *things)
    for one in things:
        flip(object_path(pool.path, one.digest), 10)
    _stamp_again(pool, things, pool.published()[0])
    asked: list[bytes] = []

    def refuse(digest: bytes) -> None:
        asked.append(digest)
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch:
        patch.setattr(pool, "remove", refuse)
        disk.lost = True
        with pytest.raises(OSError, match="Read-only"):
            watch.look()
    assert len(asked) == 2
    assert not watch.look()  # though the kernel does not say it again
    assert not any(object_path(pool.path, one.digest).exists() for one in things)
    watch.close()


def _stamp_again(pool: Pool, things: list[Thing], stamp: int) -> None:
    """Changing a file has changed its time, by which the pool knows when it was published."""
    for one in things:
        at = (1_000_000_000 + stamp) * 10**9
        os.utime(object_path(pool.path, one.digest), ns=(at, at))


def test_what_a_full_disk_below_has_not_taken_is_removed(tmp_path: Path) -> None:
    """A thin volume, or a sparse image: the file system has room, and what is written to it is lost."""
    things = [thing(number, 100_000) for number in range(40)]
    with (
        small_file_system(tmp_path, 96 << 20) as host,
        small_file_system(host, 320 << 20, "xfs") as inner,
        Pool.open(inner / "pool", budget=1 << 24) as pool,
    ):
        scrub = NodeScrub(pool, lambda _digest: False)
        watch = Writeback(pool, scrub.check_since)
        assert watch.look()
        with filled(host):
            put(pool, *things)
            assert not watch.look()
            assert scrub.damaged
            kept = [path for path in (object_path(pool.path, one.digest) for one in things) if path.exists()]
            assert len(kept) == len(things) - scrub.damaged
            for path in kept:
                with path.open("rb") as file:
                    assert hash_on_disk(file.fileno()).hex() == path.parent.name + path.name
        watch.close()
