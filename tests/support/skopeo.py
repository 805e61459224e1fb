"""skopeo: copies images between registries, layouts and archives, in any layer format."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.layouts import write_plain
from tests.support.tools import require, run

if TYPE_CHECKING:
    from pathlib import Path

FORMATS = ("gzip", "zstd", "plain")
"""Formats of layers. Ours come as gzip, as buildah made them."""


def copy(source: str, destination: str, *options: str) -> None:
    """Copy an image from one transport and name to another; it may become another image on the way."""
    require("skopeo", root=False)
    tls = ("--src-tls-verify=false", "--dest-tls-verify=false")
    run(["skopeo", "copy", "--quiet", *tls, *options, source, destination])


def push(layout: Path, destination: str) -> None:
    """Push a layout's image, tag ``latest``, to ``host:port/name:tag``, as it is.

    Left alone, skopeo would compress plain layers, and replace a layer by one that it remembers to be the same tar.
    """
    copy(f"oci:{layout}:latest", f"docker://{destination}", "--preserve-digests")


def pull(source: str, layout: Path) -> None:
    """Pull an image from ``host:port/name:tag`` into a layout, tag ``latest``, as it is."""
    copy(f"docker://{source}", f"oci:{layout}:latest", "--preserve-digests")


def convert(layout: Path, layer_format: str, work: Path) -> Path:
    """A layout with the same image, tag ``latest``, and its layers in another format."""
    target = work / f"{layout.name}-{layer_format}"
    if layer_format == "gzip":
        return layout
    if layer_format == "plain":
        write_plain(layout, target)
    else:
        copy(f"oci:{layout}:latest", f"oci:{target}:latest", "--dest-compress-format", layer_format)
    return target
