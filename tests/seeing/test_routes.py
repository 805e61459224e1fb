"""What an operator asks over HTTP: figures that add up, by hand or by what other routes say."""

from __future__ import annotations

import os
import random
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.service.pushes import begin_upload, image_parts, push_blob, push_image, put_manifest, tar_layer
from tests.service.test_images_api import settled
from tests.support.server import Service, running_service

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

EXTENT = 128 << 10
_RANDOM = random.Random(5)
LARGE = _RANDOM.randbytes(2 * EXTENT + 5000)  # three extents, of which CHANGED has two
CHANGED = _RANDOM.randbytes(EXTENT) + LARGE[EXTENT:]
SMALL, OTHER = b"small\n", b"another one\n"
ONE = {"usr/large": LARGE, "etc/small": SMALL, "etc/copy": SMALL, "empty": b""}
TWO = {"opt/large": CHANGED, "etc/small": SMALL, "etc/other": OTHER}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Two images that overlap, one that shares nothing, one that cannot be mounted, and an open upload."""
    with running_service(tmp_path_factory.mktemp("seeing") / "data", "--workers", "2") as running:
        with httpx.Client(base_url=running.url, timeout=30) as http:
            push_image(http, "see/one", "latest", ONE)
            push_image(http, "see/one", "again", ONE)
            push_image(http, "see/two", "latest", TWO)
            push_image(http, "see/three", "latest", {"third": b"third\n"})
            push_broken(http)
            for name in ("one", "two", "three"):
                settled(http, f"/v1/see/{name}/images/latest")
                assert http.get(f"/v1/see/{name}/images/latest/tree").status_code == 200
            assert http.patch(begin_upload(http, "see/coming"), content=b"u" * 70_000).status_code == 202
        yield running


@pytest.fixture
def http(service: Service) -> Iterator[httpx.Client]:
    """A client of it."""
    with httpx.Client(base_url=service.url, timeout=30) as client:
        yield client


def push_broken(http: httpx.Client) -> None:
    manifest, config, layer = image_parts(tar=tar_layer({"../outside": b"x"}))
    for blob in (config, layer):
        push_blob(http, "see/broken", blob)
    put_manifest(http, "see/broken", "latest", manifest)


def get(http: httpx.Client, url: str) -> dict[str, Any]:
    answer = http.get(url)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def test_what_an_image_shares(http: httpx.Client) -> None:
    """By object the one small file; by extent also two of three pieces of the large one."""
    found = get(http, "/v1/see/one/images/latest/sharing")
    assert (found["files"], found["objects"], found["extents"]) == (4, 2, 4)
    assert found["file_bytes"] == len(LARGE) + 2 * len(SMALL)
    assert found["object_bytes"] == found["unique_bytes"] == len(LARGE) + len(SMALL)
    (other,) = found["neighbours"]
    assert other["images"] == [{"name": "see/two", "tag": "latest"}]
    assert other["object_bytes"] == len(SMALL)
    assert other["extent_bytes"] == len(SMALL) + EXTENT + 5000
    assert other["ratio"] == round(other["extent_bytes"] / found["unique_bytes"], 4)
    assert other["unique_bytes"] == len(CHANGED) + len(SMALL) + len(OTHER)
    assert (found["neighbours_left_off"], found["not_compared"]) == (0, 1)
    paths = {(file["path"], file["size"], file["others"]) for file in found["largest"]}
    assert paths == {
        ("/usr/large", len(LARGE), 0),
        ("/etc/small", len(SMALL), 1),
        ("/etc/copy", len(SMALL), 1),
        ("/empty", 0, 0),
    }
    assert found["largest"][0]["path"] == "/usr/large"


def test_pairs(http: httpx.Client) -> None:
    """Two tags of the same content are one image; what is not ready is left off."""
    found = get(http, "/v1/sharing")
    names = [image["images"][0]["name"] for image in found["images"]]
    assert sorted(names) == ["see/one", "see/three", "see/two"]
    one, two, three = (names.index(f"see/{name}") for name in ("one", "two", "three"))
    assert found["images"][one]["tags"] == 2
    extents, objects = found["extent_bytes"], found["object_bytes"]
    assert extents[one][two] == extents[two][one] == len(SMALL) + EXTENT + 5000
    assert objects[one][two] == objects[two][one] == len(SMALL)
    assert extents[one][three] == objects[one][three] == 0
    assert extents[one][one] == found["images"][one]["unique_bytes"] == len(LARGE) + len(SMALL)
    assert found["left_off"] == 1
    assert len(get(http, "/v1/sharing?n=1")["images"]) == 1


def test_deleted_images_are_gone(http: httpx.Client) -> None:
    """From the next answer on."""
    push_image(http, "see/brief", "latest", {"brief": b"brief\n", "etc/other": OTHER})
    settled(http, "/v1/see/brief/images/latest")
    assert http.get("/v1/see/brief/images/latest/tree").status_code == 200
    assert len(get(http, "/v1/sharing")["images"]) == 4
    assert len(get(http, "/v1/see/two/images/latest/sharing")["neighbours"]) == 2
    assert http.delete("/v2/see/brief/manifests/latest").status_code == 202
    assert len(get(http, "/v1/sharing")["images"]) == 3
    assert len(get(http, "/v1/see/two/images/latest/sharing")["neighbours"]) == 1


def test_overview_says_what_other_routes_say(http: httpx.Client) -> None:
    """Of store, cache and processes."""
    tree = get(http, "/v1/see/one/images/latest/tree")["tree"]
    entries = get(http, "/v1/see/one/images/latest/files?recursive=true")["entries"]
    for entry in entries:
        if entry["object"]:
            http.get(f"/v1/see/one/trees/{tree}/objects/{entry['object']}")
    deadline = time.monotonic() + 30
    while True:  # figures that take long may be some seconds old
        found, stats, cache = (get(http, f"/v1/{name}") for name in ("overview", "stats", "cache"))
        if found["cache"]["saved_bytes"] == cache["sharing"]["saved_bytes"] > 0:
            break
        assert time.monotonic() < deadline, (found["cache"], cache)
        time.sleep(0.2)
    same = ("layers", "unique_bytes", "logical_bytes", "plain_bytes", "dedup_ratio", "stored_bytes", "images")
    assert {name: found["store"][name] for name in same} == {name: stats["total"][name] for name in same}
    for name in ("budget", "objects", "bytes", "evictions"):
        assert found["cache"][name] == cache[name]
    # LARGE is in one file; SMALL in two of one image and one of another.
    assert cache["sharing"]["saved_bytes"] == 2 * len(SMALL)
    names = {process["name"] for process in found["processes"] if process["up"] and process["resident_bytes"]}
    assert names >= {"worker 1", "worker 2", "maintenance 1", "pool keeper"}
    assert (found["uploads"]["open"], found["read_only"]) == (1, False)


def test_open_uploads(http: httpx.Client) -> None:
    """Without what one would need to go on with them."""
    answer = http.get("/v1/activity")
    found = answer.json()
    (upload,) = found["uploads"]
    assert (upload["repository"], upload["bytes"]) == ("see/coming", 70_000)
    assert set(upload) == {"repository", "bytes", "age_s", "idle_s"}
    assert found["uploads_left_off"] == 0


def test_jobs(tmp_path: Path) -> None:
    """One that is worked on, and those behind it; more than are asked for are counted."""
    with running_service(tmp_path / "data", "--ingest-processes", "1") as service:
        with httpx.Client(base_url=service.url, timeout=30) as http:
            noise = os.urandom(1 << 20)
            layers = [tar_layer({f"file{number}": noise * 4 + bytes([number])}) for number in range(4)]
            digests = {str(push_blob(http, "jobs", layer)) for layer in layers}
            found = get(http, "/v1/activity?n=2")
            seen = found["jobs"]
            assert len(seen) <= 2
            deadline = time.monotonic() + 60
            while get(http, "/v1/activity")["jobs"]:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        assert {job["blob"] for job in seen} <= digests
        assert {job["kind"] for job in seen} <= {"ingest", "settle"}
        assert {job["state"] for job in seen} <= {"running", "waiting"}
        assert found["jobs_left_off"] <= 6
        assert service.stop() == 0


def test_history_and_a_read_only_service(tmp_path: Path) -> None:
    """Samples survive a restart. Read-only, the service shows them and everything else, and writes none."""
    with running_service(tmp_path / "data", "--workers", "2") as service:
        first = wait_for_sample(service)
        assert first["fields"][0] == "time_s"
        for _ in range(20):
            assert httpx.get(f"{service.url}/healthz").status_code == 200
        deadline = time.monotonic() + 30
        while httpx.get(f"{service.url}/v1/overview").json()["requests"]["requests"] < 20:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    kept = (tmp_path / "data" / "history").read_bytes()
    with running_service(tmp_path / "data", "--read-only") as service:
        found = wait_for_sample(service)
        # One that came within the same ten seconds is in the place of the first.
        assert found["samples"][0][0] // 10 == first["samples"][0][0] // 10
        assert httpx.get(f"{service.url}/v1/overview").json()["read_only"]
        assert httpx.get(f"{service.url}/v1/activity").json()["jobs"] == []
        assert httpx.get(f"{service.url}/v1/sharing").json()["images"] == []
    assert (tmp_path / "data" / "history").read_bytes() == kept


def wait_for_sample(service: Service) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while True:
        found: dict[str, Any] = httpx.get(f"{service.url}/v1/history").json()
        if found["samples"]:
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("/v1/history?span=year", "span is hour or week"),
        ("/v1/history?points=1", "points is a number from 2 to 2016"),
        ("/v1/activity?n=0", "n is a number from 1 to 1000"),
        ("/v1/activity?n=-1", "n is a number"),
        ("/v1/activity?n=٣", "n is a number"),
        ("/v1/sharing?n=25", "n is a number from 1 to 24"),
        ("/v1/see/one/images/latest/sharing?n=1e3", "n is a number from 1 to 100"),
        ("/v1/see/one/images/latest/sharing?files=51", "files is a number from 0 to 50"),
        ("/v1/see/one/images/latest/sharing?platform=x", "platform"),
    ],
)
def test_bad_queries(http: httpx.Client, url: str, words: str) -> None:
    """Are refused with what would be right."""
    answer = http.get(url)
    assert answer.status_code == 400
    assert words in answer.json()["errors"][0]["message"]


def test_images_that_cannot_be_compared(http: httpx.Client) -> None:
    """One that is not there, one that cannot be mounted."""
    assert http.get("/v1/see/none/images/latest/sharing").status_code == 404
    answer = http.get("/v1/see/broken/images/latest/sharing")
    assert answer.status_code == 422
    assert "outside" in answer.json()["errors"][0]["message"]
