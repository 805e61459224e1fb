"""What one request may take, of memory, time and threads, whatever was pushed."""

from __future__ import annotations

import asyncio
import fcntl
import gzip
import json
import os
import threading
import time
from collections import Counter
from typing import IO, TYPE_CHECKING, Any

import httpx
import pytest

from pagepool.digest import Digest
from pagepool.errors import ImageInvalidError, LimitError, ManifestUnknownError
from pagepool.oci import MAX_INDEX_DEPTH, Index, encode_index, encode_manifest, parse_manifest
from pagepool.oci.mediatypes import OCI_CONFIG, OCI_LAYER, OCI_LAYER_GZIP
from pagepool_service import images, statistics, trees
from pagepool_service.app import create_app
from pagepool_service.images import describe_tag, resolve_image, walk_documents
from pagepool_service.routes import images as routes
from pagepool_service.settings import Settings
from pagepool_service.statistics import Statistics, collect
from pagepool_service.store.listings import Listings
from pagepool_service.store.registry import Registry
from pagepool_service.store.store import Store
from pagepool_service.trees import Trees
from pagepool_service.uploadfiles import SessionLimit, TooManyUploadsError, count_sessions, sweep
from pagepool_service.uploads import Uploads
from tests.store.helpers import gzipped, ingest_all, make_tar, noise, push
from tests.store.samples import descriptor, put_index

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence
    from pathlib import Path

    from pagepool.oci import Manifest
    from pagepool_service.store.catalogue import StoredManifest
    from pagepool_service.store.schema import LayerRecord

COMMON = {"common": noise(5000, "common")}
BASE = make_tar({**COMMON, "base": noise(3000, "base")})
ONE = make_tar({"one": noise(1000, "one"), "copy": COMMON["common"]})
TWO = make_tar({**COMMON, "two": noise(2000, "two"), "again": noise(2000, "two")})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A store of its own."""
    with Store.open(tmp_path / "data") as opened:
        yield opened


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each manifest is read."""
    counted: Counter[str] = Counter()
    real = Registry.manifest

    def count(self: Registry, repository: str, reference: Digest | str) -> StoredManifest:
        counted[str(reference)] += 1
        return real(self, repository, reference)

    monkeypatch.setattr(Registry, "manifest", count)
    return counted


def push_image(store: Store, repository: str, tag: str, layers: list[tuple[bytes, str]]) -> Manifest:
    """Push an image, with a configuration that its layers agree with."""
    plain = [gzip.decompress(blob) if media_type == OCI_LAYER_GZIP else blob for blob, media_type in layers]
    rootfs = {"type": "layers", "diff_ids": [str(Digest.of(tar)) for tar in plain]}
    config = json.dumps({"architecture": "amd64", "os": "linux", "author": tag, "rootfs": rootfs}).encode()
    for blob in (config, *(blob for blob, _ in layers)):
        push(store, blob, repository=repository)
    manifest = encode_manifest(descriptor(config, OCI_CONFIG), [descriptor(*layer) for layer in layers])
    store.registry.put_manifest(repository, Digest.of(manifest.raw), manifest, [tag])
    return manifest


def nested(store: Store, inner: Manifest | Index, depth: int) -> Index:
    """Indexes in indexes, each of which lists the one below many times."""
    for _ in range(depth):
        index = encode_index([inner.descriptor] * 50)
        store.registry.put_manifest("a", Digest.of(index.raw), index, ["deep"])
        inner = index
    assert isinstance(inner, Index)
    return inner


class _Transport(httpx.ASGITransport):
    """Reads the names of headers whatever their case, as everybody does to whom they come by a connection."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        answer = await super().handle_async_request(request)
        headers = [(bytes(name).lower(), value) for name, value in answer.headers.raw]
        return httpx.Response(answer.status_code, headers=headers, stream=answer.stream)


def serve(store: Store, talk: Callable[[httpx.AsyncClient], Awaitable[None]], **options: int) -> None:
    """Run the application of one worker in this process, and talk to it."""

    async def run() -> None:
        app = create_app(Settings(store.data, cache_bytes=0, **options), store)  # type: ignore[arg-type]
        transport = _Transport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=30) as http:
            await talk(http)

    asyncio.run(run())


def test_each_document_is_read_once(store: Store, reads: Counter[str]) -> None:
    """Eight indexes deep, each with the next one fifty times, would be 50^8 paths."""
    manifest = push_image(store, "a", "1", [(ONE, OCI_LAYER)])
    top = nested(store, manifest, MAX_INDEX_DEPTH)
    ingest_all(store)
    reads.clear()
    tagged = {image.tag: image for image in store.registry.listings.images(10)[0]}
    entry = describe_tag(store, tagged["deep"])
    assert (entry["digest"], entry["state"]) == (str(Digest.of(top.raw)), "ready")
    assert entry["size"] == describe_tag(store, tagged["1"])["size"]
    assert set(reads.values()) <= {1, 2}
    figures = {image["tag"]: image for image in collect(store)["images"]}
    assert figures["deep"]["layers"] == 1


def test_indexes_in_indexes_have_a_limit(store: Store, reads: Counter[str]) -> None:
    """What is behind more of them is an error that names the first, and is looked for no further."""
    manifest = push_image(store, "a", "1", [(ONE, OCI_LAYER)])
    last = nested(store, manifest, MAX_INDEX_DEPTH)
    ingest_all(store)
    assert resolve_image(store, "a", "deep").digest == Digest.of(manifest.raw)
    top = nested(store, last, 30)
    reads.clear()
    with pytest.raises(ImageInvalidError, match="indexes are in one another") as caught:
        resolve_image(store, "a", "deep")
    assert caught.value.value == str(Digest.of(top.raw))
    assert reads.total() == MAX_INDEX_DEPTH + 1
    tagged = {image.tag: image for image in store.registry.listings.images(10)[0]}
    assert describe_tag(store, tagged["deep"])["state"] == "unmountable"


def test_index_of_too_many(store: Store, reads: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Is looked at as far as the bounds say; what was deleted is left out."""
    pushed = [push_image(store, "a", f"{number}", [(ONE, OCI_LAYER)]) for number in range(6)]
    index = put_index(store, "a", "all", pushed)
    digest = Digest.of(index.raw)
    store.registry.delete_manifest("a", Digest.of(pushed[1].raw))
    monkeypatch.setattr(images, "MAX_DOCUMENTS", 4)
    reads.clear()
    found = [found for found, _ in walk_documents(store, "a", digest)]
    assert found == [digest, Digest.of(pushed[0].raw), Digest.of(pushed[2].raw)]
    assert reads.total() == 4
    monkeypatch.setattr(images, "MAX_DOCUMENT_BYTES", len(index.raw) + 1)
    assert len(list(walk_documents(store, "a", digest))) == 2
    with pytest.raises(ManifestUnknownError):
        next(walk_documents(store, "a", Digest.of(pushed[1].raw)))


@pytest.mark.parametrize("bound", ["_LARGEST_PAGE", "_LONGEST_PAGE_S"])
def test_pages_of_images_end_early(store: Store, monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    """With at least one image each, and all of them come in the end."""
    for number in range(5):
        push_image(store, "a", f"{number}", [(ONE, OCI_LAYER)])
    monkeypatch.setattr(routes, bound, 0)
    found: list[str] = []

    async def talk(http: httpx.AsyncClient) -> None:
        url = "/v1/images"
        while url:
            answer = await http.get(url)
            found.extend(image["tag"] for image in answer.json()["images"])
            assert ("next" in answer.json()) == ("link" in answer.headers)
            url = answer.headers.get("link", "").partition(">")[0].strip("<")

    serve(store, talk)
    assert found == ["0", "1", "2", "3", "4"]


def test_tag_that_is_deleted_meanwhile(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is not on the page."""
    kept = [push_image(store, "a", tag, [(ONE, OCI_LAYER)]) for tag in "xyz"]
    real = Listings.images

    def list_and_delete(self: Listings, *arguments: Any) -> object:
        found = real(self, *arguments)
        store.registry.delete_manifest("a", Digest.of(kept[1].raw))
        return found

    monkeypatch.setattr(Listings, "images", list_and_delete)

    async def talk(http: httpx.AsyncClient) -> None:
        assert [image["tag"] for image in (await http.get("/v1/images")).json()["images"]] == ["x", "z"]

    serve(store, talk)


def test_long_date(store: Store) -> None:
    """Is cut to what a date may have."""
    config = json.dumps({"created": "9" * 100_000, "rootfs": {"type": "layers", "diff_ids": []}}).encode()
    push(store, config, repository="a")
    entry = {"mediaType": "application/vnd.oci.image.config.v1+json", "size": len(config)}
    raw = json.dumps({"schemaVersion": 2, "config": {**entry, "digest": str(Digest.of(config))}, "layers": []}).encode()
    store.registry.put_manifest("a", Digest.of(raw), parse_manifest(raw), ["odd"])

    async def talk(http: httpx.AsyncClient) -> None:
        (image,) = (await http.get("/v1/images")).json()["images"]
        assert image["created"] == "9" * 64

    serve(store, talk)


# -- statistics ------------------------------------------------------------------------------------------------


def fill(store: Store) -> dict[str, tuple[int, int]]:
    """Push images; the unique and shared bytes of each."""
    push_image(store, "a", "one", [(BASE, OCI_LAYER), (ONE, OCI_LAYER)])
    push_image(store, "a", "two", [(gzipped(TWO), OCI_LAYER_GZIP)])
    push_image(store, "b", "same", [(gzipped(TWO), OCI_LAYER_GZIP)])
    alone = make_tar({"alone": noise(700, "alone")})
    push_image(store, "b", "alone", [(alone, OCI_LAYER)])
    ingest_all(store)
    return {"one": (9000, 5000), "two": (7000, 7000), "same": (7000, 7000), "alone": (700, 0)}


def test_sharing(store: Store) -> None:
    """Counts each file once per image, whatever layers have it."""
    expected = fill(store)
    found = collect(store)
    figures = {image["tag"]: (image["unique_bytes"], image["shared_bytes"]) for image in found["images"]}
    assert figures == expected
    assert "sharing_left_off" not in found


@pytest.mark.parametrize(("bound", "most"), [("MOST_FILES", 2), ("MOST_FILES", 4), ("MOST_STEPS", 5)])
def test_sharing_of_too_many_files(store: Store, monkeypatch: pytest.MonkeyPatch, bound: str, most: int) -> None:
    """Is left out, and that is said."""
    fill(store)
    monkeypatch.setattr(statistics, bound, most)
    found = collect(store)
    assert found["sharing_left_off"] is True
    assert all("unique_bytes" not in image and image["logical_bytes"] for image in found["images"])


def test_statistics_are_computed_once_for_all_who_wait(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """And again once something has changed."""
    calls = 0

    def slow(store: Store) -> dict[str, int]:
        nonlocal calls
        calls += 1
        push(store, b"%d" % calls)  # the version changes all the time
        time.sleep(0.2)
        return {"calls": calls}

    monkeypatch.setattr(statistics, "collect", slow)
    figures = Statistics(store)
    threads = [threading.Thread(target=figures.collect, args=(time.monotonic(),)) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls <= 2
    assert figures.collect(time.monotonic())["calls"] == calls
    monkeypatch.setattr(statistics, "collect", lambda _: {"calls": -1})
    assert figures.collect(time.monotonic()) == figures.collect(time.monotonic()) == {"calls": -1}


# -- trees -----------------------------------------------------------------------------------------------------


def test_trees_are_kept_for_the_next_page(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as the bound allows, the last one in any case."""
    fill(store)
    views = [resolve_image(store, name, tag) for name, tag in (("a", "one"), ("a", "two"), ("b", "alone"))]
    kept = Trees(store)
    assert kept.kept(views[0]) is None
    tree = kept.tree(views[0])
    assert kept.kept(views[0]) is kept.tree(views[0]) is tree
    monkeypatch.setattr(trees, "_NODES_KEPT", tree.size + 2)
    kept.tree(views[2])
    kept.kept(views[0])
    kept.tree(views[1])
    assert [kept.kept(view) is not None for view in views] == [False, True, False]
    monkeypatch.setattr(trees, "MAX_MEMBERS", 3)
    with pytest.raises(LimitError):
        kept.kept(views[0])


def test_merging_does_not_keep_pulls_waiting(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor pages of a tree that is there."""
    fill(store)
    go_on = threading.Event()
    real = Trees._merge
    blob = Digest.of(BASE)

    def slow(self: Trees, layers: Sequence[LayerRecord], step: Callable[[int], object]) -> object:
        go_on.wait(60)
        return real(self, layers, step)

    async def talk(http: httpx.AsyncClient) -> None:
        assert (await http.get("/v1/b/images/alone/files")).status_code == 200
        monkeypatch.setattr(Trees, "_merge", slow)
        waiting = [asyncio.create_task(http.get("/v1/a/images/one/files")) for _ in range(40)]
        await asyncio.sleep(0.1)
        try:
            assert (await http.get(f"/v2/a/blobs/{blob}")).content == BASE
            assert (await http.get("/v1/b/images/alone/files")).status_code == 200
            assert not any(task.done() for task in waiting)
        finally:
            go_on.set()
        assert {answer.status_code for answer in await asyncio.gather(*waiting)} == {200}

    serve(store, talk)


# -- writes ----------------------------------------------------------------------------------------------------


def test_writers_do_not_keep_readers_waiting(store: Store) -> None:
    """Though more of them wait for the writer lock than there are threads."""
    fill(store)
    held, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with store.env.write():
            held.set()
            go_on.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(60)

    async def talk(http: httpx.AsyncClient) -> None:
        begun = [await http.post("/v2/a/blobs/uploads/") for _ in range(10)]
        waiting = [asyncio.create_task(http.delete(f"/v2/a/manifests/{number}")) for number in range(40)]
        for answer in begun:
            data = answer.headers["location"].encode()
            url = f"{answer.headers['location']}?digest={Digest.of(data)}"
            waiting.append(asyncio.create_task(http.put(url, content=data)))
        await asyncio.sleep(0.2)
        try:
            assert (await http.get(f"/v2/a/blobs/{Digest.of(BASE)}")).content == BASE
            assert (await http.get("/v2/a/manifests/one")).status_code == 200
            assert not any(task.done() for task in waiting)
        finally:
            go_on.set()
        assert Counter(answer.status_code for answer in await asyncio.gather(*waiting)) == {404: 40, 201: 10}

    try:
        serve(store, talk)
    finally:
        go_on.set()
        holder.join()


# -- sessions --------------------------------------------------------------------------------------------------


def test_too_many_uploads(store: Store) -> None:
    """429, until one has ended; pushes in one request count while they last."""

    async def talk(http: httpx.AsyncClient) -> None:
        begun = [await http.post("/v2/a/blobs/uploads/") for _ in range(2)]
        digest = Digest.of(b"x")
        for params in ({}, {"digest": str(digest)}):
            refused = await http.post("/v2/a/blobs/uploads/", params=params, content=b"x")
            (error,) = refused.json()["errors"]
            assert (refused.status_code, error["code"]) == (429, "TOOMANYREQUESTS")
            assert "there may be 2" in error["message"]
            assert refused.headers["retry-after"]
        first, second = (answer.headers["location"] for answer in begun)
        assert (await http.put(f"{first}?digest={digest}", content=b"x")).status_code == 201
        for _ in range(5):
            answer = await http.post("/v2/a/blobs/uploads/", params={"digest": str(digest)}, content=b"x")
            assert answer.status_code == 201
        assert (await http.delete(second)).status_code == 204
        assert [(await http.post("/v2/a/blobs/uploads/")).status_code for _ in range(3)] == [202, 202, 429]

    serve(store, talk, max_uploads=2)
    assert count_sessions(store.uploads) == 2


def test_sessions_of_other_processes_count(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once a second; and 0 is no limit."""
    limit = SessionLimit(store.uploads, 3)
    limit.take()
    others = Uploads(store, max_size=1)
    sessions = [others.begin("a") for _ in range(3)]
    limit.take()
    monkeypatch.setattr("pagepool_service.uploadfiles._COUNT_EVERY_S", 0)
    with pytest.raises(TooManyUploadsError):
        limit.take()
    others.cancel("a", sessions[0].id)
    limit.take()
    for _ in range(5):
        SessionLimit(store.uploads, 0).take()
    assert count_sessions(store.uploads / "nowhere") == 0


def test_sweep_looks_again_under_the_lock(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that someone went on with after the first look stays."""
    uploads = Uploads(store, max_size=10)
    session = uploads.begin("a")
    path = store.uploads / session.id
    for file in store.uploads.iterdir():
        os.utime(file, (0, 0))
    real = fcntl.flock

    def write_and_lock(file: IO[bytes], how: int) -> None:
        os.utime(path)
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", write_and_lock)
    assert sweep(store.uploads, 10) == 0
    assert uploads.size("a", session.id) == 0
