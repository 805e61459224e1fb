"""Start-up profiles: what is counted, how it fades and is bounded, and what a newer image inherits."""

from __future__ import annotations

import math
import os
import random
import struct
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from pagepool.digest import Digest, blake3_raw
from pagepool.errors import (
    NameUnknownError,
    ObjectUnknownError,
    PagepoolError,
    ProfileUnknownError,
    ReadOnlyError,
    StoreFullError,
    TreeUnknownError,
)
from pagepool.extents import EXTENT_SIZE
from pagepool.transport import ProfileClient, Session
from pagepool_service import profiles as profiles_module
from pagepool_service.inherit import choose_similar, find_replaced, inherit
from pagepool_service.profiles import MOST_STARTS, Profiles, StartProfile
from tests.service.test_leases import make, take
from tests.support.objects import ObjectService, object_service

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pagepool.image.treefile import TreeFile

NAME = "learned/app"
TREE = b"t" * 32
LIBC, TOOL, CONF, DATA = (blake3_raw(data) for data in (b"libc 1", b"tool", b"conf", b"data"))
FILES = {"lib/libc.so": b"libc 1", "bin/tool": b"tool", "etc/conf": b"conf", "srv/data": b"data"}
NEWER = {"lib/libc.so": b"libc 2", "bin/tool": b"tool", "etc/conf": b"conf", "srv/other": b"other"}


def objects(*numbers: int) -> list[bytes]:
    return [blake3_raw(str(number).encode()) for number in numbers]


def learned(*starts: list[bytes]) -> StartProfile:
    profile = StartProfile(TREE)
    for number, start in enumerate(starts, 1):
        profile = profile.with_start(start, number)
    return profile


# -- what is counted -----------------------------------------------------------------------------------------


def test_the_first_opened_come_first() -> None:
    profile = learned(objects(3, 1, 2), objects(3, 2, 1), objects(3, 2, 1))
    assert profile.starts == 3
    assert profile.updated_ns == 3
    assert profile.urgent() == objects(3, 2, 1)


def test_what_is_seldom_opened_is_left_out() -> None:
    """An object of one start in four is answered, of one in five it is not."""
    usual = objects(1, 2)
    assert learned(objects(9, 1, 2), usual, usual, usual).urgent() == objects(9, 1, 2)
    assert learned(objects(9, 1, 2), usual, usual, usual, usual).urgent() == objects(1, 2)


def test_what_is_opened_twice_counts_once() -> None:
    assert learned(objects(1, 2, 1, 2, 3)).urgent() == objects(1, 2, 3)


def test_old_starts_fade() -> None:
    """What containers do today outweighs what they did for a long time."""
    profile = learned(*[objects(1, 2)] * 1000)
    assert profile.starts <= MOST_STARTS
    for _ in range(MOST_STARTS * 3):
        profile = profile.with_start(objects(3), 0)
    assert profile.urgent() == objects(3)
    assert set(profile.seen) == set(objects(3))


def test_objects_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those seen most stay."""
    monkeypatch.setattr(profiles_module, "MOST_OBJECTS", 10)
    profile = learned(objects(*range(6)), objects(*range(6)), objects(*range(100, 110)))
    assert set(profile.seen) == set(objects(*range(6), *range(100, 104)))


def test_the_file_is_read_back() -> None:
    profile = learned(objects(1, 2), objects(2, 3)).with_start(objects(2), 3, dict.fromkeys(objects(2), (0, 300)))
    data = profile.encode()
    assert StartProfile.decode(data, TREE) == profile
    assert StartProfile.decode(data, b"u" * 32) is None
    randomness = random.Random(5)
    for _ in range(200):
        damaged = bytearray(data)
        damaged[randomness.randrange(len(data))] ^= 1 << randomness.randrange(8)
        assert StartProfile.decode(bytes(damaged), TREE) is None
        assert StartProfile.decode(data[: randomness.randrange(len(data))], TREE) is None


def test_of_an_object_the_extents_that_most_starts_read_are_answered() -> None:
    """Of the starts that told: one that did not, since it read the object without us, says nothing."""
    (one,) = objects(1)
    profile = StartProfile(TREE)
    for read in ({5, 0}, None, {0, 1}, {0}, {0}, {0, 1}, None):
        profile = profile.with_start([one], 0, {} if read is None else {one: read})
    assert (profile.seen[one].starts, profile.seen[one].told) == (7, 5)
    assert profile.seen[one].parts() == (0, 1)
    assert profile.with_start([one], 0, {one: set()}).seen[one].parts() == (0, 1)
    assert StartProfile(TREE).with_start([one], 0, {one: ()}).seen[one].parts() == ()
    assert learned([one]).seen[one].parts() is None
    for _ in range(1000):
        profile = profile.with_start([one], 0, {one: [7]})
    assert profile.seen[one].parts() == (7,)
    assert StartProfile.decode(profile.encode(), TREE) == profile
    for _ in range(1000):
        profile = profile.with_start([one], 0)
    assert (profile.seen[one].parts(), profile.seen[one].extents) == (None, b"")


def test_extents_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the objects seen most stay; the objects all do."""
    monkeypatch.setattr(profiles_module, "MOST_EXTENTS", 10)
    usual, seldom = objects(1, 2)
    profile = learned([usual]).with_start([seldom, usual], 0, {usual: [7], seldom: [2]})
    assert (profile.seen[usual].parts(), profile.seen[seldom].parts()) == ((7,), None)
    assert profile.seen[seldom].starts == 1


def test_a_file_of_version_1_is_read() -> None:
    head = b"PPPROF\r\n" + struct.pack(">I32sQII", 1, TREE, 9, 2, 1)
    data = head + struct.pack(">32sId", LIBC, 2, 0.5)
    found = StartProfile.decode(data + blake3_raw(data)[:8], TREE)
    assert found == StartProfile(TREE, 2, 9, {LIBC: profiles_module.Seen(2, 0.5)})


def test_a_mean_that_is_no_number_is_dropped() -> None:
    body = profiles_module.StartProfile(TREE, 1, 1, {LIBC: profiles_module.Seen(1, math.nan)}).encode()
    found = StartProfile.decode(body, TREE)
    assert found is not None
    assert not found.seen


# -- files ---------------------------------------------------------------------------------------------------


@pytest.fixture
def kept(tmp_path: Path) -> Profiles:
    return Profiles(tmp_path / "profiles")


def test_profiles_are_of_a_repository_and_a_tree(kept: Profiles) -> None:
    assert kept.get(NAME, TREE) is None
    kept.record(NAME, TREE, objects(1))
    assert kept.record(NAME, TREE, objects(1, 2)).starts == 2
    assert kept.get("other", TREE) is None
    found = kept.get(NAME, TREE)
    assert found is not None
    assert found.urgent() == objects(1, 2)
    with pytest.raises(ProfileUnknownError):
        kept.delete("other", TREE)
    kept.delete(NAME, TREE)
    assert list(kept.list(NAME)) == []


def test_a_damaged_file_is_none(kept: Profiles, tmp_path: Path) -> None:
    kept.record(NAME, TREE, objects(1))
    (path,) = (tmp_path / "profiles").rglob(TREE.hex())
    path.write_bytes(b"x" * 70)
    assert kept.get(NAME, TREE) is None
    assert kept.record(NAME, TREE, objects(1)).starts == 1


def test_the_oldest_profiles_go(kept: Profiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trees = [bytes((number,)) * 32 for number in range(8)]

    def record(name: str, tree: bytes, at: int) -> None:
        kept.record(name, tree, objects(1))
        (path,) = (tmp_path / "profiles").rglob(f"{tree.hex()}")
        os.utime(path, ns=(at, at))

    monkeypatch.setattr(profiles_module, "MOST_PROFILES", 3)
    for number, tree in enumerate(trees[:5]):
        record("one", tree, number)
    assert [profile.tree for profile in kept.list("one")] == [trees[4], trees[3], trees[2]]
    size = len(learned(objects(1)).encode())
    monkeypatch.setattr(profiles_module, "MOST_BYTES", 3 * size)
    record("two", trees[6], 10)
    record("two", trees[7], 11)
    assert [profile.tree for profile in kept.list("two")] == [trees[7], trees[6]]
    assert [profile.tree for profile in kept.list("one")] == [trees[4]]


def test_where_nothing_can_be_written(kept: Profiles, tmp_path: Path) -> None:
    kept.record(NAME, TREE, objects(1))
    reader = Profiles(tmp_path / "profiles", readonly=True)
    assert reader.get(NAME, TREE) is not None
    with pytest.raises(ReadOnlyError):
        reader.record(NAME, TREE, objects(1))
    with pytest.raises(ReadOnlyError):
        reader.delete(NAME, TREE)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreFullError):
        Profiles(tmp_path / "file").record(NAME, TREE, objects(1))


# -- what is inherited ---------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ObjectService]:
    with object_service(tmp_path / "data") as running:
        yield running


def test_a_newer_image_inherits(server: ObjectService) -> None:
    """What it has, and in place of what it has not, what is at the same path; in the old order."""
    older, newer = server.image(NAME, FILES), server.image(NAME, NEWER)
    profile = StartProfile(older.digest).with_start([CONF, LIBC, DATA, TOOL], 1)
    libc = blake3_raw(b"libc 2")
    assert list(inherit(newer, profile, lambda: older).objects) == [CONF, libc, TOOL]
    assert list(inherit(newer, profile, lambda: None).objects) == [CONF, TOOL]
    assert find_replaced(older, newer, [LIBC, DATA, b"x" * 32]) == {LIBC: libc}
    read = profile.with_start([CONF, LIBC], 2, {CONF: [0], LIBC: [0]})
    assert inherit(newer, read, lambda: older).parts() == {CONF: (0,)}
    same = StartProfile(newer.digest).with_start([CONF], 1)

    def never() -> TreeFile:
        raise AssertionError("it was not needed")

    assert list(inherit(newer, same, never).objects) == [CONF]


def test_the_most_similar_is_chosen(server: ObjectService) -> None:
    tree = server.image(NAME, NEWER)
    half = StartProfile(b"a" * 32).with_start([CONF, LIBC], 1)
    best = StartProfile(b"b" * 32).with_start([CONF, TOOL, LIBC], 1)
    none = StartProfile(b"c" * 32).with_start([LIBC], 1)
    own = StartProfile(tree.digest).with_start([CONF], 1)
    empty = StartProfile(b"d" * 32).with_start([], 1)
    assert choose_similar(tree, [own, half, best, none, empty]) == best
    assert choose_similar(tree, [own, none, empty]) is None


# -- over HTTP -----------------------------------------------------------------------------------------------


def url(server: ObjectService, tree: TreeFile) -> str:
    return f"{server.url}/v1/{NAME}/trees/{Digest('blake3', tree.digest)}/profile"


def test_the_client(server: ObjectService) -> None:
    older, newer = server.image(NAME, FILES), server.image(NAME, NEWER)
    first, second = (Digest("blake3", tree.digest) for tree in (older, newer))
    with Session(server.url) as session:
        client = ProfileClient(session)
        assert client.get(NAME, first) is None
        assert client.get(NAME, first, similar=True) is None
        client.record(NAME, first, [LIBC, TOOL])
        client.record(NAME, first, [LIBC, CONF, TOOL])
        found = client.get(NAME, first, similar=True)
        assert found is not None
        assert (found.objects, found.starts, found.tree) == ((LIBC, CONF, TOOL), 2, first)
        assert client.get(NAME, second) is None
        inherited = client.get(NAME, second, similar=True)
        assert inherited is not None
        assert (inherited.objects, inherited.tree) == ((blake3_raw(b"libc 2"), CONF, TOOL), first)
        (listed,) = client.list(NAME)
        assert (listed.tree, listed.starts, listed.objects, listed.images) == (first, 2, 3, ())
        with pytest.raises(NameUnknownError):
            client.list("other")
        with pytest.raises(ObjectUnknownError):
            client.record(NAME, first, [LIBC, b"x" * 32])
        with pytest.raises(TreeUnknownError):
            client.record("other", first, [LIBC])
        with pytest.raises(TreeUnknownError):
            client.get("other", first, similar=True)
        client.delete(NAME, first)
        assert client.get(NAME, first) is None
        with pytest.raises(ProfileUnknownError):
            client.delete(NAME, first)


def test_extents_come_back(server: ObjectService) -> None:
    big = os.urandom(EXTENT_SIZE * 4)
    tree = server.image(NAME, FILES | {"lib/big.so": big})
    digest, one = Digest("blake3", tree.digest), blake3_raw(big)
    with Session(server.url) as session:
        client = ProfileClient(session)
        client.record(NAME, digest, [one, LIBC], {one: [3, 0, 1], TOOL: [0]})
        found = client.get(NAME, digest)
        assert found is not None
        assert (found.objects, dict(found.parts)) == ((one, LIBC), {one: (0, 1, 3)})
        with pytest.raises(PagepoolError, match="beyond the 4 extents"):
            client.record(NAME, digest, [one], {one: [4]})


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"objects": [TOOL.hex()], "extents": 5}, 400),
        ({"objects": [TOOL.hex()], "extents": {TOOL.hex(): [0]}}, 400),
        ({"objects": [TOOL.hex()], "extents": {"x": "0"}}, 400),
        ({"objects": [TOOL.hex()], "extents": {TOOL.hex(): "0-"}}, 400),
        ({"objects": [TOOL.hex()], "extents": {TOOL.hex(): "1"}}, 400),
        ({"objects": [TOOL.hex()], "extents": {TOOL.hex(): "0,0"}}, 400),
        ({"objects": [TOOL.hex()], "extents": {TOOL.hex(): "0-999999999"}}, 400),
        ({"objects": [TOOL.hex()], "extents": {f"{number:064x}": "0" for number in range(16_385)}}, 413),
        ({"objects": [TOOL.hex()], "extents": {LIBC.hex(): "7"}}, 200),
        ({"objects": [TOOL.hex()], "extents": {f"blake3:{TOOL.hex()}": "0"}}, 200),
        ({"objects": [TOOL.hex()], "extents": None}, 200),
        ({}, 400),
        ({"objects": 5}, 400),
        ({"objects": [5]}, 400),
        ({"objects": ["x"]}, 400),
        ([], 400),
        ({"objects": ["0" * 64] * 16_385}, 413),
        ({"objects": ["0" * 64]}, 404),
        ({"objects": [f"blake3:{TOOL.hex()}", LIBC.hex()]}, 200),
        ({"objects": []}, 200),
    ],
)
def test_what_is_recorded_is_checked(server: ObjectService, body: Any, status: int) -> None:
    tree = server.image(NAME, FILES)
    assert httpx.post(url(server, tree), json=body, timeout=30).status_code == status
    assert httpx.get(url(server, tree)).status_code == (200 if status == 200 else 404)


def test_similar_is_zero_or_one(server: ObjectService) -> None:
    tree = server.image(NAME, FILES)
    assert httpx.get(url(server, tree), params={"similar": "yes"}).status_code == 400
    answer = httpx.get(url(server, tree), params={"similar": "0"})
    assert answer.json()["errors"][0]["code"] == "PROFILE_UNKNOWN"


def test_a_profile_says_which_images_it_is_of(http: httpx.Client) -> None:
    """And it is deleted also when they are gone. The fixture's service has several workers: they share the files."""
    tree, image = make(http, NAME, FILES)
    for _ in range(10):
        answer = http.post(f"{tree}/profile", json={"objects": [TOOL.hex()]}, headers={"Connection": "close"})
        assert answer.status_code == 200
    assert answer.json() == {"starts": 10, "objects": 1}
    (listed,) = http.get(f"/v1/{NAME}/profiles").json()["profiles"]
    assert (listed["images"], listed["starts"]) == ([image], 10)
    assert take(http, tree).status_code == 201
    assert http.delete(f"/v2/{NAME}/manifests/{image}").status_code == 202
    assert http.get(f"{tree}/profile").json()["objects"] == [TOOL.hex()]
    assert http.get(f"/v1/{NAME}/profiles").json()["profiles"][0]["images"] == []
    assert http.delete(f"{tree}/profile").status_code == 204
    assert http.delete(f"{tree}/profile").status_code == 404
