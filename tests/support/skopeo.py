"""skopeo: copies images between registries, layouts and archives, in any layer format."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.tools import require, run

if TYPE_CHECKING:
    from pathlib import Path

FORMATS = {
    "gzip": (),
    "zstd": ("--dest-compress-format", "zstd"),
    "plain": ("--dest-decompress",),
}
"""Layer format -> how skopeo writes a layout with it; ours come as gzip, and stay as they are."""


def copy(source: str, destination: str, *options: str) -> None:
    """Copy an image from one transport and name to another."""
    require("skopeo", root=False)
    tls = ("--src-tls-verify=false", "--dest-tls-verify=false")
    run(["skopeo", "copy", "--quiet", *tls, *options, source, destination])


def convert(layout: Path, layer_format: str, work: Path) -> Path:
    """A layout with the same image, tag ``latest``, and its layers in another format."""
    if layer_format == "gzip":
        return layout
    target = work / f"{layout.name}-{layer_format}"
    copy(f"oci:{layout}:latest", f"oci:{target}:latest", *FORMATS[layer_format])
    return target
