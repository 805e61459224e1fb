"""Kernel mounts of real images: what is in them, that they share their pages, and what they survive."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pagepool.errors import BusyError
from pagepool.library import Client
from pagepool.node.client import KernelMountOptions
from pagepool.oci import Reference
from tests.support import umoci
from tests.support.cli import pagepool as program
from tests.support.nodeserver import left_over, running_node

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pagepool.library import Image
    from pagepool.node.client import KernelMount, NodeClient
    from tests.support.server import Service
    from tests.support.umoci import Row

ROOT = Path(__file__).parents[2]
EVERY_IMAGE = bool(os.environ.get("PAGEPOOL_EVERY_IMAGE"))
_COMPARED = ("numpy-new",)
"""With what the library's tests compare, all layers of the small set."""


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NodeClient]:
    """A node with an empty pool."""
    with running_node(tmp_path) as running:
        yield running


def push(service: Service, images: dict[str, Path], *names: str) -> None:
    """Push images of the set, as NAME:1."""
    for name in names:
        program("push", "--quiet", images[name], f"{name}:1", server=service.url)


def reference(name: str) -> Reference:
    """As they were pushed."""
    return Reference.parse(f"{name}:1")


def equal(expected: dict[bytes, Row], found: dict[bytes, Row]) -> dict[bytes, tuple[object, object]]:
    """What differs between what umoci unpacked and what is mounted. Times of directories that no layer has are free."""
    names = sorted(expected.keys() | found.keys())
    pairs = ((name, expected.get(name), found.get(name)) for name in names)
    return {name: (want, got) for name, want, got in pairs if _bare(want) != _bare(got, want)}


def _bare(row: Row | None, like: Row | None = None) -> Row | None:
    if row is None:
        return None
    model = row if like is None else like
    return row._replace(mtime_ns=None) if model.mtime_ns is None else row


def test_every_file_is_what_umoci_unpacks(
    images: dict[str, Path],
    unpacked: Callable[[str], dict[bytes, Row]],
    service: Service,
    node: NodeClient,
    tmp_path: Path,
) -> None:
    names = images if EVERY_IMAGE else [name for name in images if name in _COMPARED]
    push(service, images, *names)
    for name in names:
        point = tmp_path / name
        point.mkdir()
        with node.mount(service.url, reference(name), point):
            found = umoci.describe(point, time.time_ns())
        assert equal(unpacked(name), found) == {}, name
        assert not list(point.iterdir())
    assert left_over(node) == []


def test_what_is_written_is_the_containers_own(slim: Path, service: Service, node: NodeClient, tmp_path: Path) -> None:
    push(service, {"slim": slim}, "slim")
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    keep = KernelMountOptions(upper=tmp_path / "upper")
    with (
        node.mount(service.url, reference("slim"), first, keep),
        node.mount(service.url, reference("slim"), second, KernelMountOptions(temporary=True)),
    ):
        before = (second / "etc/passwd").read_bytes()
        (first / "etc/passwd").write_bytes(b"changed")
        (first / "new").write_bytes(b"x" * 10000)
        (second / "gone").write_bytes(b"y")
        assert (second / "etc/passwd").read_bytes() == before
        assert not (second / "new").exists()
    assert left_over(node) == []
    with node.mount(service.url, reference("slim"), first, keep):
        assert (first / "etc/passwd").read_bytes() == b"changed"
        assert (first / "new").read_bytes() == b"x" * 10000
    assert left_over(node) == []


def test_a_user_namespace_sees_the_same(
    slim: Path,
    unpacked: Callable[[str], dict[bytes, Row]],
    service: Service,
    node: NodeClient,
    tmp_path: Path,
) -> None:
    """All ids mapped to themselves: what is seen does not depend on who looks, but for what only root may see."""
    push(service, {"slim": slim}, "slim")
    point = tmp_path / "mnt"
    point.mkdir()
    program_text = (
        "import ctypes, pickle, sys, time; from pathlib import Path; from tests.support import umoci; "
        "assert not ctypes.CDLL(None).unshare(0x10000000); print(flush=True); sys.stdin.readline(); "  # CLONE_NEWUSER
        f"pickle.dump(umoci.describe(Path({str(point)!r}), time.time_ns()), sys.stdout.buffer)"
    )
    command = [sys.executable, "-c", program_text]
    with (
        node.mount(service.url, reference("slim"), point),
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process,
    ):
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{process.pid}/{name}").write_text("0 0 65536\n")
        output, _ = process.communicate(b"\n")
    assert process.returncode == 0
    found = pickle.loads(output)
    expected = {name: row._replace(xattrs=()) for name, row in unpacked("slim").items()}
    assert equal(expected, {name: row._replace(xattrs=()) for name, row in found.items()}) == {}


def mount_again(image: Image, point: Path, upper: Path) -> KernelMount:
    """Once no mount namespace has the mount before it: tests beside this one make some that copy all mounts."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return image.mount(point, backend="kernel", upper=upper, read_only=True)
        except BusyError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.1)


def test_a_program_mounts_by_the_kernel(
    images: dict[str, Path], service: Service, node: NodeClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pagepool.node.client.default_places", lambda: node.places)
    push(service, images, "debian-new")
    point = tmp_path / "mnt"
    point.mkdir()
    with Client(service.url, directory=tmp_path / "client") as client:
        image = client.image("debian-new:1")
        with image.mount(point, backend="kernel", upper=tmp_path / "upper") as mounted:
            assert mounted.path == point
            (point / "etc/hostname").write_text("ours\n")
            assert [mount["path"] for mount in node.mounts()] == [str(point)]
        assert not (point / "etc").exists()
        with mount_again(image, point, tmp_path / "upper"):
            assert (point / "etc/hostname").read_text() == "ours\n"
            with pytest.raises(OSError, match="Read-only"):
                (point / "etc/hostname").write_text("more")
