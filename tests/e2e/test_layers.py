"""Kernel mounts of the first layers of an image: what is in them, and what becomes of what is written over them."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from pagepool.digest import Digest
from pagepool.errors import InvalidError, ManifestUnknownError, UnsupportedError
from pagepool.library import Client
from pagepool.node.client import KernelMountOptions
from pagepool.node.worker import WorkerOptions
from pagepool.oci import Reference
from tests.image.stacks import STACKS
from tests.image.umoci import unpack
from tests.service.pushes import push_layers, tar_layer
from tests.service.test_images_api import settled
from tests.service.test_leases import delete_all
from tests.support import rootfs, umoci
from tests.support.nodeserver import left_over, running_node
from tests.support.tools import require

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pagepool.node.client import NodeClient
    from tests.support.server import Service

_NEVER = sys.maxsize
_STACKS = ("whiteouts reach two layers down", "links to what is no file, over layers")
_LARGE = b"large" * 100_000
_TARS = [tar_layer({"one": b"1" * 5000, "both": b"first"}), tar_layer({"two": b"2" * 5000, "both": _LARGE})]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeClient]:
    """A node that fetches nothing that is not read."""
    with running_node(tmp_path_factory.mktemp("node"), WorkerOptions(fill=False, profiles=False)) as running:
        yield running


def push(service: Service, name: str, tars: Sequence[bytes]) -> Reference:
    """Push an image of these layers, and wait until they are read."""
    with httpx.Client(base_url=service.url, timeout=60) as http:
        push_layers(http, name, "1", tars)
        settled(http, f"/v1/{name}/images/1")
    return Reference.parse(f"{name}:1")


@pytest.mark.parametrize("stack", _STACKS)
def test_every_file_is_what_umoci_unpacks(service: Service, node: NodeClient, tmp_path: Path, stack: str) -> None:
    """Of as many layers."""
    require("umoci")
    tars, at = STACKS[stack], tmp_path / "at"
    at.mkdir()
    reference = push(service, f"stack{_STACKS.index(stack)}", tars)
    trees = set()
    for layers in (*range(1, len(tars) + 1), None):
        work = tmp_path / str(layers)
        work.mkdir()
        started_ns = time.time_ns() - 10**9
        assert not unpack(work, tars[:layers]).returncode
        expected = umoci.describe(work / "bundle" / "rootfs", started_ns)
        with node.mount(service.url, reference, at, KernelMountOptions(layers=layers)) as mounted:
            assert rootfs.equal(umoci.describe(at, _NEVER), expected) == {}, layers
            assert [one["layers"] for one in node.mounts()] == [mounted.fields["layers"]] == [layers]
            trees.add(mounted.fields["tree"])
    assert len(trees) == len(tars)
    assert left_over(node) == []


def test_what_is_written_over_them_is_not_the_images(service: Service, node: NodeClient, tmp_path: Path) -> None:
    """Committed as such it would have layers that it was not written over. It is that of an image of these layers."""
    at, upper = tmp_path / "at", tmp_path / "upper"
    at.mkdir()
    whole, base = push(service, "written", _TARS), push(service, "base", _TARS[:1])
    with node.mount(service.url, whole, at, KernelMountOptions(upper=upper, layers=1, config=True)) as mounted:
        (at / "both").write_text("changed")
        assert '"diff_ids"' in mounted.fields["config"]
    with Client(service.url, directory=tmp_path / "client") as client, client.upper(upper) as written:
        assert [change.path for change in written.changes()] == [b"both"]
        with pytest.raises(ManifestUnknownError):
            written.parent()
    with pytest.raises(InvalidError, match="of another image, written"):
        node.mount(service.url, whole, at, KernelMountOptions(upper=upper))
    for reference, layers in ((base, None), (whole, 1)):
        with node.mount(service.url, reference, at, KernelMountOptions(upper=upper, layers=layers)):
            assert (at / "both").read_text() == "changed"
            assert not (at / "two").exists()
    assert left_over(node) == []


def test_they_outlive_the_image(service: Service, node: NodeClient, tmp_path: Path) -> None:
    """What is mounted is leased, and nothing else of the image is there any more."""
    at, last = tmp_path / "at", b"last" * 100
    at.mkdir()
    reference = push(service, "gone", [*_TARS, tar_layer({"last": last})])
    with (
        node.mount(service.url, reference, at, KernelMountOptions(layers=2)),
        httpx.Client(base_url=service.url, timeout=60) as http,
    ):
        deadline = time.monotonic() + 60
        while not node.mounts()[0]["lease"]:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        said = http.get("/v1/gone/images/1/tree").json()
        gone = f"/v1/gone/trees/{said['tree']}/objects/{Digest.of(last, 'blake3')}"
        await_status(http, gone, 200)
        delete_all(http, "gone", said["image"])
        await_status(http, gone, 404)  # who was asked for something a moment ago looks again by then
        assert (at / "both").read_bytes() == _LARGE
    assert left_over(node) == []


def await_status(http: httpx.Client, path: str, status: int) -> None:
    """Ask all workers, until they say so."""
    deadline = time.monotonic() + 60
    while {http.get(path, headers={"Connection": "close"}).status_code for _ in range(8)} != {status}:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_layers_that_it_does_not_have(service: Service, node: NodeClient, tmp_path: Path) -> None:
    """Nothing is mounted."""
    at = tmp_path / "at"
    at.mkdir()
    reference = push(service, "few", _TARS)
    for layers in (0, 3, -1):
        with pytest.raises(UnsupportedError, match=repr(str(layers))):
            node.mount(service.url, reference, at, KernelMountOptions(layers=layers))
    assert left_over(node) == []
