"""podman and buildah: what they push is theirs to pull again, bit for bit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.e2e.stages import PULLED, stages
from tests.support import umoci
from tests.support.layouts import Image, fetch_image, read_image
from tests.support.podman import Podman, own_storage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.server import Service

INSECURE = "--tls-verify=false"


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


def test_podman(
    images: dict[str, Path],
    unpacked: Callable[[str], dict[bytes, umoci.Row]],
    service: Service,
    podman: Podman,
    tmp_path: Path,
) -> None:
    source = read_image(images["debian-new"])
    remote = f"{service.host}/team/debian:1"
    layout = nameable(images["debian-new"], tmp_path)
    loaded = podman.podman("pull", "--quiet", f"oci:{layout}:latest").split()[-1]
    podman.podman("push", "--quiet", INSECURE, loaded, remote)
    pushed = fetch_image(service.url, "team/debian", "1")
    assert (pushed.config.digest, pushed.diff_ids) == (source.config.digest, source.diff_ids)
    for stage in stages(service, [("team/debian", "1")]):
        assert fetch_image(service.url, "team/debian", "1") == pushed, stage
        if stage in PULLED:
            podman.podman("rmi", "--force", loaded)
            assert podman.podman("pull", "--quiet", INSECURE, remote).split()[-1] == loaded, stage
    exported(podman, remote, tmp_path / "pulled")
    assert umoci.unpack(tmp_path / "pulled", "latest", tmp_path) == unpacked("debian-new")


def test_buildah(images: dict[str, Path], service: Service, podman: Podman, tmp_path: Path) -> None:
    remote = f"{service.host}/built:1"
    layout = nameable(images["debian-new"], tmp_path)
    container = podman.buildah("from", "--quiet", f"oci:{layout}:latest").strip()
    podman.buildah("config", "--label", "built=here", container)
    podman.buildah("copy", "--quiet", container, images["debian-new"] / "index.json", "/srv/index.json")
    identity = podman.buildah("commit", "--quiet", container, "built").strip()
    podman.buildah("push", "--quiet", INSECURE, "built", remote)
    pushed = fetch_image(service.url, "built", "1")
    assert pushed.diff_ids[:1] == read_image(images["debian-new"]).diff_ids
    for stage in stages(service, [("built", "1")]):
        assert fetch_image(service.url, "built", "1") == pushed, stage
        if stage in PULLED:
            podman.buildah("rmi", "--all", "--force")
            assert podman.buildah("pull", "--quiet", INSECURE, remote).strip() == identity, stage
