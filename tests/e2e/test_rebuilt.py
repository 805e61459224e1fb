"""Layers that are kept once, as real clients compress them: not stored as they came, and pulled bit for bit."""

from __future__ import annotations

import shutil
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
import pytest

from tests.e2e.stages import await_settled
from tests.support import skopeo
from tests.support.docker import running_docker
from tests.support.layouts import fetch_image
from tests.support.podman import own_storage
from tests.support.server import Service, running_service

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.podman import Podman

INSECURE = "--tls-verify=false"
MOST = 12 << 20  # bytes of an image: what compressed it takes all of it several times, some at 14 MB a second


class Made(NamedTuple):
    """Two images of real files that buildah has made: one as an OCI layout, and the id of another one."""

    podman: Podman
    layout: Path
    other: str


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Made]:
    files, size = tmp_path / "files", 0
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py")):
        if (size := size + path.stat().st_size) > MOST:
            break
        target = files / path.relative_to(library)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    layout = tmp_path / "small"
    with own_storage() as podman:
        container = podman.buildah("from", "scratch").strip()
        podman.buildah("add", "--quiet", container, files, "/opt")
        podman.buildah("commit", "--quiet", container, f"oci:{layout}:latest")
        podman.buildah("add", "--quiet", container, files / "abc.py", "/")
        yield Made(podman, layout, podman.buildah("commit", "--quiet", container).strip())


def totals(service: Service) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{service.url}/v1/stats").raise_for_status().json()["total"]
    return found


def test_podman_and_buildah(made: Made, tmp_path: Path) -> None:
    """gzip and zstd; and as buildah pushes what it has made."""
    loaded: dict[str, str] = {}
    with running_service(tmp_path / "data", "--rebuild-compressed") as service:
        made.podman.buildah("push", "--quiet", INSECURE, made.other, f"{service.host}/app:buildah")
        pushed = {"buildah": fetch_image(service.url, "app", "buildah")}
        for way in ("gzip", "zstd"):
            with own_storage() as podman:  # one that has pushed a layer names that again
                loaded[way] = podman.podman("pull", "--quiet", f"oci:{made.layout}:latest").split()[-1]
                remote = f"{service.host}/app:{way}"
                podman.podman("push", "--quiet", INSECURE, "--compression-format", way, loaded[way], remote)
            pushed[way] = fetch_image(service.url, "app", way)
        layers = {layer.digest: layer.size for image in pushed.values() for layer in image.layers}
        assert len(layers) == sum(len(image.layers) for image in pushed.values())
        await_settled(service)
        found = totals(service)
        assert found["opaque_copies_bytes"] == 0
        assert found["rebuilt_blobs_bytes"] == sum(layers.values())
        assert found["disk_bytes"] < sum(layers.values())
        for tag, image in pushed.items():
            assert fetch_image(service.url, "app", tag) == image
        for way, identity in loaded.items():
            with own_storage() as podman:
                assert podman.podman("pull", "--quiet", INSECURE, f"{service.host}/app:{way}").split()[-1] == identity
    with running_service(tmp_path / "data", "--rebuilt-cache", "0") as service:  # it does not depend on the option
        for tag, image in pushed.items():
            assert fetch_image(service.url, "app", tag) == image


def test_docker(made: Made, tmp_path: Path) -> None:
    with running_service(tmp_path / "data", "--rebuild-compressed") as service, running_docker() as docker:
        remote = f"{service.host}/app:docker"
        skopeo.copy(f"oci:{made.layout}:latest", f"docker-archive:{tmp_path / 'image.tar'}:{remote}")
        docker("load", "--input", tmp_path / "image.tar")
        docker("push", remote)
        pushed = fetch_image(service.url, "app", "docker")
        await_settled(service)
        assert totals(service)["rebuilt_blobs_bytes"] == sum(layer.size for layer in pushed.layers)
        assert totals(service)["opaque_copies_bytes"] == 0
        docker("image", "rm", "--force", remote)
        docker("pull", "--quiet", remote)
        assert docker("image", "inspect", "--format", "{{.Id}}", remote).strip() == pushed.config.digest
        assert fetch_image(service.url, "app", "docker") == pushed
