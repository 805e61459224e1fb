"""The library over real images: the files of `umoci unpack`, one copy in memory, and what happens without a service."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import pagepool
from pagepool.errors import UnreachableError
from pagepool_service.bench.clients import measure_clients
from tests.support import rootfs
from tests.support.cli import pagepool as program
from tests.support.server import running_service

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.server import Service
    from tests.support.umoci import Row

CLIENTS = int(os.environ.get("PAGEPOOL_CLIENTS", "16"))
"""Few by default: as many processes at once are felt by whatever runs beside."""
EVERY_IMAGE = bool(os.environ.get("PAGEPOOL_EVERY_IMAGE"))
"""By default two, which with that of the kernel's mount have all layers, or most files of one."""
_MIB = 1 << 20


@pytest.mark.parametrize("shared", [False, True], ids=["a pool of its own", "the service's pool"])
def test_every_file_is_what_umoci_unpacks(
    images: dict[str, Path],
    slim: Path,
    slim_nginx: Path,
    unpacked: Callable[[str], dict[bytes, Row]],
    service: Service,
    tmp_path: Path,
    shared: bool,
) -> None:
    """Content, mode, owner, times, xattrs, links and devices of every file of each image."""
    if shared and not EVERY_IMAGE:  # the way of the bytes is another: an image is enough for it
        images = {"slim": slim}
    elif not EVERY_IMAGE:
        images = {"slim-nginx": slim_nginx}
    for name, layout in images.items():
        program("push", "--quiet", layout, f"{name}:1", server=service.url)
    with pagepool.Client(service.url, directory=tmp_path / "client", shared=shared) as client:
        for name in images:
            with client.image(f"{name}:1").open() as root:
                assert rootfs.equal(rootfs.describe(root.fs), unpacked(name)) == {}, name


def test_a_client_goes_on_without_the_service(images: dict[str, Path], own_service: Service, tmp_path: Path) -> None:
    """What is in the pool can be read, what is not is a clear error, and all is well once the service is back."""
    service = own_service
    program("push", "--quiet", images["python-new"], "python:1", server=service.url)
    with pagepool.Client(service.url, directory=tmp_path / "client", shared=False) as client:
        image = client.image("python:1")
        with image.open() as root:
            release = root.read_bytes("/etc/os-release")
            service.kill()
            assert root.read_bytes("/etc/os-release") == release
            with pytest.raises(UnreachableError) as caught:
                root.read_bytes("/usr/bin/python3.11")
            assert caught.value.where == service.host
            with client.tree("python", image.tree).open() as again:
                assert again.read_bytes("/etc/os-release") == release
            service.start()
            assert len(root.read_bytes("/usr/bin/python3.11")) == root.stat("/usr/bin/python3.11").size


def test_an_image_that_was_filled_needs_no_service(
    slim: Path, unpacked: Callable[[str], dict[bytes, Row]], own_service: Service, tmp_path: Path
) -> None:
    service = own_service
    program("push", "--quiet", slim, "slim:1", server=service.url)
    with pagepool.Client(service.url, directory=tmp_path / "client", shared=False) as client:
        image = client.image("slim:1")
        done: list[int] = []
        assert image.fill(done.append) == sum(done)
        assert service.stop() == 0
        with image.open() as root:
            assert rootfs.equal(rootfs.describe(root.fs), unpacked("slim")) == {}


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory in memory."""
    if not Path("/dev/shm").is_dir():
        pytest.skip("needs /dev/shm")
    with tempfile.TemporaryDirectory(prefix="pagepool-test-", dir="/dev/shm") as name:
        yield Path(name)


def test_many_clients_hold_one_copy(slim_old: Path, slim_nginx: Path, memory: Path, tmp_path: Path) -> None:
    """Two overlapping images, all read by each process: the pages are there once, and more clients add little."""
    layouts = {"old": slim_old, "nginx": slim_nginx}
    names = [f"{name}:1" for name in layouts]
    with running_service(tmp_path / "data", "--workers", "2", "--cache-dir", str(memory / "pool")) as service:
        for name in names:
            program("push", "--quiet", layouts[name.removesuffix(":1")], name, server=service.url)
        unique = _fill(service.url, tmp_path / "client", names)
        found = measure_clients(service.url, tmp_path / "client", names, CLIENTS)
    assert 0.95 * unique <= found.pool <= 1.1 * unique, f"{found.pool / _MIB:.1f} MiB of {unique / _MIB:.1f} MiB"
    assert found.rest / CLIENTS < 2 * _MIB, "what a process has besides the pool's pages and its own heap"


def _fill(url: str, directory: Path, names: list[str]) -> int:
    """Bring images into the service's pool; bytes of the distinct contents of files in them."""
    sizes: dict[bytes, int] = {}
    with pagepool.Client(url, directory=directory) as client:
        for name in names:
            client.image(name).fill()
            fs, release = client.image(name).open_tree()
            infos = map(fs.tree.object, range(fs.tree.object_count))
            sizes |= {info.digest: info.size for info in infos}
            fs.close()
            release()
    return sum(sizes.values())


def test_the_package_loads_its_parts_when_they_are_used() -> None:
    """`import pagepool` is cheap, and knows the names it promises."""
    code = (
        "import sys, pagepool; assert 'httpx' not in sys.modules; "
        "assert {'Client', 'Image', 'Overlay', 'Rootfs'} <= set(dir(pagepool)); pagepool.Client"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)
