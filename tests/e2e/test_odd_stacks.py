"""Layers as hardly any builder writes them: the same files by umoci, the library, the kernel and FUSE, and pulled back.

`PAGEPOOL_ODD_ROUNDS` says how many stacks, `PAGEPOOL_ODD_SEED` which is the first.
"""

from __future__ import annotations

import os
import random
import stat
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import pagepool
from pagepool.errors import LayerInvalidError
from pagepool.oci import Reference
from tests.image.umoci import unpack, write_layout
from tests.support import oddlayers, rootfs, umoci
from tests.support.cli import pagepool as program
from tests.support.nodeserver import running_node
from tests.support.tools import require

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pagepool.node.client import NodeClient
    from tests.support.server import Service
    from tests.support.umoci import Row

ROUNDS = int(os.environ.get("PAGEPOOL_ODD_ROUNDS", "4"))
FIRST = int(os.environ.get("PAGEPOOL_ODD_SEED", "2002"))
_NEVER = sys.maxsize


@pytest.mark.timeout(600 + 20 * ROUNDS)
def test_they_are_the_same_every_way(service: Service, tmp_path: Path) -> None:
    require("umoci")
    compared = 0
    with running_node(tmp_path) as node, pagepool.Client(service.url, directory=tmp_path / "c", shared=False) as client:
        for seed in range(FIRST, FIRST + ROUNDS):
            with tempfile.TemporaryDirectory(dir=tmp_path) as directory:
                compared += check(seed, Path(directory), service, node, client)
    assert compared, "all were refused"


def check(seed: int, work: Path, service: Service, node: NodeClient, client: pagepool.Client) -> bool:
    """Compare one stack; False if umoci refused it. What we refuse it must refuse, too."""
    tars, forms = layers_of(seed)
    expected = unpacked(tars, work)
    stored = [(oddlayers.compress(tar, form), oddlayers.FORMATS[form]) for tar, form in zip(tars, forms, strict=True)]
    write_layout(work / "pushed", tars, stored)
    name = f"odd:{seed}"
    program("push", "--quiet", work / "pushed", name, server=service.url)
    program("pull", "--quiet", name, work / "pulled", server=service.url)
    assert blobs_of(work / "pulled") == blobs_of(work / "pushed"), seed
    try:
        image = client.image(name)
    except LayerInvalidError:
        if expected is None:
            return False
        raise
    with image.open() as root:
        found = rootfs.describe(root.fs)
    if expected is not None:
        assert rootfs.equal(kept(found), kept(expected)) == {}, seed
    (work / "mnt").mkdir()
    with node.mount(service.url, Reference.parse(name), work / "mnt"):
        assert rootfs.equal(umoci.describe(work / "mnt", _NEVER), shown(found)) == {}, seed
    with image.mount(work / "mnt", backend="fuse"):
        assert rootfs.equal(umoci.describe(work / "mnt", _NEVER), found) == {}, seed
    return expected is not None


def layers_of(seed: int) -> tuple[list[bytes], list[str]]:
    """The tars of a seed, the same one twice among them now and then, and how each is compressed."""
    chance = random.Random(seed)
    endings = (bytes(1024),) * 6 + (bytes(10240), bytes(512), b"", bytes(1024) + b"junk" * 200)
    tars = [oddlayers.encode_layer(layer, chance.choice(endings)) for layer in oddlayers.stack(seed)]
    if chance.random() < 0.1:
        tars.insert(chance.randrange(len(tars)), b"")
    if chance.random() < 0.2:
        tars.append(chance.choice(tars))
    return tars, [chance.choice(list(oddlayers.FORMATS)) for _ in tars]


def unpacked(tars: list[bytes], work: Path) -> dict[bytes, Row] | None:
    """What umoci makes of them; None if it refuses. Plain, since umoci does not know zstd."""
    started = time.time_ns() - 10**9
    if unpack(work, tars).returncode:
        return None
    return umoci.describe(work / "bundle" / "rootfs", started)


def kept(rows: Mapping[bytes, Row]) -> dict[bytes, Row]:
    """Without attributes that umoci leaves out: those of no bytes, as all do that read with Go, and overlayfs's own."""
    return {
        name: row._replace(
            xattrs=tuple(one for one in row.xattrs if one[1] and not one[0].startswith("trusted.overlay."))
        )
        for name, row in rows.items()
    }


def shown(rows: Mapping[bytes, Row]) -> dict[bytes, Row]:
    """Without character devices 0:0, which overlayfs takes for whiteouts."""
    return {name: row for name, row in rows.items() if (row.kind, row.content) != (stat.S_IFCHR, (0, 0))}


def blobs_of(layout: Path) -> dict[str, bytes]:
    """What is in a layout."""
    return {path.name: path.read_bytes() for path in (layout / "blobs" / "sha256").iterdir()}
