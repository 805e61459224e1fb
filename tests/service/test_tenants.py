"""One tenant and another: what answers tell of content that somebody else has. (Rights are tested in tests/auth.)"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from pagepool.digest import Digest
from pagepool.oci.mediatypes import OCI_CONFIG, OCI_FOREIGN_LAYER_GZIP, OCI_MANIFEST
from tests.service.pushes import (
    begin_upload,
    descriptor,
    finishing,
    image_parts,
    push_blob,
    push_image,
    put_manifest,
    tar_layer,
)
from tests.service.test_images_api import settled
from tests.store.helpers import noise

if TYPE_CHECKING:
    import httpx

_OWN = {"date", "location", "docker-content-digest", "x-request-id", "docker-upload-uuid", "etag"}


def _said(answer: httpx.Response, digest: Digest) -> tuple[int, dict[str, str], str]:
    """What an answer says, but for what the request itself names."""
    fields = {name: value for name, value in answer.headers.items() if name not in _OWN}
    return answer.status_code, fields, answer.text.replace(str(digest), "DIGEST")


def test_a_push_does_not_tell_whether_another_has_the_blob(http: httpx.Client) -> None:
    """All its bytes have to come, and the answers are the same. (How long they take is not: docs/security.md.)"""
    theirs, nobodys = noise(300_000, "theirs"), noise(300_000, "nobody")
    push_blob(http, "tenants/theirs", theirs)
    said = []
    for data in (theirs, nobodys):
        digest, rows = Digest.of(data), []
        rows.append(_said(http.head(f"/v2/tenants/mine/blobs/{digest}"), digest))
        rows.append(_said(http.get(f"/v2/tenants/mine/blobs/{digest}"), digest))
        where = begin_upload(http, "tenants/mine")
        short = http.put(finishing(where, digest), content=data[:-1])
        assert (short.status_code, short.json()["errors"][0]["code"]) == (400, "DIGEST_INVALID")
        where = begin_upload(http, "tenants/mine")
        rows.append(_said(http.patch(where, content=data), digest))
        rows.append(_said(http.put(finishing(where, digest)), digest))
        said.append(rows)
    assert said[0] == said[1]
    assert [row[0] for row in said[0]] == [404, 404, 202, 201]


def test_a_manifest_gives_nothing_that_was_not_pushed(http: httpx.Client) -> None:
    """An image of somebody else's layers, by their digests: the layers have to be in the repository."""
    manifest = push_image(http, "tenants/theirs", "1", {"secret": noise(20_000, "secret")})
    raw = http.get(f"/v2/tenants/theirs/manifests/{manifest}")
    answer = http.put(
        "/v2/tenants/thief/manifests/1", content=raw.content, headers={"Content-Type": raw.headers["content-type"]}
    )
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (400, "MANIFEST_BLOB_UNKNOWN")
    for path in ("images/1", "images/1/tree", f"images/{manifest}/files"):
        assert http.get(f"/v1/tenants/thief/{path}").status_code == 404


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_nor_does_one_of_a_layer_that_may_be_kept_elsewhere(http: httpx.Client, algorithm: str) -> None:
    """A registry takes a manifest of such a layer without having it. Here it is somebody else's, known by its digest.

    The configuration may name the layer's plain bytes by another algorithm than the service: nobody compares these.
    """
    tar = tar_layer({"secret": noise(20_000, f"foreign {algorithm}")})
    _, _, layer = image_parts(tar=tar)
    push_image(http, "tenants/theirs", "foreign", {"secret": noise(20_000, f"foreign {algorithm}")})
    settled(http, "/v1/tenants/theirs/images/foreign")
    rootfs = {"type": "layers", "diff_ids": [str(Digest.of(tar, algorithm))]}
    config = json.dumps({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs}).encode()
    push_blob(http, "tenants/thief", config)
    elsewhere = {**descriptor(OCI_FOREIGN_LAYER_GZIP, layer), "urls": ["https://example.com/layer"]}
    document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": descriptor(OCI_CONFIG, config)}
    put_manifest(http, "tenants/thief", algorithm, json.dumps({**document, "layers": [elsewhere]}).encode())
    image = http.get(f"/v1/tenants/thief/images/{algorithm}").json()
    assert (image["state"], image["layers"][0]["diff_id"]) == ("unmountable", "")
    assert "not stored here" in image["reason"]
    for path in ("tree", "files"):
        assert http.get(f"/v1/tenants/thief/images/{algorithm}/{path}").status_code == 422
    # Nor where its owner has the same manifest, and its tree is made.
    push_blob(http, "tenants/theirs", config)
    put_manifest(http, "tenants/theirs", algorithm, json.dumps({**document, "layers": [elsewhere]}).encode())
    tree = http.get(f"/v1/tenants/theirs/images/{algorithm}/tree").json()["tree"]
    for path in (f"images/{algorithm}/tree", f"images/{algorithm}/files"):
        assert http.get(f"/v1/tenants/thief/{path}").status_code == 422
    assert http.get(f"/v1/tenants/thief/trees/{tree}").status_code == 404
    found = http.get("/v1/images", params={"last": "tenants/thief:0"}).json()["images"]
    assert [one["state"] for one in found if one["name"] == "tenants/thief"][:1] == ["unmountable"]
