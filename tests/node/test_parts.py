"""Larger files are read in parts while containers start: what is read is learned, and the next one fetches no more."""

from __future__ import annotations

import errno
import mmap
import os
import random
import signal
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import httpx
import pytest

from pagepool.digest import Digest, blake3_raw
from pagepool.extents import EXTENT_SIZE
from pagepool.node.forgetting import LetGo
from pagepool.node.handover import WORKER
from pagepool.node.links import Links, ReadInParts
from pagepool.node.parts import MIDDLE, Parts
from pagepool.node.recording import plan_prefetch
from pagepool.node.worker import WorkerOptions
from pagepool.transport import ProfileClient, Session
from pagepool.transport.profiles import Profile
from tests.content.scripted import info_of, make_tree, noise
from tests.fault.test_node import LAZILY, point, push
from tests.node.guarded import wait_post
from tests.node.test_metrics import scrape
from tests.support.nodeserver import running_node
from tests.support.server import Service, running_service

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pagepool.node.client import NodeClient

_OPTIONS = WorkerOptions(
    timeout_s=2.0, fill=False, large=8 << 20, parts=ReadInParts.ALWAYS, metrics_listen=("127.0.0.1", 0)
)
_FILES = {
    "lib/middle.so": random.Random(1).randbytes(6 << 20),
    "lib/large.so": random.Random(2).randbytes(10 << 20),
    "bin/small": random.Random(3).randbytes(5000),
}
_READ = (0, 13, 30)
"""The extents that a start of these tests reads, of both larger files."""
_PATIENCE_S = 30.0
TREE = "ab" * 32
ONE, OTHER = b"1" * 32, b"2" * 32


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with running_service(tmp_path / "data", "--workers", "1") as running:
        yield running


def start(at: Path) -> None:
    """What a container does when it starts: a little of some files."""
    assert (at / "bin/small").read_bytes() == _FILES["bin/small"]
    for name, read in (("lib/middle.so", touch_parts), ("lib/large.so", read_parts)):
        assert read(at / name, _READ) == [_FILES[name][at : at + 4096] for at in offsets(_READ)]


def offsets(numbers: tuple[int, ...]) -> list[int]:
    """The middle of each extent: the kernel reads ahead within it."""
    return [number * EXTENT_SIZE + EXTENT_SIZE // 4 for number in numbers]


def read_parts(path: Path, numbers: tuple[int, ...]) -> list[bytes]:
    with path.open("rb", buffering=0) as file:
        return [os.pread(file.fileno(), 4096, offset) for offset in offsets(numbers)]


def touch_parts(path: Path, numbers: tuple[int, ...]) -> list[bytes]:
    """The same by faults, around which the kernel reads ahead."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        return [mapped[offset : offset + 4096] for offset in offsets(numbers)]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def profile_of(service: Service, name: str) -> Profile | None:
    tree = Digest.parse(httpx.get(f"{service.url}/v1/{name}/images/1/tree").json()["tree"])
    with Session(service.url) as session:
        return ProfileClient(session).get(name, tree)


def fetches(node: NodeClient) -> int:
    return int(scrape(node)["pagepool_node_fetch_seconds_count{}"])


def test_a_start_is_learned_and_the_next_one_fetches_what_it_reads(service: Service, tmp_path: Path) -> None:
    reference = push(service, "app", _FILES)
    with running_node(tmp_path / "first", _OPTIONS) as node:
        at = point(tmp_path, "one")
        with node.mount(service.url, reference, at, LAZILY):
            start(at)
        until(lambda: profile_of(service, "app") is not None)
    learned = profile_of(service, "app")
    assert learned is not None
    parts = {name: set(learned.parts.get(blake3_raw(data), ())) for name, data in _FILES.items()}
    for name in ("lib/middle.so", "lib/large.so"):
        # And what is read ahead: 64 KiB, which may reach into the next one.
        assert set(_READ) <= parts[name] <= {number + more for number in _READ for more in (0, 1)}
    assert parts["bin/small"] == set()

    with running_node(tmp_path / "second", _OPTIONS) as node:
        at = point(tmp_path, "two")
        with node.mount(service.url, reference, at, LAZILY):
            until(lambda: fetches(node) == 1)
            service.stop()
            start(at)  # nothing is asked for any more
            with pytest.raises(OSError, match="Input/output error") as caught:
                read_parts(at / "lib/middle.so", (20,))
            assert caught.value.errno == errno.EIO
            service.start()
            worker = node.status()["pid"]
            os.kill(worker, signal.SIGKILL)
            wait_post(node.places.run, WORKER, worker)
            start(at)
            assert {name: (at / name).read_bytes() for name in _FILES} == _FILES


def test_a_new_version_starts_as_the_one_before(service: Service, tmp_path: Path) -> None:
    """Nothing was learned of it: what its containers read is fetched ahead all the same, a file that is new, too."""
    reference = push(service, "app", _FILES)
    with running_node(tmp_path / "first", _OPTIONS) as node:
        with node.mount(service.url, reference, point(tmp_path, "one"), LAZILY):
            start(tmp_path / "one")
        until(lambda: profile_of(service, "app") is not None)
    newer = {**_FILES, "bin/small": b"newer" * 1000}
    push(service, "app", newer)
    with running_node(tmp_path / "second", _OPTIONS) as node:
        at = point(tmp_path, "two")
        with node.mount(service.url, reference, at, LAZILY):
            until(lambda: fetches(node) == 1)
            assert profile_of(service, "app") is None
            service.stop()
            assert (at / "bin/small").read_bytes() == newer["bin/small"]
            for name in ("lib/middle.so", "lib/large.so"):
                assert read_parts(at / name, _READ) == [_FILES[name][at : at + 4096] for at in offsets(_READ)]


def test_what_is_not_learned_comes_as_a_whole_and_is_served_meanwhile(service: Service, tmp_path: Path) -> None:
    """A file that is not large is fetched in one request at once, though it is read in parts; then it is local."""
    reference = push(service, "app", _FILES)
    with running_node(tmp_path / "node", _OPTIONS) as node:
        at, later = point(tmp_path, "one"), point(tmp_path, "two")
        with node.mount(service.url, reference, at, LAZILY):
            for _ in range(3):
                assert read_parts(at / "lib/middle.so", _READ) == [
                    _FILES["lib/middle.so"][at : at + 4096] for at in offsets(_READ)
                ]
            assert fetches(node) == 1
            until(lambda: node.mounts()[0]["missing_objects"] == 2)
            assert node.mounts()[0]["lazily_read"] == 1

            def is_native() -> bool:
                with node.mount(service.url, reference, later, LAZILY):
                    assert (later / "lib/middle.so").read_bytes() == _FILES["lib/middle.so"]
                    return [one["lazily_read"] for one in node.mounts()] == [1, 0]

            until(is_native)


# -- what is decided ------------------------------------------------------------------------------------------


def test_objects_are_read_in_parts_while_a_start_is_recorded() -> None:
    told: list[bool] = []
    parts = Parts(told.append)
    assert not parts.serves(ONE, [TREE])
    parts.begin("other", in_parts=False)
    assert not parts.serves(ONE, ["other"])
    assert told == []
    parts.begin(TREE, in_parts=True)
    parts.begin(TREE, in_parts=True)
    assert parts.serves(ONE, ["other", TREE])
    assert not parts.serves(ONE, ["other"])
    parts.end(TREE)
    assert parts.serves(ONE, [TREE])
    parts.end(TREE)
    assert not parts.serves(ONE, [TREE])
    assert told == [True, False]
    parts.end("other")
    assert told == [True, False]


def test_over_a_fast_link_only_large_files_are_read_in_parts(service: Service, tmp_path: Path) -> None:
    """What is not large is a file of the pool as soon as it is opened. (What is fast is no matter of this test.)"""
    reference = push(service, "app", _FILES)
    with running_node(tmp_path / "node", replace(_OPTIONS, parts=ReadInParts.NEVER)) as node:
        at = point(tmp_path, "one")
        with node.mount(service.url, reference, at, LAZILY):
            start(at)
            assert node.mounts()[0]["lazily_read"] == 1
        until(lambda: profile_of(service, "app") is not None)
    learned = profile_of(service, "app")
    assert learned is not None
    assert set(learned.parts) == {blake3_raw(_FILES["lib/large.so"])}


def test_which_links_are_slow() -> None:
    """A tree file of 2 MB comes in 20 ms from a machine nearby; over 100 Mbit/s and 20 ms it takes more than 100."""
    links = Links()
    assert not links.in_parts("one")
    links.note("one", 2_000_000, 0.12)
    links.note("other", 2_000_000, 0.02)
    links.note("little", 30_000, 0.01)
    links.note("far", 30_000, 0.021)
    assert [links.in_parts(one) for one in ("one", "other", "little", "far")] == [True, False, False, True]
    for choice, expected in ((ReadInParts.ALWAYS, True), (ReadInParts.NEVER, False)):
        links = Links(choice)
        links.note("one", 1, 1.0 if expected else 100.0)
        assert links.in_parts("one") is expected


def test_what_a_profile_says_of_an_object_counts() -> None:
    parts = Parts()
    parts.begin(TREE, in_parts=True)
    parts.expect(TREE)
    parts.answer(TREE, [ONE], [OTHER])
    parts.answer(TREE, [OTHER])  # too late
    assert (parts.is_partial(ONE), parts.is_partial(OTHER)) == (True, False)
    assert (parts.serves(ONE, [TREE]), parts.serves(OTHER, [TREE])) == (True, False)
    assert parts.serves(b"3" * 32, [TREE])
    parts.end(TREE)
    assert (parts.serves(ONE, [TREE]), parts.serves(b"3" * 32, [TREE])) == (True, False)


def test_reads_are_noted_of_objects_that_were_met_during_the_start() -> None:
    parts = Parts()
    parts.met(ONE)
    parts.begin(TREE, in_parts=True)
    parts.met(OTHER)
    parts.read(ONE, 0, 1)
    parts.read(OTHER, EXTENT_SIZE - 1, EXTENT_SIZE + 1)
    parts.read(OTHER, 5 * EXTENT_SIZE, 6 * EXTENT_SIZE)
    assert parts.noted(0.0) == {OTHER: {0, 1, 5}}
    assert parts.noted(time.monotonic()) == {}, "of an object that was met before not all reads were seen"
    parts.end(TREE)
    assert parts.noted(0.0) == {}


def test_whoever_waits_for_starts_is_told_of_the_first_and_the_last() -> None:
    """However many containers there are of an image, and whatever starts of which nothing is read in parts."""
    told: list[bool] = []
    parts = Parts(told.append)
    parts.begin("whole", in_parts=False)
    parts.end("whole")
    assert told == []
    for tree in ("one", "one", "other"):
        parts.begin(tree, in_parts=True)
    for tree in ("one", "one"):
        parts.end(tree)
    assert told == [True]
    parts.end("other")
    assert told == [True, False]


def test_overlays_are_to_let_go_of_wholes_ever_more_seldom() -> None:
    now = [100.0]
    letting_go = LetGo(lambda: now[0])
    due: list[float] = []
    for second in range(2000):
        now[0] = second
        wholes = {ONE, OTHER} if second >= 600 else {ONE}
        if letting_go.is_due(frozenset() if second < 10 else frozenset(wholes)):
            due.append(second)
    assert due == [25, 85, 325, 615, 675, 915, 1875]


def test_what_is_fetched_ahead() -> None:
    """Extents of what is known, wholes else; nothing that the tree does not have."""
    small, middle, most, whole, unknown, large, huge = (
        noise(size, number)
        for number, size in enumerate((1000, MIDDLE + 1, 2 * MIDDLE, 2 * MIDDLE, MIDDLE + 1, 5 * MIDDLE, 5 * MIDDLE))
    )
    contents = [small, middle, most, whole, unknown, large, huge]
    tree = make_tree({f"{number}": data for number, data in enumerate(contents)})
    digests = [info_of(tree, data).digest for data in contents]
    known: dict[bytes, tuple[int, ...]] = {
        digests[0]: (),
        digests[1]: (8, 2, 900),
        digests[2]: tuple(range(15)),
        digests[3]: tuple(range(14)),
        digests[5]: (1, 40),
        b"x" * 32: (3,),
    }
    profile = Profile((b"x" * 32, *reversed(digests)), 3, Digest("blake3", b"t" * 32), 0, known)
    plan = plan_prefetch(profile, tree, 4 * MIDDLE)
    places = [tree.find_object(digest) for digest in digests]
    assert list(plan.wanted.items()) == [
        (places[5], (1,)),
        (places[4], None),
        (places[3], tuple(range(14))),
        (places[2], None),
        (places[1], (8, 2)),
        (places[0], None),
    ]
    assert plan.partial == {digests[1], digests[3], digests[5]}
    assert plan.settled == {digests[2]}
    whole_plan = plan_prefetch(profile, tree, 4 * MIDDLE, in_parts=False)
    assert [one for one in whole_plan.wanted.values() if one is not None] == [(1,)]
    assert whole_plan.partial == {digests[5]}
    assert not whole_plan.settled
    assert whole_plan.wanted.keys() == plan.wanted.keys()
    assert list(plan_prefetch(profile, tree, 4 * MIDDLE, MIDDLE).wanted) == [places[5], places[1], places[0]]
