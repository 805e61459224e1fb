"""Images as the service understands them, under /v1."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from blake3 import blake3

from pagepool.digest import Digest
from pagepool.oci.mediatypes import OCI_CONFIG, OCI_INDEX, OCI_MANIFEST
from tests.service.pushes import descriptor, image_parts, push_blob, push_image, put_manifest, tar_layer

if TYPE_CHECKING:
    from tests.support.server import Service

FILES = {"etc/hello": b"hello\n", "bin/tool": b"\x7fELF" * 100, "empty": b"", b"odd\xff".decode("latin-1"): b"x"}


def settled(http: httpx.Client, url: str) -> dict[str, Any]:
    """An image, once its layers have been read."""
    deadline = time.monotonic() + 30
    while True:
        answer = http.get(url)
        body: dict[str, Any] = answer.json()
        assert answer.status_code in (200, 202), answer.text
        assert (body["state"] == "pending") == (answer.status_code == 202)
        if answer.status_code == 200:
            return body
        assert answer.headers["retry-after"]
        assert time.monotonic() < deadline, body
        time.sleep(0.02)


def test_image_becomes_ready(http: httpx.Client) -> None:
    """With its configuration, and each layer's diff_id, size and members."""
    digest = push_image(http, "images/ready", "latest", FILES)
    body = settled(http, "/v1/images/ready/images/latest")
    tar = tar_layer(FILES)
    assert (body["name"], body["reference"], body["digest"]) == ("images/ready", "latest", str(digest))
    assert (body["state"], body["reason"]) == ("ready", "")
    assert body["platform"] == {"architecture": "amd64", "os": "linux"}
    assert body["config"]["rootfs"]["diff_ids"] == [str(Digest.of(tar))]
    (layer,) = body["layers"]
    assert (layer["state"], layer["diff_id"]) == ("ready", str(Digest.of(tar)))
    assert (layer["plain_size"], layer["members"]) == (len(tar), len(FILES))
    assert body["size"] == layer["size"] + len(image_parts(FILES)[1])
    assert settled(http, f"/v1/images/ready/images/{digest}")["digest"] == str(digest)


def test_files(http: httpx.Client) -> None:
    """A directory, everything below it, one file."""
    push_image(http, "images/files", "latest", FILES)
    settled(http, "/v1/images/files/images/latest")
    url = "/v1/images/files/images/latest/files"
    root = http.get(url).json()["entries"]
    assert [entry["path"] for entry in root] == ["/bin", "/empty", "/etc", "/oddÿ"]
    everything = http.get(url, params={"recursive": "true"}).json()["entries"]
    assert [entry["path"] for entry in everything][1:] == ["/bin", "/bin/tool", "/empty", "/etc", "/etc/hello", "/oddÿ"]
    (hello,) = http.get(url, params={"path": "/etc/hello"}).json()["entries"]
    assert (hello["type"], hello["size"], hello["object"]) == ("regular", 6, blake3(b"hello\n").hexdigest())
    assert http.get(url, params={"path": "/etc/../bin/tool"}).status_code == 200
    missing = http.get(url, params={"path": "/nope"})
    assert (missing.status_code, missing.json()["errors"][0]["code"]) == (404, "PATH_UNKNOWN")


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_files_come_in_pages(http: httpx.Client, limit: int) -> None:
    """Whose ends are names, not numbers."""
    push_image(http, "images/pages", "latest", FILES)
    settled(http, "/v1/images/pages/images/latest")
    found: list[str] = []
    params = {"recursive": "true", "limit": str(limit)}
    while True:
        page = http.get("/v1/images/pages/images/latest/files", params=params).json()
        found += [entry["path"] for entry in page["entries"]]
        if "next" not in page:
            break
        assert len(page["entries"]) == limit
        params["after"] = page["next"]
    assert found[1:] == ["/bin", "/bin/tool", "/empty", "/etc", "/etc/hello", "/oddÿ"]


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "limit=10001", "recursive=maybe", "platform=x", "limit="])
def test_bad_file_queries(http: httpx.Client, query: str) -> None:
    """400."""
    push_image(http, "images/query", "latest")
    assert http.get(f"/v1/images/query/images/latest/files?{query}").status_code == 400


def test_what_is_no_layer(http: httpx.Client) -> None:
    """Makes the image unmountable, with the reason; it can be pulled all the same."""
    layer = b"this is no tar"
    rootfs = {"type": "layers", "diff_ids": [str(Digest.of(layer))]}
    config = json.dumps({"architecture": "amd64", "os": "linux", "rootfs": rootfs}).encode()
    for blob in (config, layer):
        push_blob(http, "images/notar", blob)
    layers = [descriptor("application/vnd.oci.image.layer.v1.tar", layer)]
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(OCI_CONFIG, config),
        "layers": layers,
    }
    put_manifest(http, "images/notar", "latest", json.dumps(manifest).encode())
    body = settled(http, "/v1/images/notar/images/latest")
    assert body["state"] == "unmountable"
    assert "tar" in body["reason"]
    answer = http.get("/v1/images/notar/images/latest/files")
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (422, "LAYER_INVALID")


def test_layers_that_contradict_the_configuration(http: httpx.Client) -> None:
    """Make the image unmountable."""
    _, _, layer = image_parts(FILES)
    for said, words in (([], "names 0 layers"), ([str(Digest.of(b"other"))], "has the diff_id")):
        rootfs = {"type": "layers", "diff_ids": said}
        config = json.dumps({"architecture": "amd64", "os": "linux", "rootfs": rootfs}).encode()
        for blob in (config, layer):
            push_blob(http, "images/liar", blob)
        layers = [descriptor("application/vnd.oci.image.layer.v1.tar", layer)]
        manifest = {"schemaVersion": 2, "config": descriptor(OCI_CONFIG, config), "layers": layers}
        put_manifest(http, "images/liar", "latest", json.dumps(manifest).encode())
        body = settled(http, "/v1/images/liar/images/latest")
        assert body["state"] == "unmountable"
        assert words in body["reason"]


@pytest.mark.parametrize("depth", [1, 200, 900, 100_000])
def test_odd_configurations(http: httpx.Client, depth: int) -> None:
    """Whatever JSON they hold, the image is described."""
    _, _, layer = image_parts(FILES)
    nested = "[" * depth + '"\\ud800"' + "]" * depth
    rootfs = {"type": "layers", "diff_ids": [str(Digest.of(tar_layer(FILES)))]}
    config = f'{{"architecture": "amd64", "os": "linux", "x": {nested}, "rootfs": {json.dumps(rootfs)}}}'.encode()
    for blob in (config, layer):
        push_blob(http, "images/odd", blob)
    layers = [descriptor("application/vnd.oci.image.layer.v1.tar", layer)]
    manifest = {"schemaVersion": 2, "config": descriptor(OCI_CONFIG, config), "layers": layers}
    put_manifest(http, "images/odd", "latest", json.dumps(manifest).encode())
    body = settled(http, "/v1/images/odd/images/latest")
    assert body["state"] == ("ready" if depth < 1000 else "unmountable")
    assert body["config"] is None or body["config"]["x"]
    assert http.get("/v1/images").status_code == 200


def test_artifact_is_no_image(http: httpx.Client) -> None:
    """But it can be asked about."""
    push_blob(http, "images/artifact", b"{}")
    config = descriptor("application/vnd.oci.empty.v1+json", b"{}")
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": "a/b",
        "config": config,
        "layers": [config],
    }
    put_manifest(http, "images/artifact", "latest", json.dumps(manifest).encode())
    body = settled(http, "/v1/images/artifact/images/latest")
    assert body["state"] == "unmountable"
    assert "no image" in body["reason"]


def test_index_is_resolved(http: httpx.Client) -> None:
    """To the image of a platform; its state is that of its images together."""
    entries: list[dict[str, Any]] = []
    for architecture in ("amd64", "arm64"):
        manifest = image_parts({"arch": architecture.encode()})[0]
        push_image(http, "images/index", f"{architecture}", {"arch": architecture.encode()})
        platform = {"os": "linux", "architecture": architecture}
        entries.append({**descriptor(OCI_MANIFEST, manifest), "platform": platform})
    index = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).encode()
    digest = put_manifest(http, "images/index", "all", index, OCI_INDEX)
    for entry in entries:
        wanted = f"linux/{entry['platform']['architecture']}"
        body = settled(http, f"/v1/images/index/images/all?platform={wanted}")
        assert (body["digest"], body["index"]) == (entry["digest"], str(digest))
    assert http.get("/v1/images/index/images/all?platform=linux/s390x").status_code == 404
    assert http.get("/v1/images/index/images/all?platform=nonsense").status_code == 400
    listed = [image for image in http.get("/v1/images").json()["images"] if image["tag"] == "all"]
    assert (listed[0]["digest"], listed[0]["state"]) == (str(digest), "ready")
    assert listed[0]["platforms"] == ["linux/amd64", "linux/arm64"]


def test_attestations_and_build_caches_are_listed_by_what_they_are(http: httpx.Client) -> None:
    """An attestation, as buildkit pushes it, is of no platform; a cache that is an index is as large as its layers."""
    manifest = image_parts({"file": b"attested"})[0]
    push_image(http, "images/attested", "plain", {"file": b"attested"})
    image = {**descriptor(OCI_MANIFEST, manifest), "platform": {"os": "linux", "architecture": "amd64"}}
    statement = {**image, "platform": {"os": "unknown", "architecture": "unknown"}}
    statement["annotations"] = {"vnd.docker.reference.type": "attestation-manifest"}
    layer = tar_layer({"file": b"of a cache" * 1000})
    config = b'{"layers": []}'
    for blob in (layer, config):
        push_blob(http, "images/attested", blob)
    cached = [descriptor("application/vnd.oci.image.layer.v1.tar", layer)]
    cached.append(descriptor("application/vnd.buildkit.cacheconfig.v0", config))
    for tag, entries in (("all", [image, statement]), ("cache", cached)):
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
        put_manifest(http, "images/attested", tag, json.dumps(index).encode(), OCI_INDEX)
    settled(http, "/v1/images/attested/images/plain")
    listed = {image["tag"]: image for image in http.get("/v1/images").json()["images"] if "attested" in image["name"]}
    assert listed["all"]["platforms"] == ["linux/amd64"]
    assert listed["cache"]["size"] == len(layer) + len(config)
    assert (listed["cache"]["state"], listed["cache"]["reason"]) == ("unmountable", "it lists no image")
    measured = {image["tag"]: image for image in http.get("/v1/stats").json()["images"] if "attested" in image["name"]}
    assert measured["cache"]["compressed_bytes"] == len(layer) + len(config)


def test_unknown_images(http: httpx.Client) -> None:
    """404 as of manifests."""
    push_image(http, "images/known", "latest")
    for url, code in (
        ("/v1/images/known/images/nope", "MANIFEST_UNKNOWN"),
        (f"/v1/images/known/images/{Digest.of(b'nope')}", "MANIFEST_UNKNOWN"),
        ("/v1/images/nobody/images/latest", "NAME_UNKNOWN"),
        ("/v1/images/nobody/images/latest/files", "NAME_UNKNOWN"),
    ):
        answer = http.get(url)
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (404, code)


def test_health_and_statistics(service: Service, http: httpx.Client) -> None:
    """Answer."""
    assert http.get("/healthz").json() == {"status": "ok"}
    assert http.get("/readyz").json() == {"status": "ok", "read_only": False}
    total = http.get("/v1/stats").json()["total"]
    assert total["stored_bytes"] > 0
    assert not service.faults()
