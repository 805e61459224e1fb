"""Processes that are killed at any point leave a pool that opens, is right, and has an exact account."""

from __future__ import annotations

import functools
import os
import random
import signal
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from pagepool.digest import blake3_raw
from pagepool.errors import StoreFullError
from pagepool.extents import EXTENT_SIZE
from pagepool.pool import Pool, Scrubber
from tests.pool.helpers import bytes_on_disk, check_account, files_below, fill, object_path, thing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.pool.helpers import Thing

BUDGET = 24 * EXTENT_SIZE
ROUNDS = 12
_THINGS = [thing(number, 1 + number * 5000) for number in range(60)]
_CALLS = ("open", "write", "pwrite", "rename", "unlink", "chmod", "fchmod", "utime", "ftruncate", "close", "mkdir")

# These tests fork where no other thread runs but faulthandler's, which holds no lock.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


@contextmanager
def child(run: Callable[[], None]) -> Iterator[int]:
    """A process that runs a function; killed, if it still runs, at the end of the block."""
    process = os.fork()
    if not process:
        try:
            run()
            os._exit(0)
        finally:
            os._exit(1)
    try:
        yield process
    finally:
        with suppress(ChildProcessError, ProcessLookupError):
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)


def work(place: Path, seed: int, progress: int = -1) -> None:
    """Put, get, remove and fill without end; tell of every step, if anyone wants to know."""
    source = random.Random(seed)
    pool = Pool.open(place, budget=BUDGET)
    while True:
        if progress >= 0:
            os.write(progress, b".")
        one, what = source.choice(_THINGS), source.random()
        if what < 0.3:
            with suppress(StoreFullError), pool.partial(one.digest, one.size, one.extents) as partial:
                fill(partial, one)
        elif what < 0.35:
            pool.remove(one.digest)
        else:
            file = pool.get(one.digest) if what < 0.6 else pool.put(one.digest, one.data)
            if file is not None:
                with file:
                    assert bytes(file.view) == one.data


def check_pool(place: Path) -> None:
    """Every name is of what it says; what is counted is what is there; everything can be used."""
    with Pool.open(place, budget=BUDGET, durable=True) as pool:
        stats = pool.stats()
        assert stats.temporary_bytes == stats.retired_bytes == len(files_below(place / "tmp")) == 0
        assert stats.objects == len(files_below(place / "objects"))
        assert stats.partials == len(list((place / "partial").glob("*.data")))
        assert stats.used <= stats.budget
        # An extent may have been counted, and not been written any more.
        assert (stats.used - bytes_on_disk(place)) in range(0, 4 * EXTENT_SIZE + 1)
        for path in files_below(place / "objects"):
            assert blake3_raw(path.read_bytes()).hex() == path.parent.name + path.name
            assert path.stat().st_mode & 0o777 == 0o444
        for one in _THINGS[1::20]:
            with pool.partial(one.digest, one.size, one.extents) as partial:
                fill(partial, one)
                assert bytes(partial.view(0, one.size)) == one.data
            del partial
        assert pool.stats().used <= BUDGET


def test_kill_at_any_point(place: Path) -> None:
    """Two processes work on a pool; again and again a third one is killed at work. The two never notice."""
    source = random.Random(place.parts[1])
    with (
        Pool.open(place, budget=BUDGET, durable=place.parts[1] != "dev") as pool,
        child(lambda: work(place, 1)) as one,
        child(lambda: work(place, 2)) as two,
    ):
        for number in range(ROUNDS):
            reading, writing = os.pipe()
            with child(functools.partial(work, place, 100 + number, writing)) as victim:
                os.close(writing)
                for _ in range(source.randrange(1, 40)):
                    assert os.read(reading, 1) == b"."
                os.kill(victim, signal.SIGKILL)
                os.waitpid(victim, 0)
            os.close(reading)
            stats = pool.stats()
            assert stats.used <= stats.budget
        assert os.waitpid(one, os.WNOHANG) == os.waitpid(two, os.WNOHANG) == (0, 0), "a survivor failed"
    check_pool(place)


def kill_before_call(number: int) -> None:
    """Kill this process at a call, counted from 1, of a function that changes something on the disk."""
    left = number

    def counting(call: Callable[..., object]) -> Callable[..., object]:
        def counted(*arguments: object, **options: object) -> object:
            nonlocal left
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)

        return counted

    for name in _CALLS:
        setattr(os, name, counting(getattr(os, name)))


def do_everything(place: Path, things: list[Thing]) -> None:
    """Put, evict, retire, fill, publish, give up, sync, scrub."""
    with Pool.open(place, budget=BUDGET, durable=True) as pool:
        files = [pool.put(one.digest, one.data) for one in things[:2]]
        pool.remove(things[0].digest)
        for file in files:
            (file or pytest.fail("not kept")).close()
        for one in things[2:9]:
            (pool.put(one.digest, one.data) or pytest.fail("not kept")).close()
        with pool.partial(things[9].digest, things[9].size, things[9].extents) as partial:
            fill(partial, things[9])
        with pool.partial(things[10].digest, things[10].size, things[10].extents) as partial:
            partial.write(1, things[10].parts[1])
            partial.discard()
        pool.sync()
        Scrubber(pool).run(2)


def test_kill_at_every_call(memory_dir: Path) -> None:
    """A process is killed at its first call that changes something, the next one at its second, and so on."""
    place, stock = memory_dir / "pool", [thing(number, 3 * EXTENT_SIZE) for number in range(40)]
    with Pool.open(place, budget=BUDGET, durable=True):
        pass
    number, status = 0, 1
    while status:
        number += 1
        things = [stock[(number * 11 + index) % len(stock)] for index in range(11)]

        def run(things: list[Thing] = things, number: int = number) -> None:
            kill_before_call(number)
            do_everything(place, things)

        with child(run) as process:
            status = os.waitpid(process, 0)[1]
        assert status in (0, signal.SIGKILL)
        check_pool(place)
    assert number > 100, "the calls were not counted"


def kill_in_publishing(place: Path, one: Thing, module: object, name: str) -> None:
    """Fill an object, killed before a call of a function."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
        with Pool.open(place, budget=BUDGET) as pool, pool.partial(one.digest, one.size, one.extents) as partial:
            fill(partial, one)


def test_a_partial_object_that_is_read_only_already(memory_dir: Path) -> None:
    """Its filler was killed between that and its name; the next one need not be root."""
    if os.geteuid():
        pytest.skip("becoming another user needs root")
    os.chown(memory_dir, 65534, 65534)
    place, one = memory_dir / "pool", thing(1, 3 * EXTENT_SIZE)

    def as_nobody(run: Callable[[], None]) -> None:
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        run()

    with child(lambda: as_nobody(lambda: kill_in_publishing(place, one, os, "utime"))) as process:
        assert os.waitpid(process, 0)[1] == signal.SIGKILL
    (path,) = (place / "partial").glob("*.data")
    assert path.stat().st_mode & 0o777 == 0o444

    def again() -> None:
        with Pool.open(place, budget=BUDGET) as pool:
            pool.partial(one.digest, one.size, one.extents).close()

    with child(lambda: as_nobody(again)) as process:
        assert os.waitpid(process, 0)[1] == 0
    assert object_path(place, one.digest).read_bytes() == one.data


def test_another_filler_of_what_was_published_by_one_that_was_killed(place: Path) -> None:
    """That has its name, and the map is there still: the other one finds it whole."""
    one = thing(1, 3 * EXTENT_SIZE)
    with (
        Pool.open(place, budget=BUDGET, durable=True) as pool,
        pool.partial(one.digest, one.size, one.extents) as partial,
    ):
        with child(lambda: kill_in_publishing(place, one, type(place), "unlink")) as process:
            assert os.waitpid(process, 0)[1] == signal.SIGKILL
        assert object_path(place, one.digest).exists()
        assert partial.finish()
        check_account(place, pool.stats())


def test_kill_while_a_pool_is_made(memory_dir: Path) -> None:
    """The next one makes it, whatever is there."""
    for number in range(1, 600, 40):
        place = memory_dir / str(number)

        def run(place: Path = place, number: int = number) -> None:
            kill_before_call(number)
            Pool.open(place, budget=BUDGET).close()

        with child(run) as process:
            status = os.waitpid(process, 0)[1]
        assert status in (0, signal.SIGKILL)
        check_pool(place)
    assert not status, "making a pool takes more calls than were looked at"
