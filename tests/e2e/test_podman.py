"""podman and buildah: what they push is theirs to pull again, bit for bit."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from tests.e2e.stages import PULLED, stages
from tests.support.layouts import Image, fetch_image, read_image
from tests.support.podman import Podman, own_storage
from tests.support.server import running_service

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.server import Service

INSECURE = "--tls-verify=false"
_PARTIAL = """\
[storage]
driver = "overlay"
graphroot = "{0}/storage"
runroot = "{0}/run"
[storage.options]
pull_options = {{enable_partial_images = "true"}}
"""


@pytest.fixture
def podman() -> Iterator[Podman]:
    """A storage of its own."""
    with own_storage() as podman:
        yield podman


def exported(podman: Podman, name: str, layout: Path) -> Image:
    """Write an image of the storage into a layout."""
    podman.podman("push", "--quiet", "--format", "oci", name, f"oci:{layout}:latest")
    return read_image(layout)


def nameable(layout: Path, directory: Path) -> Path:
    """Another path of a layout: podman makes a name of it, in which a directory `.cache` cannot be."""
    link = directory / layout.name
    link.symlink_to(layout)
    return link


def test_podman(slim: Path, service: Service, podman: Podman, tmp_path: Path) -> None:
    source = read_image(slim)
    remote = f"{service.host}/team/debian:1"
    layout = nameable(slim, tmp_path)
    loaded = podman.podman("pull", "--quiet", f"oci:{layout}:latest").split()[-1]
    podman.podman("push", "--quiet", INSECURE, loaded, remote)
    pushed = fetch_image(service.url, "team/debian", "1")
    assert (pushed.config.digest, pushed.diff_ids) == (source.config.digest, source.diff_ids)
    for stage in stages(service, [("team/debian", "1")]):
        assert fetch_image(service.url, "team/debian", "1") == pushed, stage
        if stage in PULLED:
            podman.podman("rmi", "--force", loaded)
            assert podman.podman("pull", "--quiet", INSECURE, remote).split()[-1] == loaded, stage
    # Made of the files that it has unpacked.
    assert exported(podman, remote, tmp_path / "pulled").diff_ids == source.diff_ids


def test_buildah(slim: Path, service: Service, podman: Podman, tmp_path: Path) -> None:
    remote = f"{service.host}/built:1"
    layout = nameable(slim, tmp_path)
    container = podman.buildah("from", "--quiet", f"oci:{layout}:latest").strip()
    podman.buildah("config", "--label", "built=here", container)
    podman.buildah("copy", "--quiet", container, slim / "index.json", "/srv/index.json")
    identity = podman.buildah("commit", "--quiet", container, "built").strip()
    podman.buildah("push", "--quiet", INSECURE, "built", remote)
    pushed = fetch_image(service.url, "built", "1")
    assert pushed.diff_ids[:1] == read_image(slim).diff_ids
    for stage in stages(service, [("built", "1")]):
        assert fetch_image(service.url, "built", "1") == pushed, stage
        if stage in PULLED:
            podman.buildah("rmi", "--all", "--force")
            assert podman.buildah("pull", "--quiet", INSECURE, remote).strip() == identity, stage


def test_podman_pulls_the_parts_that_it_lacks(podman: Podman, tmp_path: Path) -> None:
    """Layers in zstd:chunked: the second image costs what is new in it, asked for in ranges."""
    if podman.driver != "overlay":
        pytest.skip("needs overlay mounts: podman pulls parts into them only")
    configuration = tmp_path / "storage.conf"
    configuration.write_text(_PARTIAL.format(podman.directory))
    environment = {"CONTAINERS_STORAGE_CONF": str(configuration)}
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(200):
        (tree / f"{number:03}").write_bytes(os.urandom(10_000))
    with running_service(tmp_path / "data", "--access-log", "--log-format", "json") as service:
        for tag in ("1", "2"):
            for number in (50, 60, 150):
                (tree / f"{number:03}").write_bytes(os.urandom(10_000))
            push_tree(podman, tree, f"{service.host}/parts:{tag}")
        podman.podman("rmi", "--all", "--force")
        sent: list[int] = []
        for tag in ("1", "2"):
            said = podman.debug(environment, "pull", INSECURE, f"{service.host}/parts:{tag}")
            assert "Retrieved partial blob" in said, said
            sent.append(sum(bytes_of_blobs(service)) - sum(sent))
    assert sent[0] > 2_000_000
    assert sent[1] < 200_000
    expected = {path.name: path.read_bytes() for path in tree.iterdir()}
    assert expected in [
        {path.name: path.read_bytes() for path in layer.iterdir()}
        for layer in podman.directory.glob("storage/overlay/*/diff/tree")
    ]


def push_tree(podman: Podman, tree: Path, name: str) -> None:
    """Push an image of one layer, and forget the container that it was made in."""
    container = podman.buildah("from", "--quiet", "scratch").strip()
    podman.buildah("copy", "--quiet", container, tree, "/tree")
    podman.buildah("commit", "--quiet", container, name)
    podman.buildah("rm", container)
    podman.podman("push", "--quiet", INSECURE, "--format", "oci", "--compression-format", "zstd:chunked", name)


def bytes_of_blobs(service: Service) -> list[int]:
    """How long the answers were with which blobs were read."""
    lines = [json.loads(line) for line in service.log().splitlines() if line.startswith("{")]
    blobs = [line for line in lines if line.get("route") == "/v2/{name}/blobs/{digest}" and line["method"] == "GET"]
    return [line["sent_bytes"] for line in blobs]
