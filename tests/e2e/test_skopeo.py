"""skopeo: every layer format in, and the same bytes out, wherever the store keeps them by then."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.e2e.stages import await_settled, stages
from tests.support import skopeo, umoci
from tests.support.layouts import fetch_image, read_image

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.server import Service


@pytest.mark.parametrize("layer_format", skopeo.FORMATS)
def test_the_same_bytes_at_every_stage(
    images: dict[str, Path], service: Service, layer_format: str, tmp_path: Path
) -> None:
    layouts = {name: skopeo.convert(layout, layer_format, tmp_path) for name, layout in images.items()}
    pushed = {name: read_image(layout) for name, layout in layouts.items()}
    for name, layout in layouts.items():
        skopeo.copy(f"oci:{layout}:latest", f"docker://{service.host}/base/{name}:1")
    for stage in stages(service, [(f"base/{name}", "1") for name in images]):
        for name, image in pushed.items():
            assert fetch_image(service.url, f"base/{name}", "1") == image, (stage, name)


@pytest.mark.parametrize("layer_format", skopeo.FORMATS)
def test_the_same_files(
    images: dict[str, Path],
    unpacked: Callable[[str], dict[bytes, umoci.Row]],
    service: Service,
    layer_format: str,
    tmp_path: Path,
) -> None:
    layout = skopeo.convert(images["nginx-new"], layer_format, tmp_path)
    skopeo.copy(f"oci:{layout}:latest", f"docker://{service.host}/nginx:1")
    await_settled(service)
    # umoci of Debian 12 reads no zstd.
    options = skopeo.FORMATS[layer_format] if layer_format != "zstd" else ("--dest-compress-format", "gzip")
    skopeo.copy(f"docker://{service.host}/nginx:1", f"oci:{tmp_path / 'pulled'}:latest", *options)
    assert umoci.unpack(tmp_path / "pulled", "latest", tmp_path) == unpacked("nginx-new")


def test_one_copy_of_the_files_for_all_formats(images: dict[str, Path], service: Service, tmp_path: Path) -> None:
    before = None
    for layer_format in skopeo.FORMATS:
        layout = skopeo.convert(images["python-new"], layer_format, tmp_path)
        skopeo.copy(f"oci:{layout}:latest", f"docker://{service.host}/python/{layer_format}:1")
        total = await_settled(service)
        found = {name: total[name] for name in ("layers", "unique_bytes", "file_bytes", "plain_bytes")}
        assert before in (None, found)
        before = found
