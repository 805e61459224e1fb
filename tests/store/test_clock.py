"""Ages in a store whose machine's clock is set, forwards and backwards, while it is used and between boots."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from pagepool.errors import CorruptError
from pagepool_service.store.clock import Jump, Moment, Timeline, note_clock, read_timeline, watch_clock
from pagepool_service.store.collect import Collector, Policy
from pagepool_service.store.collect.policy import TagRule
from pagepool_service.store.environment import Table
from pagepool_service.store.fsck import check_store
from tests.store.collecting import REPOSITORY, assert_whole, gone, layer, push_image

if TYPE_CHECKING:
    from pathlib import Path

    from pagepool_service.store.collect import Report
    from pagepool_service.store.store import Store

DAY = 24 * 3600 * 10**9
YEAR = 365 * DAY
BOOT, OTHER_BOOT = b"a" * 16, b"b" * 16


@dataclass(slots=True)
class Wall:
    """The machine's clock, which can be set; time passes when a test says so."""

    at: int
    passed: int = DAY
    boot: bytes = BOOT

    def __call__(self) -> Moment:
        return Moment(self.at, self.passed, self.boot)

    def wait(self, ns: int) -> None:
        self.at += ns
        self.passed += ns


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> Wall:
    """One that everything that is written goes by."""
    found = Wall(1_800_000_000 * 10**9)
    monkeypatch.setattr(Moment, "now", found)
    monkeypatch.setattr(time, "time_ns", lambda: found.at)
    return found


def collect(store: Store, wall: Wall, **policy: object) -> Report:
    return Collector(store, Policy(**policy), clock=wall).run()  # type: ignore[arg-type]


@pytest.mark.parametrize("seen", [False, True])
@pytest.mark.parametrize("by", [2 * DAY, 10 * YEAR])
def test_nothing_is_old_because_the_clock_was_set_forwards(store: Store, wall: Wall, by: int, seen: bool) -> None:
    """A push under way, and a manifest without a tag, stay for the time that they have."""
    watch_clock(store.env, wall())
    image = push_image(store, REPOSITORY, [layer(4)], tags=["1"])
    store.registry.delete_manifest(REPOSITORY, image.digest)  # so the blobs are of no manifest
    untagged = push_image(store, "other", [layer(5)], tags=[])
    wall.wait(DAY // 2)
    wall.at += by
    if seen:
        watch_clock(store.env, wall())
        wall.wait(DAY // 4)
    collect(store, wall, grace_s=86400, untagged_s=86400)
    assert_whole(store, "other", untagged)
    for digest in image.blobs:
        store.registry.stat_blob(REPOSITORY, digest)
    wall.wait(DAY)
    collect(store, wall, grace_s=86400, untagged_s=86400)
    assert gone(store, untagged, "other")
    assert gone(store, image)


def test_nothing_is_old_because_the_clock_was_set_back_and_put_right(store: Store, wall: Wall) -> None:
    watch_clock(store.env, wall())
    wall.at -= 10 * YEAR
    untagged = push_image(store, REPOSITORY, [layer(4)], tags=[])
    collect(store, wall, grace_s=86400, untagged_s=86400)
    wall.wait(DAY // 4)
    wall.at += 10 * YEAR
    collect(store, wall, grace_s=86400, untagged_s=86400)
    assert_whole(store, REPOSITORY, untagged)
    wall.wait(DAY)
    collect(store, wall, grace_s=86400, untagged_s=86400)
    assert gone(store, untagged)


def test_what_is_written_while_the_clock_is_wrong_for_a_moment_is_not_old(store: Store, wall: Wall) -> None:
    push_image(store, "other", [layer(5)], tags=["1"])
    wall.at -= YEAR
    untagged = push_image(store, REPOSITORY, [layer(4)], tags=[])
    wall.at += YEAR
    collect(store, wall, grace_s=86400, untagged_s=86400)
    assert_whole(store, REPOSITORY, untagged)


@pytest.mark.parametrize("seen", [False, True])
def test_no_tag_goes_whose_order_is_in_doubt(store: Store, wall: Wall, seen: bool) -> None:
    """What is pushed after the clock was set back is of before what was pushed before it."""
    rule = {"grace_s": 0, "untagged_s": 0, "tags": (TagRule("*", 1),)}
    if seen:
        watch_clock(store.env, wall())
    old = push_image(store, REPOSITORY, [layer(4)], tags=["old"])
    wall.wait(DAY)
    wall.at -= YEAR
    new = push_image(store, REPOSITORY, [layer(5)], tags=["new"], note="new")
    report = collect(store, wall, **rule)
    assert report.freed["tags"] == 0
    assert report.problems == [
        f"{REPOSITORY} keeps all its tags: the clock was set back, and nobody knows which are the newest"
    ]
    assert_whole(store, REPOSITORY, old)
    assert_whole(store, REPOSITORY, new)


def test_small_steps_add_up(store: Store, wall: Wall) -> None:
    """Steps that are no jump by themselves are not lost."""
    watch_clock(store.env, wall())
    for _ in range(40):
        wall.wait(2 * 3600 * 10**9)
        wall.at += 10 * 10**9
        with store.env.write() as txn:
            note_clock(txn, wall())
    with store.env.read() as txn:
        jumps = read_timeline(txn, wall()).jumps
    assert 390 * 10**9 <= sum(jump.to_ns - jump.from_ns for jump in jumps) <= 400 * 10**9


def test_nothing_is_written_while_nobody_sets_it(store: Store, wall: Wall) -> None:
    watch_clock(store.env, wall())
    before = store.env.version()
    for _ in range(5):
        wall.wait(DAY)
        watch_clock(store.env, wall())
    assert store.env.version() == before
    wall.at += 60 * 10**9
    watch_clock(store.env, wall())
    assert store.env.version() == before + 1


def test_there_is_no_end_to_jumps(store: Store, wall: Wall) -> None:
    for number in range(100):
        wall.wait(DAY)
        wall.at += 3600 * 10**9
        wall.boot = OTHER_BOOT if number % 3 else BOOT
        watch_clock(store.env, wall())
    with store.env.read() as txn:
        assert 0 < len(read_timeline(txn, wall()).jumps) <= 32


def test_ages_over_jumps() -> None:
    def since(age: int, *jumps: Jump) -> int:
        return Timeline(Moment.now().at(1000 * 10**9), jumps).since_ns(age) // 10**9

    def jump(start: int, end: int, *, rebooted: bool = False) -> Jump:
        return Jump(start * 10**9, end * 10**9, rebooted)

    assert since(100) == 900
    assert since(100, jump(500, 950)) == 450
    assert since(50, jump(500, 950)) == 950
    assert since(0, jump(500, 950)) == 1000
    assert since(100, jump(100, 200), jump(500, 950)) == 450
    assert since(400, jump(100, 200), jump(500, 950)) == 50
    assert since(100, jump(500, 950, rebooted=True)) == 900
    assert since(100, jump(2000, 990)) == 900
    assert since(100, jump(970, 2000), jump(2000, 990)) == 880


def test_a_record_that_cannot_be_read_is_damage(store: Store, data: Path, wall: Wall) -> None:
    with store.env.write() as txn:
        txn.put(Table.META, b"clock", b"short")
    with pytest.raises(CorruptError), store.env.read() as txn:
        read_timeline(txn, wall())
    assert check_store(data).problems == []  # its checksum is right
