"""After another boot nothing is believed that was not known to be on the disk: by faked boots, and by an ext4 that
loses what it has not written yet. No machine was switched off for this."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

import pytest

from pagepool import linux
from pagepool.errors import BusyError, StoreFormatError
from pagepool.extents import EXTENT_SIZE
from pagepool.pool import Pool
from pagepool.pool import pool as pools
from pagepool.pool.mapfile import map_path
from tests.faults import cut_power, filled, small_file_system, thin_file_system
from tests.pool.helpers import check_account, files_below, fill, object_path, thing

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BUDGET = 16 << 20


@pytest.fixture
def reboot(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Make the next pools believe that the machine has booted."""

    def fake() -> None:
        boot = os.urandom(16)
        monkeypatch.setattr(linux, "boot_id", lambda: boot)

    return fake


def put(pool: Pool, *numbers: int) -> None:
    """Put some objects."""
    for number in numbers:
        one = thing(number)
        with pool.put(one.digest, one.data) or pytest.fail("not kept"):
            pass


def spoil(path: Path, data: bytes) -> None:
    """Write over a file, as only root or a lost page can."""
    path.chmod(0o644)
    status = path.stat()
    path.write_bytes(data)
    path.chmod(0o444)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def readable(pool: Pool, number: int) -> bool:
    """Whether an object is there; then it is right."""
    one = thing(number)
    file = pool.get(one.digest)
    if file is None:
        return False
    with file:
        assert bytes(file.view) == one.data
    return True


def test_what_was_not_synced_is_hashed_again(tmp_path: Path, reboot: Callable[[], None]) -> None:
    """Zeroed and cut short files go, right ones are served; synced ones are not read at all."""
    place = tmp_path / "pool"
    with Pool.open(place, budget=BUDGET, durable=True) as pool:
        put(pool, 1, 2)
        pool.sync()
        put(pool, 3, 4, 5)
    for number, data in ((2, bytes(4096)), (3, bytes(4096)), (4, b"")):
        spoil(object_path(place, thing(number).digest), data)
    with Pool.open(place, budget=BUDGET) as pool, pool.get(thing(3).digest) or pytest.fail("same boot") as file:
        assert bytes(file.view) == bytes(4096)
    reboot()
    with Pool.open(place, budget=BUDGET) as pool:
        assert [readable(pool, number) for number in (1, 3, 4, 5)] == [True, False, False, True]
        # What is known to be on the disk is believed; a scrub finds it.
        with pool.get(thing(2).digest) or pytest.fail("not there") as file:
            assert bytes(file.view) == bytes(4096)
        assert not object_path(place, thing(3).digest).exists()
        check_account(place, pool.stats())
        put(pool, 3)
        assert readable(pool, 3)


def test_what_was_never_checked_stays_suspect(tmp_path: Path, reboot: Callable[[], None]) -> None:
    """Also over a sync in a later boot: only what was published or checked since is safe by it."""
    place = tmp_path / "pool"
    with Pool.open(place, budget=BUDGET, durable=True) as pool:
        put(pool, 1, 2, 3)
    for number in (1, 2):
        spoil(object_path(place, thing(number).digest), bytes(4096))
    reboot()
    with Pool.open(place, budget=BUDGET) as pool:
        assert not readable(pool, 1)
        assert readable(pool, 3)
        put(pool, 4)
        pool.sync()
    spoil(object_path(place, thing(4).digest), bytes(4096))
    reboot()
    with Pool.open(place, budget=BUDGET) as pool:
        assert not readable(pool, 2)
        assert readable(pool, 3)
        with pool.get(thing(4).digest) or pytest.fail("not there") as file:
            assert bytes(file.view) == bytes(4096)
        pool.sync()


def test_partial_objects_are_verified(tmp_path: Path, reboot: Callable[[], None]) -> None:
    """Extents whose marks reached the disk, and whose bytes did not, are absent; the others need not come again."""
    one = thing(1, 3 * EXTENT_SIZE)
    place = tmp_path / "pool"
    with Pool.open(place, budget=BUDGET, durable=True) as pool:
        with pool.partial(one.digest, one.size, one.extents) as partial:
            partial.write(0, one.parts[0])
            partial.write(1, one.parts[1])
        (data,) = (place / "partial").glob("*.data")
        with data.open("r+b") as file:
            file.seek(EXTENT_SIZE + 5)
            file.write(bytes(4096))
    reboot()
    with Pool.open(place, budget=BUDGET) as pool:
        with pool.partial(one.digest, one.size, one.extents) as partial:
            assert partial.missing(0, 3) == [1, 2]
            partial.write(2, one.parts[2])
            assert partial.write(1, one.parts[1])
        del partial
        with pool.get(one.digest) or pytest.fail("not published") as whole:
            assert bytes(whole.view) == one.data
        check_account(place, pool.stats())


def test_a_partial_object_that_another_one_finishes_meanwhile(
    tmp_path: Path, reboot: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at its boot and the comparison: it is whole then, and not given up."""
    one = thing(1, 3 * EXTENT_SIZE)
    with Pool.open(tmp_path / "pool", budget=BUDGET, durable=True) as pool:
        pool.partial(one.digest, one.size, one.extents).close()
    reboot()
    target = "pagepool.pool.filling.map_path"
    with Pool.open(tmp_path / "pool", budget=BUDGET) as pool:

        def overtaken(*arguments: Any) -> Path:
            monkeypatch.setattr(target, map_path)
            with pool.partial(one.digest, one.size, one.extents) as faster:
                assert fill(faster, one)
            return map_path(*arguments)

        monkeypatch.setattr(target, overtaken)
        with pool.partial(one.digest, one.size, one.extents) as partial:
            assert partial.finish()
            assert bytes(partial.view(0, one.size)) == one.data


def test_a_pool_that_is_not_durable_is_emptied(tmp_path: Path, reboot: Callable[[], None]) -> None:
    """It may be on a disk all the same."""
    place = tmp_path / "pool"
    one = thing(9, 3 * EXTENT_SIZE)
    with Pool.open(place, budget=BUDGET, durable=False) as pool:
        assert not pool.durable
        put(pool, 1)
        with pool.partial(one.digest, one.size, one.extents) as partial:
            partial.write(0, one.parts[0])
    reboot()
    with Pool.open(place, budget=BUDGET) as pool:
        assert not readable(pool, 1)
        assert not files_below(place / "partial")
        check_account(place, pool.stats())
        put(pool, 1)
        assert readable(pool, 1)


def test_a_pool_syncs_itself_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When so many bytes were published, by whoever publishes."""
    monkeypatch.setattr(pools, "SYNC_BYTES", 10 * 4096)
    place = tmp_path / "pool"
    with Pool.open(place, budget=BUDGET, durable=True) as pool:
        put(pool, *range(10))
        assert "synced -1" in (place / "epoch").read_text()
        put(pool, 10)
        assert "synced 0" in (place / "epoch").read_text()
        put(pool, *range(11, 22))
        assert "synced 1" in (place / "epoch").read_text()
        one = thing(9, EXTENT_SIZE + 10 * 4096)
        with pool.partial(one.digest, one.size, one.extents) as partial:
            assert fill(partial, one)
        assert "synced 2" in (place / "epoch").read_text()


def test_readers_wait_for_the_owner(tmp_path: Path, reboot: Callable[[], None]) -> None:
    """After a boot the owner has to mark what is suspect; until it is checked, readers do not see it."""
    place = tmp_path / "pool"
    with Pool.open(place, budget=BUDGET, durable=True) as pool:
        put(pool, 1, 2)
    reboot()
    with pytest.raises(BusyError, match="booted"):
        Pool.attach(place, pool.id)
    with Pool.open(place, budget=BUDGET) as pool, Pool.attach(place, pool.id) as reader:
        assert reader.get(thing(1).digest) is None
        assert readable(pool, 1)
        with reader.get(thing(1).digest) or pytest.fail("not there") as file:
            assert bytes(file.view) == thing(1).data
    (place / "epoch").write_text("boot x\n")
    with pytest.raises(StoreFormatError, match="epoch"):
        Pool.open(place, budget=BUDGET)


def test_power_loss_of_a_file_system(tmp_path: Path, reboot: Callable[[], None]) -> None:
    """A real ext4 loses what it has not written: what was synced is there, nothing is ever wrong, the rest is gone."""
    one = thing(100, 3 * EXTENT_SIZE)
    with small_file_system(tmp_path, 48 << 20) as target:
        pool = Pool.open(target / "pool", budget=BUDGET)
        assert pool.durable
        put(pool, *range(10))
        pool.sync()
        put(pool, *range(10, 20))
        with pool.partial(one.digest, one.size, one.extents) as partial:
            partial.write(0, one.parts[0])
        # Names and sizes reach the disk at the journal's next commit, the bytes much later: make it do so.
        descriptor = os.open(target / "pool", os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(descriptor)
        os.close(descriptor)
        cut_power(target)
        with pytest.raises(OSError, match=r"Input/output error"):
            put(pool, 30)
        del partial
    reboot()
    again = tmp_path / "again"
    again.mkdir()
    with (
        small_file_system(again, 48 << 20, image=tmp_path / "small.img") as target,
        Pool.open(target / "pool", budget=BUDGET) as pool,
    ):
        assert all(readable(pool, number) for number in range(10))
        lost = sum(not readable(pool, number) for number in range(10, 20))
        assert lost, "this file system loses nothing: the test shows nothing"
        with pool.partial(one.digest, one.size, one.extents) as partial:
            for number in partial.missing(0, 3):
                partial.write(number, one.parts[number])
            assert bytes(partial.view(0, one.size)) == one.data
        del partial
        check_account(pool.path, pool.stats())


def test_what_a_disk_refused_is_not_served(tmp_path: Path) -> None:
    """The kernel tells once that it could not write, and later reads what the disk has."""
    things = [thing(number, 50_000) for number in range(6)]
    with (
        thin_file_system(tmp_path, 24 << 20) as (thin, backing),
        Pool.open(thin / "pool", budget=1 << 30, durable=True) as pool,
    ):
        (pool.put(things[0].digest, things[0].data) or pytest.fail("not kept")).close()
        pool.sync()
        with filled(backing):
            for one in things[1:]:
                (pool.put(one.digest, one.data) or pytest.fail("not kept")).close()
            os.sync()  # as the kernel does by itself after a while
        with pytest.raises(OSError, match="syncfs"):
            pool.sync()
        pool.sync()
        for path in files_below(pool.path / "objects"):
            with path.open("rb") as stored:
                os.posix_fadvise(stored.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        for one in things:
            with pool.get(one.digest) or contextlib.nullcontext() as file:
                assert file is None or bytes(file.view) == one.data
                assert file is not None or one is not things[0]
