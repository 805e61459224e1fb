"""Page reads: what the object route answers, from the pool and from the store, to every form of request."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import httpx
import pytest

from pagepool.digest import Digest, blake3_raw
from pagepool.extents import EXTENT_SIZE
from tests.service.multipart import parts_of
from tests.store.helpers import noise, text
from tests.support.objects import ObjectService, object_service

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pagepool.image.treefile import TreeFile

NAME = "team/objects/app"
SMALL = text(10_000, 1)
LARGE = noise(3 * EXTENT_SIZE + 777, 2)
HUGE = noise(2_500_000, 3) + bytes(1_000_000)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectService]:
    with pytest.MonkeyPatch.context() as patch, object_service(tmp_path_factory.mktemp("objects") / "data") as running:
        # A pool that was full in one test is asked again in the next.
        patch.setattr("pagepool.content.cache._PAUSE_S", 0.0)
        yield running


@pytest.fixture(scope="module")
def tree(service: ObjectService) -> TreeFile:
    return service.image(NAME, {"small": SMALL, "large": LARGE, "huge": HUGE, "one": b"1"})


@pytest.fixture
def http(service: ObjectService) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, timeout=30) as client:
        yield client


def url(tree: TreeFile, content: bytes, name: str = NAME) -> str:
    return f"/v1/{name}/trees/{Digest('blake3', tree.digest)}/objects/{Digest('blake3', blake3_raw(content))}"


@pytest.fixture(params=["hot", "cold tree", "no room in the pool"])
def way(request: pytest.FixtureRequest, service: ObjectService) -> Iterator[str]:
    """The ways an answer can take: every one has to be the same."""
    service.trees.cold = request.param != "hot"
    if request.param == "no room in the pool":
        service.pool.full = True
        service.pool.objects.clear()
        for _ in range(4):
            service.cache.tick()
    yield request.param
    service.trees.cold = service.pool.full = False


@pytest.mark.parametrize("content", [SMALL, LARGE, HUGE, b"1"], ids=["small", "large", "huge", "one"])
def test_an_object_is_read_whole(http: httpx.Client, tree: TreeFile, content: bytes, way: str) -> None:
    for _ in range(2):
        answer = http.get(url(tree, content))
        assert (answer.status_code, way) == (200, way)
        assert answer.content == content
        assert answer.headers["content-length"] == str(len(content))
        assert answer.headers["content-type"] == "application/octet-stream"
        assert answer.headers["accept-ranges"] == "bytes"
        assert answer.headers["cache-control"] == "private, max-age=31536000, immutable"
        assert answer.headers["etag"] == f'"{Digest("blake3", blake3_raw(content))}"'
        assert "transfer-encoding" not in answer.headers


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    ("wanted", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=4096-8191", 4096, 8192),
        ("bytes=131071-131072", 131071, 131073),
        ("bytes=393215-", 393215, len(LARGE)),
        ("bytes=0-99999999999", 0, len(LARGE)),
        ("bytes=-1", len(LARGE) - 1, len(LARGE)),
        ("bytes=-99999999", 0, len(LARGE)),
        ("BYTES = 5 - 9", 5, 10),
        ("bytes=5-9, 7-12,13-14", 5, 15),
        ("bytes=5-9,999999999-", 5, 10),
    ],
)
def test_a_range_is_answered(http: httpx.Client, tree: TreeFile, wanted: str, start: int, end: int) -> None:
    answer = http.get(url(tree, LARGE), headers={"Range": wanted})
    assert answer.status_code == 206
    assert answer.content == LARGE[start:end]
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{len(LARGE)}"
    assert answer.headers["content-length"] == str(end - start)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    "wanted", ["lines=1-2", "bytes=a-b", "bytes=", "bytes", "bytes=-", "bytes=1-2-3", "bytes=1-2,x"]
)
def test_a_range_that_cannot_be_read_is_ignored(http: httpx.Client, tree: TreeFile, wanted: str) -> None:
    answer = http.get(url(tree, SMALL), headers={"Range": wanted})
    assert (answer.status_code, answer.content) == (200, SMALL)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    "wanted",
    [f"bytes={len(SMALL)}-", "bytes=-0", "bytes=20000-30000,40000-", "bytes=9-3", "bytes=" + ",".join(["0-0"] * 257)],
)
def test_a_range_that_cannot_be_satisfied_is_416(http: httpx.Client, tree: TreeFile, wanted: str) -> None:
    answer = http.get(url(tree, SMALL), headers={"Range": wanted})
    assert answer.status_code == 416
    assert answer.headers["content-range"] == f"bytes */{len(SMALL)}"
    assert answer.json()["errors"][0]["code"] == "RANGE_INVALID"


@pytest.mark.usefixtures("way")
def test_several_ranges_are_parts(http: httpx.Client, tree: TreeFile) -> None:
    answer = http.get(url(tree, LARGE), headers={"Range": "bytes=300000-300009,0-4095, 131000-132000,-5,4000-5000"})
    assert answer.status_code == 206
    assert answer.headers["content-type"].startswith("multipart/byteranges; boundary=")
    assert "content-range" not in answer.headers
    assert answer.headers["content-length"] == str(len(answer.content))
    size = len(LARGE)
    spans = [(300000, 300010), (0, 5001), (131000, 132001), (size - 5, size)]
    raw = answer.content
    boundary = answer.headers["content-type"].partition("boundary=")[2].encode()
    pieces = raw.split(b"\r\n--" + boundary)
    assert pieces[0] == b""
    assert pieces[-1] == b"--\r\n"
    for (start, end), piece in zip(spans, pieces[1:-1], strict=True):
        head, _, body = piece.partition(b"\r\n\r\n")
        assert f"Content-Range: bytes {start}-{end - 1}/{size}".encode() in head
        assert body == LARGE[start:end]
    assert [name for name, _ in parts_of(answer)] == [f"bytes {start}-{end - 1}/{size}" for start, end in spans]


@pytest.mark.usefixtures("way")
def test_random_ranges_are_what_a_slice_is(http: httpx.Client, tree: TreeFile) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    randomness = random.Random(seed)
    for _ in range(30):
        start = randomness.randrange(len(HUGE))
        end = min(len(HUGE), start + randomness.choice((1, 4096, 200_000, 2_000_000)))
        answer = http.get(url(tree, HUGE), headers={"Range": f"bytes={start}-{end - 1}"})
        assert (answer.status_code, answer.content == HUGE[start:end]) == (206, True)


@pytest.mark.usefixtures("way")
def test_conditions(http: httpx.Client, tree: TreeFile) -> None:
    where, etag = url(tree, SMALL), f'"{Digest("blake3", blake3_raw(SMALL))}"'
    part = {"Range": "bytes=1-3"}
    cases = [
        ({"If-None-Match": etag}, 304, b""),
        ({"If-None-Match": f'"x", W/{etag}'}, 304, b""),
        ({"If-None-Match": "*"}, 304, b""),
        ({"If-None-Match": '"x"', **part}, 206, SMALL[1:4]),
        ({"If-None-Match": etag, **part}, 304, b""),
        ({"If-Range": etag, **part}, 206, SMALL[1:4]),
        ({"If-Range": f"W/{etag}", **part}, 200, SMALL),
        ({"If-Range": '"x"', **part}, 200, SMALL),
        ({"If-Range": '"x"', "Range": "bytes=99999999-"}, 200, SMALL),
        ({"If-Range": "Sat, 29 Oct 1994 19:43:31 GMT", **part}, 200, SMALL),
        ({"If-Match": etag}, 200, SMALL),
        ({"If-Match": "*"}, 200, SMALL),
        ({"If-Match": f"W/{etag}"}, 412, b""),
        ({"If-Match": '"x"', "If-None-Match": etag}, 412, b""),
    ]
    for headers, status, body in cases:
        answer = http.get(where, headers=headers)
        assert (headers, answer.status_code, answer.content) == (headers, status, body)
        assert answer.headers["etag"] == etag


@pytest.mark.usefixtures("way")
def test_head_is_get_without_a_body_and_without_ranges(http: httpx.Client, tree: TreeFile) -> None:
    for headers in ({}, {"Range": "bytes=0-1"}, {"Range": "bytes=99999999-"}):
        answer = http.head(url(tree, LARGE), headers=headers)
        assert (answer.status_code, answer.content) == (200, b"")
        assert answer.headers["content-length"] == str(len(LARGE))
    assert http.head(url(tree, LARGE), headers={"If-None-Match": "*"}).status_code == 304
    assert http.head(url(tree, b"nowhere")).status_code == 404


@pytest.mark.usefixtures("way")
def test_what_is_elsewhere_cannot_be_told_from_what_is_nowhere(service: ObjectService, http: httpx.Client) -> None:
    public, private = text(5000, "public"), text(5000, "private")
    mine = service.image("mine/app", {"public": public})
    theirs = service.image("theirs/app", {"public": public, "private": private})
    nowhere = text(5000, "nowhere")
    for content in (private, nowhere):
        answer = http.get(url(mine, content, "mine/app"))
        assert answer.status_code == 404
        name = str(Digest("blake3", blake3_raw(content)))
        error = answer.json()["errors"][0]
        assert error == {"code": "OBJECT_UNKNOWN", "message": f"object {name} is unknown"}
    for tree in (theirs.digest, blake3_raw(b"nothing")):
        digest = Digest("blake3", tree)
        answer = http.get(f"/v1/mine/app/trees/{digest}/objects/{Digest('blake3', blake3_raw(public))}")
        assert answer.status_code == 404
        assert answer.json()["errors"][0] == {"code": "TREE_UNKNOWN", "message": f"tree {digest} is unknown"}
    assert http.get(url(theirs, private, "theirs/app")).content == private


def test_a_digest_that_is_none_is_400(http: httpx.Client, tree: TreeFile) -> None:
    good = url(tree, SMALL)
    head, _, name = good.rpartition("/")
    for wrong in ("x", "sha256:" + "0" * 64, name.upper(), name[:-1], name + "0"):
        answer = http.get(f"{head}/{wrong}")
        assert (wrong, answer.status_code) == (wrong, 400)
        assert answer.json()["errors"][0]["code"] == "DIGEST_INVALID"
    assert http.get(good.replace("trees/blake3:", "trees/")).status_code == 400
    assert http.get(good.replace("objects/blake3:", "objects/")).content == SMALL, "as lists of files name it"
    assert http.delete(good).status_code == 405


def test_what_is_asked_for_again_is_not_read_again(service: ObjectService, http: httpx.Client) -> None:
    content = noise(5 * EXTENT_SIZE, "again")
    tree = service.image("again", {"file": content})
    service.pool.written.clear()
    for _ in range(2):
        answer = http.get(url(tree, content, "again"), headers={"Range": "bytes=131072-131080"})
        assert answer.content == content[131072:131081]
    assert service.pool.written == [(blake3_raw(content), 1)], "one extent, once"
    assert http.get(url(tree, content, "again")).content == content
    assert sorted(service.pool.written) == [(blake3_raw(content), number) for number in range(5)]
