"""Manifests over HTTP: validation, tags, references between them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from pagepool.digest import Digest
from pagepool.oci.mediatypes import DOCKER_MANIFEST, OCI_FOREIGN_LAYER_GZIP, OCI_INDEX, OCI_MANIFEST
from tests.service.pushes import descriptor, image_parts, index_of, push_blob, push_image, put_manifest

if TYPE_CHECKING:
    import httpx


def put(http: httpx.Client, url: str, body: bytes, media_type: str | None = OCI_MANIFEST) -> httpx.Response:
    """Push a manifest that may be refused."""
    headers = {} if media_type is None else {"Content-Type": media_type}
    return http.put(url, content=body, headers=headers)


def code_of(answer: httpx.Response) -> str:
    """The error code of an answer."""
    return str(answer.json()["errors"][0]["code"])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff",
        b"null",
        b'{"schemaVersion": 1}',
        b'{"schemaVersion": 2}',
        b"[" * 100_000,
        b'{"schemaVersion": 2, "config": {}, "layers": []}',
        b'{"schemaVersion": 2, "schemaVersion": 2}',
        b'{"schemaVersion": 2, "manifests": []}',
        b'{"schemaVersion": ' + b"9" * 5000 + b"}",
    ],
)
def test_what_is_no_manifest(http: httpx.Client, body: bytes) -> None:
    """400 MANIFEST_INVALID."""
    answer = put(http, "/v2/invalid/manifests/x", body)
    assert (answer.status_code, code_of(answer)) == (400, "MANIFEST_INVALID")


@pytest.mark.parametrize("media_type", ["text/plain", "application/json", OCI_INDEX, DOCKER_MANIFEST])
def test_media_type_must_be_the_documents(http: httpx.Client, media_type: str) -> None:
    """400 MANIFEST_INVALID; parameters are ignored; without one the document is believed."""
    push_image(http, "mediatype", "good")
    manifest = image_parts()[0]
    answer = put(http, "/v2/mediatype/manifests/x", manifest, media_type)
    assert (answer.status_code, code_of(answer)) == (400, "MANIFEST_INVALID")
    assert put(http, "/v2/mediatype/manifests/x", manifest, f"{OCI_MANIFEST}; charset=utf-8").status_code == 201
    assert put(http, "/v2/mediatype/manifests/x", manifest, None).status_code == 201
    assert http.get("/v2/mediatype/manifests/x").headers["content-type"] == OCI_MANIFEST


@pytest.mark.parametrize("reference", [".x", "-x", "a" * 129, "a b", "a%00"])
def test_bad_tags(http: httpx.Client, reference: str) -> None:
    """400, but to who looks for a manifest: it is not there, as the conformance program of version 1.1 has it."""
    url = f"/v2/reference/manifests/{reference}"
    for answer in (http.delete(url), put(http, url, image_parts()[0])):
        assert (answer.status_code, code_of(answer)) == (400, "TAG_INVALID")
    answer = http.get(url)
    assert (answer.status_code, code_of(answer)) == (404, "MANIFEST_UNKNOWN")
    assert http.head(url).status_code == 404


@pytest.mark.parametrize("reference", ["sha256:x", "sha256:", ":", "md5:" + "0" * 32])
def test_bad_digests(http: httpx.Client, reference: str) -> None:
    """400, whatever is done with them."""
    url = f"/v2/reference/manifests/{reference}"
    for answer in (http.get(url), http.delete(url), put(http, url, image_parts()[0])):
        assert (answer.status_code, code_of(answer)) == (400, "DIGEST_INVALID")
    assert http.head(url).status_code == 400


def test_missing_blob_is_named(http: httpx.Client) -> None:
    """In message and detail; a blob of another repository does not count."""
    manifest, config, layer = image_parts()
    push_blob(http, "named/here", config)
    missing = push_blob(http, "named/elsewhere", layer)
    answer = put(http, "/v2/named/here/manifests/x", manifest)
    assert (answer.status_code, code_of(answer)) == (400, "MANIFEST_BLOB_UNKNOWN")
    assert answer.json()["errors"][0]["detail"] == {"digest": str(missing)}


@pytest.mark.parametrize("part", ["config", "layer"])
@pytest.mark.parametrize("difference", [-1, 1])
def test_size_that_a_blob_has_not(http: httpx.Client, part: str, difference: int) -> None:
    """400 SIZE_INVALID, and nothing is stored: nobody could pull it."""
    manifest, *blobs = image_parts()
    for blob in blobs:
        push_blob(http, "sizes", blob)
    document = json.loads(manifest)
    described = document["config"] if part == "config" else document["layers"][0]
    described["size"] += difference
    answer = put(http, "/v2/sizes/manifests/x", json.dumps(document).encode())
    assert (answer.status_code, code_of(answer)) == (400, "SIZE_INVALID")
    assert described["digest"] in answer.json()["errors"][0]["message"]
    assert http.head("/v2/sizes/manifests/x").status_code == 404


def test_layer_that_may_not_be_distributed(http: httpx.Client) -> None:
    """Need not be there if it says where it is."""
    config = image_parts()[1]
    push_blob(http, "foreign", config)
    layer: dict[str, Any] = {"mediaType": OCI_FOREIGN_LAYER_GZIP, "digest": str(Digest.of(b"far")), "size": 3}
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor("application/vnd.oci.image.config.v1+json", config),
        "layers": [layer],
    }
    assert put(http, "/v2/foreign/manifests/x", json.dumps(manifest).encode()).status_code == 400
    layer["urls"] = ["https://example.com/layer"]
    assert put(http, "/v2/foreign/manifests/x", json.dumps(manifest).encode()).status_code == 201


def test_index_may_list_blobs(http: httpx.Client) -> None:
    """What is listed must be there, as a manifest or as a blob."""
    push_blob(http, "listing", b"a blob")
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [descriptor("text/plain", b"a blob")]}
    assert put(http, "/v2/listing/manifests/x", json.dumps(index).encode(), OCI_INDEX).status_code == 201


@pytest.mark.parametrize("difference", [-1, 1])
def test_size_that_a_listed_manifest_has_not(http: httpx.Client, difference: int) -> None:
    """400 MANIFEST_INVALID, which names the entry; nothing is stored, and with the right size it is taken."""
    push_image(http, "entries", "one")
    manifest = http.get("/v2/entries/manifests/one").content
    entry = descriptor(OCI_MANIFEST, manifest)
    index: dict[str, Any] = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}
    entry["size"] += difference
    answer = put(http, f"/v2/entries/manifests/x{difference}", json.dumps(index).encode(), OCI_INDEX)
    assert (answer.status_code, code_of(answer)) == (400, "MANIFEST_INVALID")
    assert f"entry {entry['digest']}" in answer.json()["errors"][0]["message"]
    assert http.head(f"/v2/entries/manifests/x{difference}").status_code == 404
    entry["size"] -= difference
    assert put(http, f"/v2/entries/manifests/x{difference}", json.dumps(index).encode(), OCI_INDEX).status_code == 201


def test_size_that_a_listed_blob_has_not(http: httpx.Client) -> None:
    """400 SIZE_INVALID, as in a manifest."""
    push_blob(http, "listed", b"a blob")
    entry = descriptor("text/plain", b"a blob") | {"size": 7}
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}
    answer = put(http, "/v2/listed/manifests/x", json.dumps(index).encode(), OCI_INDEX)
    assert (answer.status_code, code_of(answer)) == (400, "SIZE_INVALID")


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_push_by_digest(http: httpx.Client, algorithm: str) -> None:
    """Under the digest it was pushed by, with tags beside."""
    push_image(http, "bydigest", "latest")
    manifest = image_parts(annotations={"algorithm": algorithm})[0]
    digest = Digest.of(manifest, algorithm)
    answer = put(http, f"/v2/bydigest/manifests/{digest}?tag=1&tag=1.2&tag=1", manifest)
    assert (answer.status_code, answer.headers["docker-content-digest"]) == (201, str(digest))
    assert answer.headers["oci-tag"] == "1, 1.2, 1"
    for reference in (str(digest), "1", "1.2"):
        got = http.get(f"/v2/bydigest/manifests/{reference}")
        assert (got.content, got.headers["docker-content-digest"]) == (manifest, str(digest))


def test_what_may_be_kept(http: httpx.Client) -> None:
    """By digest for ever; where a tag points is asked each time, also by caches on the way."""
    digest = push_image(http, "kept", "latest")
    for method in ("GET", "HEAD"):
        assert http.request(method, "/v2/kept/manifests/latest").headers["cache-control"] == "no-cache"
        assert "immutable" in http.request(method, f"/v2/kept/manifests/{digest}").headers["cache-control"]


def test_bad_tag_parameters(http: httpx.Client) -> None:
    """Nothing is stored if any of them is bad."""
    push_image(http, "badtags", "latest")
    manifest = image_parts(annotations={"bad": "tags"})[0]
    digest = Digest.of(manifest)
    for query, status in (("tag=ok&tag=.bad", 400), ("tag=", 400), ("&".join(f"tag=t{i}" for i in range(101)), 413)):
        assert put(http, f"/v2/badtags/manifests/{digest}?{query}", manifest).status_code == status
    assert put(http, "/v2/badtags/manifests/x?tag=y", manifest).status_code == 400
    assert http.head(f"/v2/badtags/manifests/{digest}").status_code == 404
    assert http.get("/v2/badtags/tags/list").json()["tags"] == ["latest"]


def test_large_manifests(http: httpx.Client) -> None:
    """4 MiB are taken in, more are not: announced or streamed."""
    push_image(http, "large/manifest", "latest")
    padding = (4 << 20) - len(image_parts(annotations={"x": ""})[0])
    largest = image_parts(annotations={"x": "y" * padding})[0]
    assert len(largest) == 4 << 20
    url = "/v2/large/manifest/manifests/x"
    assert put(http, url, largest).status_code == 201
    assert http.get(url).content == largest
    answer = put(http, url, largest + b" ")
    assert (answer.status_code, code_of(answer)) == (413, "SIZE_INVALID")
    streamed = http.put(url, content=iter([largest, b" "]), headers={"Content-Type": OCI_MANIFEST})
    assert streamed.status_code == 413


def test_deleting_a_tag_leaves_the_manifest(http: httpx.Client) -> None:
    """And its other tags."""
    digest = push_image(http, "untag", "one")
    push_image(http, "untag", "two")
    assert http.delete("/v2/untag/manifests/one").status_code == 202
    assert http.delete("/v2/untag/manifests/one").status_code == 404
    assert http.get("/v2/untag/manifests/two").status_code == 200
    assert http.get(f"/v2/untag/manifests/{digest}").status_code == 200


def test_manifest_is_kept_once_and_seen_where_it_was_pushed(http: httpx.Client) -> None:
    """Deleting it from one repository leaves the other's."""
    digest = push_image(http, "shared/one", "latest")
    assert http.get(f"/v2/shared/two/manifests/{digest}").status_code == 404
    push_image(http, "shared/two", "latest")
    assert http.delete(f"/v2/shared/one/manifests/{digest}").status_code == 202
    assert http.get(f"/v2/shared/one/manifests/{digest}").status_code == 404
    assert http.get(f"/v2/shared/two/manifests/{digest}").status_code == 200


def test_blob_of_a_manifest_can_be_deleted(http: httpx.Client) -> None:
    """The specification lets a client do so; the manifest stays."""
    push_image(http, "hollow", "latest")
    layer = image_parts()[2]
    assert http.delete(f"/v2/hollow/blobs/{Digest.of(layer)}").status_code == 202
    assert http.get("/v2/hollow/manifests/latest").status_code == 200


def test_referrers(http: httpx.Client) -> None:
    """Listed before and after their subject comes, and no more when they are deleted."""
    repository = "referrers"
    subject = image_parts()[0]
    entry = descriptor(OCI_MANIFEST, subject)
    url = f"/v2/{repository}/referrers/{entry['digest']}"
    assert http.get(url).json()["manifests"] == []
    plain = push_image(http, repository, "plain", subject=entry)
    typed = push_image(
        http, repository, "typed", subject=entry, artifactType="application/x.sbom", annotations={"by": "test"}
    )
    push_image(http, repository, "latest")
    index = index_of(subject, subject=entry)
    listed = put_manifest(http, repository, "index", index, OCI_INDEX)
    answer = http.get(url)
    assert answer.headers["content-type"] == OCI_INDEX
    found = {entry["digest"]: entry for entry in answer.json()["manifests"]}
    assert set(found) == {str(plain), str(typed), str(listed)}
    assert found[str(plain)]["artifactType"] == "application/vnd.oci.image.config.v1+json"
    assert found[str(typed)]["artifactType"] == "application/x.sbom"
    assert found[str(typed)]["annotations"] == {"by": "test"}
    assert "artifactType" not in found[str(listed)]
    filtered = http.get(url, params={"artifactType": "application/x.sbom"})
    assert filtered.headers["oci-filters-applied"] == "artifactType"
    assert [entry["digest"] for entry in filtered.json()["manifests"]] == [str(typed)]
    assert http.delete(f"/v2/{repository}/manifests/{typed}").status_code == 202
    assert {entry["digest"] for entry in http.get(url).json()["manifests"]} == {str(plain), str(listed)}


def test_subject_is_acknowledged(http: httpx.Client) -> None:
    """By the header that tells clients they need no tag for it."""
    push_image(http, "subject", "latest")
    subject = {"mediaType": OCI_MANIFEST, "digest": str(Digest.of(b"missing")), "size": 7}
    answer = put(http, "/v2/subject/manifests/x", image_parts(subject=subject)[0])
    assert (answer.status_code, answer.headers["oci-subject"]) == (201, subject["digest"])
