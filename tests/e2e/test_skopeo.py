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

MEDIA_TYPES = {
    "gzip": "application/vnd.oci.image.layer.v1.tar+gzip",
    "zstd": "application/vnd.oci.image.layer.v1.tar+zstd",
    "plain": "application/vnd.oci.image.layer.v1.tar",
}


@pytest.mark.parametrize("layer_format", skopeo.FORMATS)
def test_the_same_bytes_at_every_stage(
    images: dict[str, Path], slim_nginx: Path, service: Service, layer_format: str, tmp_path: Path
) -> None:
    # The tars are the same; one image is enough for what is around them. And of five, three have all layers.
    names = ("debian-old", "numpy-new", "nginx-new") if layer_format == "gzip" else ()
    images = {name: images[name] for name in names} | {"slim-nginx": slim_nginx}
    layouts = {name: skopeo.convert(layout, layer_format, tmp_path) for name, layout in images.items()}
    pushed = {name: read_image(layout) for name, layout in layouts.items()}
    for name, layout in layouts.items():
        assert {layer.media_type for layer in pushed[name].layers} == {MEDIA_TYPES[layer_format]}
        skopeo.push(layout, f"{service.host}/base/{name}:1")
    for stage in stages(service, [(f"base/{name}", "1") for name in images]):
        for name, image in pushed.items():
            assert fetch_image(service.url, f"base/{name}", "1") == image, (stage, name)
    skopeo.pull(f"{service.host}/base/slim-nginx:1", tmp_path / "pulled")
    assert read_image(tmp_path / "pulled") == pushed["slim-nginx"]


def test_the_same_files(
    slim: Path,
    unpacked: Callable[[str], dict[bytes, umoci.Row]],
    service: Service,
    tmp_path: Path,
) -> None:
    """What umoci unpacks of what was pulled. That of the other formats is of equal bytes, which are compared above."""
    skopeo.push(slim, f"{service.host}/slim:1")
    await_settled(service)
    skopeo.pull(f"{service.host}/slim:1", tmp_path / "pulled")
    assert read_image(tmp_path / "pulled") == read_image(slim)
    assert umoci.unpack(tmp_path / "pulled", "latest", tmp_path) == unpacked("slim")


def test_one_copy_of_the_files_for_all_formats(slim: Path, own_service: Service, tmp_path: Path) -> None:
    service = own_service
    before = None
    for layer_format in skopeo.FORMATS:
        layout = skopeo.convert(slim, layer_format, tmp_path)
        skopeo.push(layout, f"{service.host}/debian/{layer_format}:1")
        total = await_settled(service)
        found = {name: total[name] for name in ("layers", "unique_bytes", "file_bytes", "plain_bytes")}
        assert before in (None, found)
        before = found
