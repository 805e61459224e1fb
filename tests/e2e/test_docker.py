"""dockerd: load, push, pull and save, against an image that skopeo gave it."""

from __future__ import annotations

import json
import tarfile
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from pagepool.digest import Digest
from tests.e2e.stages import PULLED, await_settled, stages
from tests.support import skopeo
from tests.support.docker import Docker, running_docker
from tests.support.layouts import fetch_image, read_image
from tests.support.tools import ToolError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.layouts import Image
    from tests.support.server import Service


@pytest.fixture
def docker() -> Iterator[Docker]:
    """A daemon of its own."""
    with running_docker() as running:
        yield running


def identity(docker: Docker, name: str) -> str:
    """The image's ID, the digest of its configuration."""
    return docker("image", "inspect", "--format", "{{.Id}}", name).strip()


def check_saved(docker: Docker, name: str, expected: Image, work: Path) -> None:
    """What docker makes of the files that it has unpacked are the layers that it should have: the same bytes."""
    docker("save", "--output", work / "saved.tar", name)
    with tarfile.open(work / "saved.tar") as saved:
        (entry,) = json.loads(_member(saved, "manifest.json"))
        made = [str(Digest.of(_member(saved, layer))) for layer in entry["Layers"]]
    assert made == [str(one) for one in expected.diff_ids]


def _member(saved: tarfile.TarFile, name: str) -> bytes:
    found = saved.extractfile(name)
    assert found is not None
    return found.read()


def test_load_push_pull(slim: Path, service: Service, docker: Docker, tmp_path: Path) -> None:
    remote = f"{service.host}/docker/debian:1"
    skopeo.copy(f"oci:{slim}:latest", f"docker-archive:{tmp_path / 'image.tar'}:{remote}")
    docker("load", "--input", tmp_path / "image.tar")
    loaded = identity(docker, remote)
    said = docker("push", remote)
    pushed = fetch_image(service.url, "docker/debian", "1")
    assert pushed.config.digest == loaded
    assert pushed.manifest.digest in said
    assert pushed.diff_ids == read_image(slim).diff_ids
    for stage in stages(service, [("docker/debian", "1")]):
        assert fetch_image(service.url, "docker/debian", "1") == pushed, stage
        if stage in PULLED:
            docker("image", "rm", "--force", remote)
            docker("pull", "--quiet", remote)
            assert identity(docker, remote) == loaded, stage
    check_saved(docker, remote, pushed, tmp_path)


def test_pull_what_others_pushed(slim: Path, service: Service, docker: Docker, tmp_path: Path) -> None:
    source = read_image(slim)
    remote = f"{service.host}/oci/slim"
    skopeo.push(slim, f"{remote}:1")
    await_settled(service)
    docker("pull", "--quiet", f"{remote}@{source.manifest.digest}")
    assert identity(docker, f"{remote}@{source.manifest.digest}") == source.config.digest
    docker("tag", f"{remote}@{source.manifest.digest}", f"{remote}:again")
    check_saved(docker, f"{remote}:again", source, tmp_path)


def test_what_is_there_is_not_sent_again(slim: Path, service: Service, docker: Docker, tmp_path: Path) -> None:
    """After moby's own tests: pushed twice, under all tags, to another repository; pulled by all tags, and at once."""
    remote, other = f"{service.host}/docker/tags", f"{service.host}/docker/other/place"
    skopeo.copy(f"oci:{slim}:latest", f"docker-archive:{tmp_path / 'image.tar'}:{remote}:1")
    docker("load", "--input", tmp_path / "image.tar")
    docker("push", f"{remote}:1")
    again = docker("push", f"{remote}:1")
    layers = len(read_image(slim).diff_ids)
    assert again.count("Layer already exists") == layers
    tags = ("1", "2", "3")
    for tag in tags[1:]:
        docker("tag", f"{remote}:1", f"{remote}:{tag}")
    everything = docker("push", "--all-tags", remote)
    digest = fetch_image(service.url, "docker/tags", "1").manifest.digest
    assert all(f"{tag}: digest: {digest}" in everything for tag in tags)
    docker("tag", f"{remote}:1", f"{other}:1")
    assert docker("push", f"{other}:1").count("Mounted from docker/tags") == layers
    loaded = identity(docker, f"{remote}:1")
    docker("image", "rm", "--force", *(f"{remote}:{tag}" for tag in tags), f"{other}:1")
    with ThreadPoolExecutor(len(tags) + 1) as pool:
        pulls = [pool.submit(docker, "pull", "--quiet", f"{remote}:{tag}") for tag in tags]
        pulls.append(pool.submit(docker, "pull", "--quiet", "--all-tags", remote))
        for pull in pulls:
            pull.result()
    assert {identity(docker, f"{remote}:{tag}") for tag in tags} == {loaded}
    assert "Image is up to date" in docker("pull", f"{remote}:1")


def test_what_is_not_there(slim: Path, service: Service, docker: Docker) -> None:
    remote = f"{service.host}/docker/some"
    skopeo.push(slim, f"{remote}:1")
    for reference in (f"{remote}:none", f"{remote}@{Digest.of(b'none')}", f"{service.host}/docker/none:1"):
        with pytest.raises(ToolError, match=f"manifest for {reference} not found: manifest unknown"):
            docker("pull", reference)
    with pytest.raises(ToolError, match=r"repository .*/docker/none not found: name unknown"):
        docker("pull", "--all-tags", f"{service.host}/docker/none")
