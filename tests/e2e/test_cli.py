"""`pagepool push` and `pull`, against the service and against what skopeo makes of the same files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.e2e.stages import stages
from tests.support import skopeo, umoci
from tests.support.cli import pagepool
from tests.support.layouts import fetch_image, read_image

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.server import Service


def test_push_and_pull(
    slim: Path,
    unpacked: Callable[[str], dict[bytes, umoci.Row]],
    service: Service,
    tmp_path: Path,
) -> None:
    source = read_image(slim)
    pagepool("push", "--quiet", slim, "apps/slim:1", server=service.url)
    for stage in stages(service, [("apps/slim", "1")]):
        assert fetch_image(service.url, "apps/slim", "1") == source, stage
        pagepool("pull", "--quiet", "apps/slim:1", tmp_path / stage, server=service.url)
        assert read_image(tmp_path / stage) == source, stage
    skopeo.copy(f"oci:{tmp_path / 'restarted'}", f"oci:{tmp_path / 'tagged'}:latest")
    assert umoci.unpack(tmp_path / "tagged", "latest", tmp_path) == unpacked("slim")


def test_pushed_is_ready(slim: Path, service: Service) -> None:
    """By default, push waits: what it has pushed can be looked into at once."""
    pagepool("push", "--quiet", slim, "debian:old", server=service.url)
    image = json.loads(pagepool("inspect", "--json", "debian:old", server=service.url))
    assert image["state"] == "ready"
    listed = pagepool("ls", "debian:old:/etc", server=service.url)
    assert "os-release" in listed


@pytest.mark.parametrize("archive", ["oci-archive", "docker-archive"])
def test_archives(slim_nginx: Path, service: Service, archive: str, tmp_path: Path) -> None:
    skopeo.copy(f"oci:{slim_nginx}:latest", f"{archive}:{tmp_path / 'in.tar'}:nginx:latest")
    pagepool("push", "--quiet", tmp_path / "in.tar", "nginx:1", server=service.url)
    pushed = fetch_image(service.url, "nginx", "1")
    assert pushed.diff_ids == read_image(slim_nginx).diff_ids
    pagepool("pull", "--quiet", "--format", archive, "nginx:1", tmp_path / "out.tar", server=service.url)
    skopeo.copy(f"{archive}:{tmp_path / 'out.tar'}", f"oci:{tmp_path / 'out'}:latest")
    assert read_image(tmp_path / "out").diff_ids == pushed.diff_ids
