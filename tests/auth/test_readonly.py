"""A read-only service refuses every write of the table, and says so; reading and logging in go on."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx

from pagepool.digest import Digest
from pagepool.oci import Manifest
from pagepool.transport import Credentials, RegistryClient, ServiceClient, Session
from pagepool_service.routes.access import TABLE
from tests.auth.conftest import basic, password, push_blob, write_users
from tests.oci.samples import Sample, tar
from tests.support.server import Service, running_service

if TYPE_CHECKING:
    from pathlib import Path

# What is not GET, and writes nothing: what it asks for is in the body.
READING = {
    ("POST", "/v1/{name}/trees/{tree}/extents"),
    ("POST", "/v1/{name}/trees/{tree}/fill"),
    ("POST", "/auth/token"),
}


def _fill(service: Service) -> dict[str, Any]:
    """Push an image, and begin an upload. Returns what paths and bodies name."""
    sample = Sample()
    root = sample.add_image([tar({"file": b"content" * 100})])
    manifest = sample.read_manifest(root)
    assert isinstance(manifest, Manifest)
    with httpx.Client(base_url=service.url) as http:
        for blob in manifest.blobs:
            assert push_blob(http, "app", sample.content[blob.digest], basic("alice")).status_code == 201
        location = http.post("/v2/app/blobs/uploads/", auth=basic("alice")).headers["Location"]
        with Session(service.url, credentials=Credentials("alice", password("alice"))) as session:
            RegistryClient(session).put_manifest("app", "1", manifest)
            ServiceClient(session).wait("app", "1", 30)
        tree = http.get("/v1/app/images/1/tree", auth=basic("alice")).json()["tree"]
        files = http.get("/v1/app/images/1/files", params={"path": "/file"}, auth=basic("alice")).json()["entries"]
        lease = http.post(f"/v1/app/trees/{tree}/lease", json={"holder": "h", "ttl_s": 60}, auth=basic("alice"))
    return {
        "name": "app",
        "reference": "1",
        "digest": str(manifest.blobs[0].digest),
        "session": location.rpartition("/")[2],
        "tree": tree,
        "lease": lease.json()["id"],
        "object": files[0]["object"],
        "raw": manifest.raw,
        "type": manifest.media_type,
    }


def test_every_write_is_refused(tmp_path: Path) -> None:
    options = ("--htpasswd", str(write_users(tmp_path / "users", ("alice",))))
    with running_service(tmp_path / "data", *options) as service:
        known = _fill(service)
    bodies: dict[str, Any] = {
        "manifests/{reference}": {"content": known["raw"], "headers": {"Content-Type": known["type"]}},
        "uploads/{session}": {"content": b"x", "params": {"digest": str(Digest.of(b"x"))}},
        "lease": {"content": json.dumps({"holder": "h", "ttl_s": 60})},
        "profile": {"content": json.dumps({"objects": [known["object"]]})},
    }
    with (
        running_service(tmp_path / "data", *options, "--read-only") as service,
        httpx.Client(base_url=service.url, auth=basic("alice")) as http,
    ):
        assert ", read-only" in service.log()
        assert http.get("/readyz").json() == {"status": "ok", "read_only": True}
        writes = sorted(pair for pair in TABLE if pair[0] != "GET" and pair not in READING)
        assert len(writes) == 12
        for method, path in writes:
            options_of: dict[str, Any] = next(
                (body for end, body in bodies.items() if path.endswith(end) and method != "DELETE"), {}
            )
            answer = http.request(method, path.format(**known), **options_of)
            assert answer.status_code == 405, (method, path, answer.text)
            assert answer.json()["errors"][0]["code"] == "READ_ONLY", (method, path)
            assert "read-only" in answer.json()["errors"][0]["message"]
        assert http.get("/v2/app/manifests/1").content == known["raw"]
        token = http.get("/auth/token", params={"scope": "repository:app:pull"}).json()["token"]
        assert http.get("/v2/app/tags/list", auth=None, headers={"Authorization": f"Bearer {token}"}).status_code == 200
