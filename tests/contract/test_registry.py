"""What every client relies on, the same of pagepool and of Docker's registry.

Each test uses a repository of its own. What the two do differently is not here: where the specification leaves a
choice, or Docker's registry does not follow it (2.8 sorts no tags, and takes a chunk out of order), pagepool's way is
tested in tests/service.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from pagepool.digest import Digest
from pagepool.oci.mediatypes import OCI_MANIFEST
from tests.service.pushes import begin_upload, finishing, image_parts, index_of, push_blob, push_image, put_manifest

if TYPE_CHECKING:
    import httpx


def code_of(answer: httpx.Response) -> str:
    """The error code of an answer."""
    return str(answer.json()["errors"][0]["code"])


def message_of(answer: httpx.Response) -> str:
    """What a client prints of an answer."""
    return str(answer.json()["errors"][0]["message"])


def test_support_is_announced(registry: httpx.Client) -> None:
    """By status and by Docker's header."""
    answer = registry.get("/v2/")
    assert answer.status_code == 200
    assert answer.headers["docker-distribution-api-version"] == "registry/2.0"


@pytest.mark.parametrize("size", [0, 1, 1000, 131072, 131073, 3 << 20])
def test_blob_comes_back_as_it_went_in(registry: httpx.Client, size: int) -> None:
    """Whatever its size."""
    data = os.urandom(size)
    digest = push_blob(registry, f"contract/size{size}", data)
    url = f"/v2/contract/size{size}/blobs/{digest}"
    answer = registry.get(url)
    assert (answer.status_code, answer.content) == (200, data)
    assert answer.headers["docker-content-digest"] == str(digest)
    assert answer.headers["etag"] == f'"{digest}"'
    head = registry.head(url)
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(size))
    for name in ("content-type", "docker-content-digest", "etag"):
        assert head.headers[name] == answer.headers[name]


def test_chunks_follow_each_other(registry: httpx.Client) -> None:
    """Each says how far it came; the location may change from one to the next."""
    data = os.urandom(3000)
    location = begin_upload(registry, "contract/chunks")
    for start in (0, 1000):
        chunk = data[start : start + 1000]
        headers = {"Content-Range": f"{start}-{start + len(chunk) - 1}", "Content-Type": "application/octet-stream"}
        answer = registry.patch(location, content=chunk, headers=headers)
        assert answer.status_code == 202
        assert answer.headers["range"] == f"0-{start + 999}"
        location = answer.headers["location"]
    status = registry.get(location)
    assert (status.status_code, status.headers["range"]) == (204, "0-1999")
    location = status.headers.get("location", location)
    digest = Digest.of(data)
    answer = registry.put(finishing(location, digest), content=data[2000:])
    assert answer.status_code == 201
    assert registry.get(answer.headers["location"]).content == data


def test_wrong_digest_is_refused(registry: httpx.Client) -> None:
    """With DIGEST_INVALID."""
    location = begin_upload(registry, "contract/wrong")
    answer = registry.put(finishing(location, Digest.of(b"other")), content=b"this")
    assert (answer.status_code, code_of(answer)) == (400, "DIGEST_INVALID")


def test_cancelled_upload_is_gone(registry: httpx.Client) -> None:
    """The session is unknown then."""
    location = begin_upload(registry, "contract/cancel")
    assert registry.delete(location).status_code == 204
    answer = registry.get(location)
    assert (answer.status_code, code_of(answer)) == (404, "BLOB_UPLOAD_UNKNOWN")


def test_blob_is_mounted_from_another_repository(registry: httpx.Client) -> None:
    """Without sending it; what is not there is to be uploaded."""
    digest = push_blob(registry, "contract/from", b"mounted")
    params = {"mount": str(digest), "from": "contract/from"}
    answer = registry.post("/v2/contract/to/blobs/uploads/", params=params)
    assert answer.status_code == 201
    assert registry.get(answer.headers["location"]).content == b"mounted"
    params["mount"] = str(Digest.of(b"nowhere"))
    assert registry.post("/v2/contract/to/blobs/uploads/", params=params).status_code == 202


def test_blob_belongs_to_its_repository(registry: httpx.Client) -> None:
    """Knowing its digest is not enough."""
    digest = push_blob(registry, "contract/mine", b"mine")
    push_blob(registry, "contract/yours", b"yours")
    answer = registry.get(f"/v2/contract/yours/blobs/{digest}")
    assert (answer.status_code, code_of(answer)) == (404, "BLOB_UNKNOWN")


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [("0-0", 0, 1), ("500-1499", 500, 1500), ("500-", 500, 2048), ("-500", 1548, 2048), ("2000-5000", 2000, 2048)],
)
def test_range_of_a_blob(registry: httpx.Client, asked: str, start: int, end: int) -> None:
    """One range is answered by 206 and exactly these bytes."""
    data = bytes(range(256)) * 8
    digest = push_blob(registry, "contract/range", data)
    answer = registry.get(f"/v2/contract/range/blobs/{digest}", headers={"Range": f"bytes={asked}"})
    assert (answer.status_code, answer.content) == (206, data[start:end])
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/2048"


def test_manifest_comes_back_as_it_went_in(registry: httpx.Client) -> None:
    """By tag and by digest, under its media type."""
    manifest, config, layer = image_parts()
    push_blob(registry, "contract/image", config)
    push_blob(registry, "contract/image", layer)
    digest = put_manifest(registry, "contract/image", "latest", manifest)
    assert digest == Digest.of(manifest)
    for reference in ("latest", str(digest)):
        answer = registry.get(f"/v2/contract/image/manifests/{reference}", headers={"Accept": OCI_MANIFEST})
        assert (answer.status_code, answer.content) == (200, manifest)
        assert answer.headers["content-type"] == OCI_MANIFEST
        assert answer.headers["docker-content-digest"] == str(digest)
        head = registry.head(f"/v2/contract/image/manifests/{reference}", headers={"Accept": OCI_MANIFEST})
        assert (head.status_code, head.headers["content-length"]) == (200, str(len(manifest)))
        for name in ("content-type", "docker-content-digest"):
            assert head.headers[name] == answer.headers[name]


def test_manifest_the_client_has_is_not_sent(registry: httpx.Client) -> None:
    """If-None-Match with its digest."""
    digest = push_image(registry, "contract/known", "latest")
    headers = {"Accept": OCI_MANIFEST, "If-None-Match": f'"{digest}"'}
    for method in ("GET", "HEAD"):
        answer = registry.request(method, "/v2/contract/known/manifests/latest", headers=headers)
        assert (answer.status_code, answer.content) == (304, b"")


def test_manifest_needs_its_blobs(registry: httpx.Client) -> None:
    """In its own repository."""
    manifest, config, _ = image_parts()
    push_blob(registry, "contract/missing", config)
    url = "/v2/contract/missing/manifests/latest"
    answer = registry.put(url, content=manifest, headers={"Content-Type": OCI_MANIFEST})
    assert answer.status_code in (400, 404)
    assert "MANIFEST_BLOB_UNKNOWN" in [error["code"] for error in answer.json()["errors"]]


def test_manifest_must_have_the_digest_it_is_pushed_by(registry: httpx.Client) -> None:
    """And nothing is stored otherwise."""
    push_image(registry, "contract/digest", "latest")
    manifest = image_parts()[0] + b"\n"
    url = f"/v2/contract/digest/manifests/{Digest.of(b'other')}"
    answer = registry.put(url, content=manifest, headers={"Content-Type": OCI_MANIFEST})
    assert (answer.status_code, code_of(answer)) == (400, "DIGEST_INVALID")
    assert registry.get(f"/v2/contract/digest/manifests/{Digest.of(manifest)}").status_code == 404


def test_index_needs_its_manifests(registry: httpx.Client) -> None:
    """And takes them when they are there."""
    manifest = image_parts()[0]
    push_image(registry, "contract/index", "one")
    index = index_of(manifest)
    media_type = "application/vnd.oci.image.index.v1+json"
    assert put_manifest(registry, "contract/index", "all", index, media_type) == Digest.of(index)
    answer = registry.put(
        "/v2/contract/index/manifests/bad", content=index_of(b"{}"), headers={"Content-Type": media_type}
    )
    assert answer.status_code in (400, 404)


def test_tag_moves(registry: httpx.Client) -> None:
    """To what was pushed last; the manifest before stays."""
    first = push_image(registry, "contract/move", "latest", {"a": b"1"})
    second = push_image(registry, "contract/move", "latest", {"a": b"2"})
    headers = {"Accept": OCI_MANIFEST}
    answer = registry.head("/v2/contract/move/manifests/latest", headers=headers)
    assert answer.headers["docker-content-digest"] == str(second)
    assert registry.head(f"/v2/contract/move/manifests/{first}", headers=headers).status_code == 200


def test_unknown_repository(registry: httpx.Client) -> None:
    """Has no tags and no manifests; which of both is unknown depends on what is asked for, and clients go by it."""
    answer = registry.get("/v2/contract/nobody/tags/list")
    assert (answer.status_code, code_of(answer)) == (404, "NAME_UNKNOWN")
    assert "repository name not known to registry" in message_of(answer)
    for reference in ("latest", Digest.of(b"none")):
        answer = registry.get(f"/v2/contract/nobody/manifests/{reference}")
        assert (answer.status_code, code_of(answer)) == (404, "MANIFEST_UNKNOWN")
        assert "manifest unknown" in message_of(answer)
    answer = registry.delete(f"/v2/contract/nobody/manifests/{Digest.of(b'none')}")
    assert (answer.status_code, code_of(answer)) == (404, "MANIFEST_UNKNOWN")


def test_deleting_a_manifest_takes_its_tags(registry: httpx.Client) -> None:
    """202, then 404."""
    digest = push_image(registry, "contract/delete", "latest")
    assert registry.delete(f"/v2/contract/delete/manifests/{digest}").status_code == 202
    for reference in ("latest", str(digest)):
        assert registry.get(f"/v2/contract/delete/manifests/{reference}").status_code == 404


def test_deleting_a_blob(registry: httpx.Client) -> None:
    """202, then 404; again is 404."""
    digest = push_blob(registry, "contract/rmblob", b"to go")
    url = f"/v2/contract/rmblob/blobs/{digest}"
    assert registry.delete(url).status_code == 202
    assert registry.get(url).status_code == 404
    assert registry.delete(url).status_code == 404


def test_catalogue_comes_in_pages(registry: httpx.Client) -> None:
    """Byte order, linked."""
    for name in ("contract/cat/b", "contract/cat", "contract/cat-a"):
        push_image(registry, name, "latest")
    found: list[str] = []
    url: str | None = "/v2/_catalog?n=2"
    while url:
        answer = registry.get(url)
        found += answer.json()["repositories"]
        link = answer.links.get("next")
        url = link["url"] if link else None
    ours = [name for name in found if name.startswith("contract/cat")]
    assert sorted(ours) == ["contract/cat", "contract/cat-a", "contract/cat/b"]
    assert len(found) == len(set(found))
