"""Eight clients push overlapping images at once, to two workers: everything is whole, and nothing is kept twice."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from tests.e2e.stages import await_settled
from tests.support import skopeo
from tests.support.cli import pagepool
from tests.support.layouts import fetch_image, read_image
from tests.support.server import Service, running_service

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

COUNTED = ("blobs", "blob_bytes", "layers", "manifests", "tags", "plain_bytes", "file_bytes", "unique_bytes", "extents")
"""What must not depend on who came first."""

Push = tuple["Path", str]


def push(service: Service, one: Push) -> None:
    layout, repository = one
    skopeo.push(layout, f"{service.host}/{repository}:1")


def settled_after(data: Path, pushes: Sequence[Push], clients: int) -> dict[str, Any]:
    """Push to a service of its own, check what several have pushed at once, and return the counted totals."""
    with running_service(data, "--workers", "2") as service:
        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(lambda one: push(service, one), pushes))
        total = await_settled(service)
        if clients > 1:
            for layout, repository in pushes:
                assert fetch_image(service.url, repository, "1") == read_image(layout), repository
            pagepool("fsck", "--data", data)  # beside the running service
    if clients > 1:
        pagepool("fsck", "--data", data)
    return {name: total[name] for name in COUNTED}


def test_eight_clients(images: dict[str, Path], slim_old: Path, slim: Path, slim_nginx: Path, tmp_path: Path) -> None:
    plain, zstd = (skopeo.convert(slim, layer_format, tmp_path) for layer_format in ("plain", "zstd"))
    pushes = [(slim_old, "app/old"), (slim, "app/new"), (images["debian-new"], "app/whole"), (slim_nginx, "app/nginx")]
    pushes += [(slim, "other/new"), (plain, "app/plain"), (zstd, "app/zstd"), (slim_nginx, "other/nginx")]
    assert len(pushes) == 8
    together = settled_after(tmp_path / "together", pushes, len(pushes))
    in_turn = settled_after(tmp_path / "in-turn", pushes, 1)
    assert together == in_turn
