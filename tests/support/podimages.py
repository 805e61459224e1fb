"""Images for pods: small, static, made without a network, and in several layers where that matters."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pagepool.digest import Digest
from pagepool.oci.mediatypes import OCI_CONFIG, OCI_LAYER_GZIP, OCI_MANIFEST
from tests.service.pushes import descriptor, push_blob, put_manifest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import httpx

_BUSYBOX = Path("/bin/busybox")
_TOOLS = ("cat", "dd", "ls", "rm", "sh", "sha256sum", "sleep", "stat", "touch", "wc")
_SLEEP = ("/bin/sleep", "infinity")


LARGE = bytes(range(256)) * 1024
"""What ``app/large`` of `push_workload` has: 64 blocks."""


def push_pause(http: httpx.Client, repository: str, reference: str) -> Digest:
    """Push an image for the sandboxes of pods: it sleeps."""
    return push_layers(http, repository, reference, [busybox()])


def push_workload(http: httpx.Client, repository: str, reference: str) -> Digest:
    """Push an image of three layers, with a shell and tools in ``/bin``; without a command it sleeps.

    ``app/kept`` is of the second layer, ``app/changed`` of the second and third, where ``app/removed`` is gone, and
    what ``app/opaque`` had before. ``app/link`` leads to ``kept``.
    """
    return push_layers(http, repository, reference, workload())


def workload() -> list[bytes]:
    """The layers of `push_workload`."""
    second = make_tar(
        {
            "app/kept": b"kept\n",
            "app/changed": b"before\n",
            "app/removed": b"removed\n",
            "app/opaque/before": b"before\n",
            "app/large": LARGE,
            "app/link": "kept",
        }
    )
    third = make_tar(
        {
            "app/changed": b"after\n",
            "app/.wh.removed": b"",
            "app/opaque/.wh..wh..opq": b"",
            "app/opaque/after": b"after\n",
        }
    )
    return [busybox(), second, third]


def push_layers(
    http: httpx.Client, repository: str, reference: str, layers: Sequence[bytes], command: Sequence[str] = _SLEEP
) -> Digest:
    """Push an image of some tars, compressed, the lowest first."""
    stored = [gzip.compress(layer, mtime=0) for layer in layers]
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": list(command), "Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [str(Digest.of(layer)) for layer in layers]},
        }
    ).encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(OCI_CONFIG, config),
        "layers": [descriptor(OCI_LAYER_GZIP, layer) for layer in stored],
    }
    for blob in (config, *stored):
        push_blob(http, repository, blob)
    return put_manifest(http, repository, reference, json.dumps(manifest).encode())


def make_tar(members: Mapping[str, bytes | str]) -> bytes:
    """A tar of files with this content, programs if they begin as such, and of symlinks where it is a string."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                archive.addfile(member)
            else:
                member.size, member.mode = len(content), 0o755 if content.startswith(b"\x7fELF") else 0o644
                archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def busybox() -> bytes:
    """A layer with a shell and tools in ``/bin``."""
    if not _BUSYBOX.exists():
        pytest.skip("needs busybox (apt-get install busybox-static)")
    links = dict.fromkeys((f"bin/{tool}" for tool in _TOOLS), "busybox")
    return make_tar({"bin/busybox": _BUSYBOX.read_bytes(), **links})
