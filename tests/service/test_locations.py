"""`Location` headers: paths, which are right behind every proxy, or whole addresses for clients that need them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from fastapi import Request

from pagepool.digest import Digest
from pagepool_service.routes.addresses import base_url
from pagepool_service.settings import Settings
from tests.support.server import running_service

_BLOB = b"{}"
_DIGEST = str(Digest.of(_BLOB))
_MANIFEST = (
    '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","layers":[],"config":'
    f'{{"mediaType":"application/vnd.oci.empty.v1+json","digest":"{_DIGEST}","size":{len(_BLOB)}}}}}'
)


@pytest.mark.parametrize(
    ("options", "base"),
    [
        ((), ""),
        (("--absolute-locations",), "http://relay.example:5443"),
        (("--absolute-locations", "--external-url", "https://r.example/base/"), "https://r.example/base"),
    ],
    ids=["paths", "as the client says", "external"],
)
def test_locations(tmp_path: Path, options: tuple[str, ...], base: str) -> None:
    """All of a push are of the same kind. What the proxy leaves of them is where the push goes on."""
    with (
        running_service(tmp_path / "data", *options) as service,
        httpx.Client(base_url=service.url, headers={"Host": "relay.example:5443"}) as http,
    ):

        def told(response: httpx.Response, status: int) -> str:
            assert response.status_code == status, response.text
            assert response.headers["Location"].startswith(f"{base}/v2/")
            return str(response.headers["Location"]).removeprefix(base)

        upload = told(http.post("/v2/app/blobs/uploads/"), 202)
        upload = told(http.patch(upload, content=_BLOB[:1], headers={"Content-Range": "0-0"}), 202)
        upload = told(http.patch(upload, content=_BLOB, headers={"Content-Range": "0-1"}), 416)
        upload = told(http.get(upload), 204)
        blob = told(http.put(upload, params={"digest": _DIGEST}, content=_BLOB[1:]), 201)
        assert http.get(blob).content == _BLOB
        told(http.post("/v2/copy/blobs/uploads/", params={"mount": _DIGEST, "from": "app"}), 201)
        told(http.post("/v2/other/blobs/uploads/", params={"digest": _DIGEST}, content=_BLOB), 201)
        media_type = {"Content-Type": "application/vnd.oci.image.manifest.v1+json"}
        manifest = told(http.put("/v2/app/manifests/1", content=_MANIFEST, headers=media_type), 201)
        assert http.get(manifest).text == _MANIFEST
        # One that is no host goes into no header.
        odd = http.post("/v2/app/blobs/uploads/", headers={"Host": "a/b"}).headers["Location"]
        assert "a/b" not in odd


def test_a_client_that_names_no_host() -> None:
    """Where it listens is told, as an address is written."""
    request = Request({"type": "http", "scheme": "http", "path": "/v2/", "headers": [], "server": ("::1", 5001)})
    service = SimpleNamespace(settings=Settings(Path("data"), host="::1", port=5001))
    assert base_url(request, service) == "http://[::1]:5001"  # type: ignore[arg-type]
