"""A service with something to see, and a browser."""

from __future__ import annotations

import json
import random
import time
from typing import TYPE_CHECKING

import httpx
import pytest

from pagepool.digest import Digest
from pagepool.oci.mediatypes import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST
from pagepool_service.seeing.history import History
from tests.service.pushes import begin_upload, descriptor, index_of, push_blob, push_image, put_manifest, tar_layer
from tests.service.test_images_api import settled
from tests.support.browser import running_browser
from tests.support.server import Service, running_service

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser

EVIL = "<img src=x onerror=\"document.title='hacked'\"><script>document.title='hacked'</script>"
_NOISE = random.Random(3)
SHARED = {f"usr/lib/part{number}": _NOISE.randbytes(150_000) for number in range(4)}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One for all tests of a module: as long as it is there this process has an event loop that runs."""
    with running_browser() as running:
        yield running


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Images that overlap, one whose names are all hostile, one that cannot be mounted, an open upload, an hour ago."""
    data = tmp_path_factory.mktemp("page") / "data"
    data.mkdir()
    history = History(data)
    now = int(time.time())
    for number in range(360, 0, -1):
        done = 360 - number
        sample: dict[str, int | None] = {
            "hits": 90 * done,
            "misses": 10 * done,
            "cache_used": 1 << 20,
            "cache_budget": 1 << 30,
        }
        history.add(now - 10 * number, sample | {"saved_bytes": 5 << 20, "requests": 50 * done, "disk_bytes": 1 << 30})
    with running_service(data) as running, httpx.Client(base_url=running.url, timeout=30) as http:
        push_image(http, "team/base", "1", SHARED)
        push_image(http, "team/app", "1", {**SHARED, "srv/model": _NOISE.randbytes(300_000)})
        _push(http, "evil/image", "1", {f"etc/{EVIL}": b"x" * 70_000, **SHARED}, os=EVIL, architecture=EVIL)
        _push(http, "evil/broken", "1", {f"../{EVIL}": b"x"}, os="linux", architecture="amd64")
        manifest = http.get("/v2/team/base/manifests/1").content
        entry = {"platform": {"os": EVIL, "architecture": "amd64"}}
        index = json.loads(index_of(manifest))
        index["manifests"][0] |= entry
        put_manifest(http, "team/base", "index", json.dumps(index).encode(), index["mediaType"])
        for name in ("team/base", "team/app", "evil/image"):
            settled(http, f"/v1/{name}/images/1")
            assert http.get(f"/v1/{name}/images/1/tree").status_code == 200
        settled(http, "/v1/evil/broken/images/1")
        assert http.patch(begin_upload(http, "team/coming"), content=b"u" * 70_000).status_code == 202
        yield running


def _push(http: httpx.Client, repository: str, tag: str, files: dict[str, bytes], **platform: str) -> None:
    """Push an image of one plain layer, for any platform."""
    layer = tar_layer(files)
    rootfs = {"type": "layers", "diff_ids": [str(Digest.of(layer))]}
    config = json.dumps({**platform, "config": {}, "rootfs": rootfs}).encode()
    for blob in (config, layer):
        push_blob(http, repository, blob)
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(OCI_CONFIG, config),
        "layers": [descriptor(OCI_LAYER, layer)],
        "annotations": {"org.opencontainers.image.title": EVIL},
    }
    put_manifest(http, repository, tag, json.dumps(manifest).encode())
