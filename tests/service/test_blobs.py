"""Blobs over HTTP: what goes beyond the contract that every registry keeps."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING

import pytest

from pagepool.digest import Digest
from pagepool.oci.mediatypes import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST
from tests.service.multipart import parts_of
from tests.service.pushes import begin_upload, descriptor, push_blob, put_manifest, tar_layer

if TYPE_CHECKING:
    import httpx


@pytest.mark.parametrize("algorithm", ["sha256", "sha512", "blake3"])
@pytest.mark.parametrize("size", [0, 10, 1 << 20])
def test_single_post(http: httpx.Client, algorithm: str, size: int) -> None:
    """A blob in one request, by any algorithm."""
    data = os.urandom(size)
    digest = Digest.of(data, algorithm)
    answer = http.post("/v2/one/post/blobs/uploads/", params={"digest": str(digest)}, content=data)
    assert (answer.status_code, answer.headers["docker-content-digest"]) == (201, str(digest))
    assert http.get(answer.headers["location"]).content == data


def test_whole_blobs_say_where_they_are(http: httpx.Client) -> None:
    """As an answer that leads elsewhere would: ollama takes the address of parts from there, and knows no other way."""
    digest = push_blob(http, "where", b"content")
    path = f"/v2/where/blobs/{digest}"
    whole = http.get(path)
    assert (whole.status_code, whole.headers.get("location")) == (200, path)
    part = http.get(path, headers={"Range": "bytes=0-3"})
    assert (part.status_code, "location" in part.headers) == (206, False)


def test_single_post_of_something_else_leaves_nothing(http: httpx.Client) -> None:
    """Neither a blob nor a session."""
    digest = Digest.of(b"expected")
    answer = http.post("/v2/one/wrong/blobs/uploads/", params={"digest": str(digest)}, content=b"sent")
    assert answer.status_code == 400
    assert answer.json()["errors"][0]["code"] == "DIGEST_INVALID"
    assert answer.json()["errors"][0]["detail"]["got"] == str(Digest.of(b"sent"))
    assert http.head(f"/v2/one/wrong/blobs/{digest}").status_code == 404
    assert http.head(f"/v2/one/wrong/blobs/{Digest.of(b'sent')}").status_code == 404


@pytest.mark.parametrize("bad", ["", "sha256", "sha256:", "sha256:zz", "md5:" + "0" * 32, "sha256:" + "A" * 64])
def test_bad_digests_are_named(http: httpx.Client, bad: str) -> None:
    """400, wherever they come."""
    for answer in (
        http.post("/v2/bad/digest/blobs/uploads/", params={"digest": bad}, content=b""),
        http.post("/v2/bad/digest/blobs/uploads/", params={"mount": bad}),
        http.put(begin_upload(http, "bad/digest"), params={"digest": bad}),
    ):
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (400, "DIGEST_INVALID")


@pytest.mark.parametrize("name", ["UPPER", "a//b", "-a", "a-", "a..b", "a/-", "a%00", "a b", "ä", "%2e%2e", "x" * 256])
def test_bad_names_are_refused(http: httpx.Client, name: str) -> None:
    """400 NAME_INVALID."""
    answer = http.post(f"/v2/{name}/blobs/uploads/")
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (400, "NAME_INVALID")


@pytest.mark.parametrize("name", ["a", "a/blobs/uploads", "a/manifests/b", "tags/list", "v2", "a__b", "a---b", "0/1.2"])
def test_names_that_look_like_routes(http: httpx.Client, name: str) -> None:
    """Are names like others."""
    digest = push_blob(http, name, name.encode())
    assert http.get(f"/v2/{name}/blobs/{digest}").content == name.encode()


@pytest.mark.parametrize(
    ("header", "status", "start", "end"),
    [
        ("bytes=0-", 206, 0, 100),
        ("bytes=99-99", 206, 99, 100),
        ("bytes=-1", 206, 99, 100),
        ("bytes=-1000", 206, 0, 100),
        ("bytes=10-1000000", 206, 10, 100),
        ("BYTES = 10 - 19", 206, 10, 20),
        ("bytes=100-", 416, 0, 0),
        ("bytes=-0", 416, 0, 0),
        ("bytes=50-40", 416, 0, 0),
        ("bytes=0-9,", 206, 0, 10),
        ("bytes=200-,5-6,-0", 206, 5, 7),
        ("bytes=100-,200-300", 416, 0, 0),
        ("bytes=0-60,40-99", 200, 0, 100),
        ("bytes=0-9,x", 200, 0, 100),
        ("bytes=" + ",".join(["0-0"] * 1025), 200, 0, 100),
        ("items=0-9", 200, 0, 100),
        ("bytes=-", 200, 0, 100),
        ("bytes=abc", 200, 0, 100),
        ("bytes=" + "9" * 40 + "-", 200, 0, 100),
    ],
)
def test_ranges(http: httpx.Client, header: str, status: int, start: int, end: int) -> None:
    """What is outside is 416; what cannot be read, overlaps or is too much is answered by all of the blob."""
    data = bytes(range(100))
    digest = push_blob(http, "ranges", data)
    answer = http.get(f"/v2/ranges/blobs/{digest}", headers={"Range": header})
    assert answer.status_code == status
    if status == 416:
        assert answer.headers["content-range"] == "bytes */100"
    else:
        assert answer.content == data[start:end]
        assert answer.headers["content-length"] == str(end - start)


def test_range_of_a_large_blob(http: httpx.Client) -> None:
    """Over extents and pieces, wherever its bytes lie by now."""
    data = os.urandom(5 << 20)
    digest = push_blob(http, "large", data)
    for start, end in ((0, 1), (131071, 131073), (1 << 20, 4 << 20), (len(data) - 1, len(data))):
        answer = http.get(f"/v2/large/blobs/{digest}", headers={"Range": f"bytes={start}-{end - 1}"})
        assert answer.content == data[start:end]


def read_layer(http: httpx.Client, repository: str, tar: bytes) -> None:
    """Wait until a plain layer that was pushed is rebuilt from its recipe: its bytes are kept nowhere else then."""
    rootfs = {"type": "layers", "diff_ids": [str(Digest.of(tar))]}
    config = json.dumps({"architecture": "amd64", "os": "linux", "rootfs": rootfs}).encode()
    push_blob(http, repository, config)
    layers = [descriptor(OCI_LAYER, tar)]
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(OCI_CONFIG, config),
        "layers": layers,
    }
    digest = put_manifest(http, repository, "1", json.dumps(manifest).encode())
    while (answer := http.get(f"/v1/{repository}/images/{digest}")).status_code == 202:
        time.sleep(0.02)
    assert answer.json()["state"] == "ready"


@pytest.mark.parametrize("place", ["spool", "frames", "recipe"])
def test_several_ranges_are_as_many_parts(http: httpx.Client, place: str) -> None:
    """However close they lie, and in the order in which they were asked for: podman counts them when it pulls parts."""
    data = (
        tar_layer({"f": os.urandom(300_000)})
        if place == "recipe"
        else os.urandom(5000 if place == "frames" else 300_000)
    )
    digest = push_blob(http, "parts", data)
    if place == "recipe":
        read_layer(http, "parts", data)
    url = f"/v2/parts/blobs/{digest}"
    for spans in (
        [(0, 10), (10, 20), (21, 22)],
        [(len(data) - 1, len(data)), (0, 1), (500, 700)],
        [(at, at + 1) for at in range(0, len(data), max(100, -(-len(data) // 1024)))],
    ):
        answer = http.get(url, headers={"Range": "bytes=" + ",".join(f"{start}-{end - 1}" for start, end in spans)})
        assert answer.status_code == 206
        assert answer.headers["content-type"].startswith("multipart/byteranges; boundary=")
        assert answer.headers["content-length"] == str(len(answer.content))
        assert "content-range" not in answer.headers
        found = parts_of(answer)
        assert found == [(f"bytes {start}-{end - 1}/{len(data)}", data[start:end]) for start, end in spans]


@pytest.mark.parametrize("known", ['"{}"', 'W/"{}"', '"other", "{}"', "*"])
def test_blob_the_client_has_is_not_sent(http: httpx.Client, known: str) -> None:
    """304, without a body."""
    digest = push_blob(http, "etag", b"content")
    for method in ("GET", "HEAD"):
        answer = http.request(method, f"/v2/etag/blobs/{digest}", headers={"If-None-Match": known.format(digest)})
        assert (answer.status_code, answer.content) == (304, b"")
    assert http.get(f"/v2/etag/blobs/{digest}", headers={"If-None-Match": '"other"'}).status_code == 200


def test_range_of_something_else_is_not_sent(http: httpx.Client) -> None:
    """RFC 9110, section 13.1.5: a client whose part is of other bytes gets all of these."""
    digest = push_blob(http, "ifrange", b"content")
    for tag, status, body in (
        (f'"{digest}"', 206, b"co"),
        ('"other"', 200, b"content"),
        (f'W/"{digest}"', 200, b"content"),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 200, b"content"),
    ):
        answer = http.get(f"/v2/ifrange/blobs/{digest}", headers={"Range": "bytes=0-1", "If-Range": tag})
        assert (answer.status_code, answer.content) == (status, body)


def test_mount_from_anywhere(http: httpx.Client) -> None:
    """Without `from`, any repository will do."""
    digest = push_blob(http, "mount/source", b"mount me")
    answer = http.post("/v2/mount/target/blobs/uploads/", params={"mount": str(digest)})
    assert answer.status_code == 201
    assert http.get(answer.headers["location"]).content == b"mount me"


def test_mount_from_a_repository_that_has_it_not(http: httpx.Client) -> None:
    """Begins an upload, though another repository has it."""
    digest = push_blob(http, "mount/has", b"only there")
    push_blob(http, "mount/hasnot", b"something else")
    for source in ("mount/hasnot", "mount/has:1", ""):  # containerify sends the tag, too
        params = {"mount": str(digest), "from": source}
        assert http.post("/v2/mount/target2/blobs/uploads/", params=params).status_code == 202


def test_deleting_leaves_other_repositories_alone(http: httpx.Client) -> None:
    """The last one to delete a blob removes it; then it can be pushed again."""
    data = os.urandom(200_000)
    digest = push_blob(http, "delete/one", data)
    push_blob(http, "delete/two", data)
    assert http.delete(f"/v2/delete/one/blobs/{digest}").status_code == 202
    assert http.get(f"/v2/delete/one/blobs/{digest}").status_code == 404
    assert http.get(f"/v2/delete/two/blobs/{digest}").content == data
    assert http.delete(f"/v2/delete/two/blobs/{digest}").status_code == 202
    assert http.post("/v2/delete/one/blobs/uploads/", params={"mount": str(digest)}).status_code == 202
    push_blob(http, "delete/one", data)
    assert http.get(f"/v2/delete/one/blobs/{digest}").content == data


def test_a_refused_method_names_all_that_are_allowed(http: httpx.Client) -> None:
    """RFC 9110, section 15.5.6, of a path with several routes."""
    digest = push_blob(http, "allow", b"content")
    answer = http.options(f"/v2/allow/blobs/{digest}")
    assert (answer.status_code, answer.headers["allow"]) == (405, "DELETE, GET, HEAD")
    assert http.patch("/v2/allow/manifests/1").headers["allow"] == "DELETE, GET, HEAD, PUT"


def test_unknown_paths_and_methods(http: httpx.Client) -> None:
    """Answer in the specification's form too."""
    for method, path, status in (("GET", "/v3/", 404), ("POST", "/v2/", 405), ("DELETE", "/v2/a/tags/list", 405)):
        answer = http.request(method, path)
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (status, "UNSUPPORTED")
