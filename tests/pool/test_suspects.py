"""Objects that may not have reached the disk are looked at before anybody reads them past the pool."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from pagepool import linux
from pagepool.pool import Pool, verify_suspects
from tests.pool.helpers import PAGE, check_account, object_path, thing

if TYPE_CHECKING:
    from pathlib import Path


def spoil(path: Path, data: bytes) -> None:
    """Write over a file, as only root or a lost page can."""
    path.chmod(0o644)
    status = path.stat()
    path.write_bytes(data)
    path.chmod(0o444)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_all_are_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Damaged ones are gone for those who look by name; the others are not suspect any more, nor after another boot."""
    place = tmp_path / "pool"
    with Pool.open(place, budget=1 << 20, durable=True) as pool:
        for number in range(6):
            with pool.put(thing(number).digest, thing(number).data) or pytest.fail("not kept"):
                pass
            if number == 1:
                pool.sync()
    for number, data in ((1, bytes(PAGE)), (3, bytes(PAGE)), (4, b"")):
        spoil(object_path(place, thing(number).digest), data)
    for _ in range(2):
        boot = os.urandom(16)
        monkeypatch.setattr(linux, "boot_id", lambda boot=boot: boot)
        told: list[int] = []
        with Pool.open(place, budget=1 << 20) as pool:
            report = verify_suspects(pool, told.append)
            stats = pool.stats()
            assert (stats.hits, stats.misses) == (0, 0)
            check_account(place, stats)
            if not told:
                break
            assert set(report.removed) == {thing(3).digest, thing(4).digest}
            assert report.objects == len(told) == 4
            assert report.plain_size == sum(told) == 3 * PAGE
            assert verify_suspects(pool).objects == 0
    there = [object_path(place, thing(number).digest).exists() for number in range(6)]
    # What was synced before the power went is not hashed: that is the scrub's.
    assert there == [True, True, True, False, False, True]


def test_a_pool_in_memory_has_none(memory_dir: Path) -> None:
    """It does not outlive a boot."""
    with Pool.open(memory_dir / "pool", budget=1 << 20) as pool:
        with pool.put(thing(1).digest, thing(1).data) or pytest.fail("not kept"):
            pass
        os.utime(object_path(pool.path, thing(1).digest), ns=(0, 0))
        assert verify_suspects(pool).objects == 0
