"""What scripts and simple clients rely on, having been written for docker-registry."""

from __future__ import annotations

import http.client
import json
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from pagepool.digest import Digest
from tests.support.objects import object_service

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_MANIFEST = "application/vnd.oci.image.manifest.v1+json"


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[http.client.HTTPConnection]:
    with object_service(tmp_path / "data") as service:
        parts = urlsplit(service.url)
        assert parts.hostname is not None
        opened = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)
        try:
            yield opened
        finally:
            opened.close()


def _ask(
    connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None = None, media_type: str = ""
) -> tuple[int, dict[str, str]]:
    """The answer's status, and its headers with their names as they came."""
    connection.request(method, path, body, {"Content-Type": media_type} if media_type else {})
    answer = connection.getresponse()
    answer.read()
    return answer.status, dict(answer.getheaders())


def test_names_have_capitals(connection: http.client.HTTPConnection) -> None:
    """Seen as they are on the wire: `http.client` keeps them."""
    status, headers = _ask(connection, "GET", "/v2/")
    assert (status, headers["Docker-Distribution-Api-Version"]) == (200, "registry/2.0")

    content = b"{}"
    status, headers = _ask(connection, "POST", "/v2/app/blobs/uploads/")
    assert status == 202
    assert headers["Docker-Upload-Uuid"] in headers["Location"]
    assert headers["Range"] == "0-0"
    status, headers = _ask(connection, "PUT", f"{headers['Location']}?digest={Digest.of(content)}", content)
    assert (status, headers["Docker-Content-Digest"]) == (201, str(Digest.of(content)))

    blob = {"mediaType": "application/vnd.oci.empty.v1+json", "digest": str(Digest.of(content)), "size": 2}
    subject = {"mediaType": _MANIFEST, "digest": str(Digest.of(b"elsewhere")), "size": 9}
    manifest = {"schemaVersion": 2, "mediaType": _MANIFEST, "config": blob, "layers": [blob], "subject": subject}
    raw = json.dumps(manifest).encode()
    status, headers = _ask(connection, "PUT", "/v2/app/manifests/1", raw, _MANIFEST)
    assert (status, headers["Oci-Subject"]) == (201, subject["digest"])
    assert headers["Location"] == f"/v2/app/manifests/{Digest.of(raw)}"
    status, headers = _ask(connection, "HEAD", "/v2/app/manifests/1")
    assert (status, headers["Docker-Content-Digest"]) == (200, str(Digest.of(raw)))
    assert (headers["Content-Type"], headers["Etag"]) == (_MANIFEST, f'"{Digest.of(raw)}"')


@pytest.mark.parametrize("colon", [":", "%3A"])
def test_digest_behind_a_location_without_a_query(connection: http.client.HTTPConnection, colon: str) -> None:
    """As `curl -X PUT "$location&digest=$digest"`, which is right where the location has a query."""
    _, headers = _ask(connection, "POST", "/v2/app/blobs/uploads/")
    said = str(Digest.of(b"content")).replace(":", colon)
    status, headers = _ask(connection, "PUT", f"{headers['Location']}&digest={said}", b"content")
    assert (status, headers["Docker-Content-Digest"]) == (201, str(Digest.of(b"content")))
    for wrong in ("/v2/app/blobs/uploads/none&digest=sha256:0", "/v2/app/manifests/1&digest=sha256:0"):
        status, _ = _ask(connection, "PUT", wrong, b"content")
        assert status in {400, 404}


def test_each_header_once(connection: http.client.HTTPConnection) -> None:
    """Neither the length nor the version is said twice, with an error, too."""
    for path in ("/v2/", "/v2/none/manifests/1", "/v2/_catalog"):
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
        names = [name.lower() for name, _ in answer.getheaders()]
        assert len(names) == len(set(names)), names
        assert answer.getheader("content-length") == str(len(body))
