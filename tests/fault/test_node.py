"""What kernel mounts survive: a service that is gone, wrong bytes, a pool that is too small, mounting without end.

`PAGEPOOL_MOUNT_ROUNDS` says how often it is mounted and unmounted.
"""

from __future__ import annotations

import contextlib
import errno
import http.server
import mmap
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import httpx
import pytest

from pagepool.errors import PoolFullError
from pagepool.extents import Role
from pagepool.node.client import KernelMountOptions
from pagepool.node.worker import WorkerOptions
from pagepool.oci import Reference
from pagepool_service.store.environment import Table
from tests.fault.conftest import QUICK
from tests.faults import flip_record, records
from tests.service.pushes import push_image
from tests.support.nodeserver import left_over, running_node
from tests.support.server import Service, running_service

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pagepool.node.client import NodeClient

LAZILY = KernelMountOptions(fill=False)
ROUNDS = int(os.environ.get("PAGEPOOL_MOUNT_ROUNDS", "100"))


def contents(seed: int, count: int = 40, size: int = 20_000) -> dict[str, bytes]:
    """Files that do not compress."""
    randomness = random.Random(seed)
    return {f"d{number % 5}/f{number}": randomness.randbytes(size + number) for number in range(count)}


def push(service: Service, name: str, files: dict[str, bytes]) -> Reference:
    """Push an image of these files."""
    with httpx.Client(base_url=service.url, timeout=60) as http:
        push_image(http, name, "1", files)
    return Reference.parse(f"{name}:1")


def point(tmp_path: Path, name: str = "mnt") -> Path:
    """A directory to mount upon."""
    path = tmp_path / name
    path.mkdir()
    return path


def test_a_service_that_is_gone_is_an_io_error_and_heals(service: Service, node: NodeClient, tmp_path: Path) -> None:
    files = contents(1) | {"large": random.Random(9).randbytes(3 << 20)}
    at = point(tmp_path)
    with node.mount(service.url, push(service, "gone", files), at, LAZILY):
        assert (at / "d0/f0").read_bytes() == files["d0/f0"]
        service.stop()
        assert (at / "d0/f0").read_bytes() == files["d0/f0"]
        for name in ("d1/f1", "large"):
            assert _outcome(at / name, files[name]) == errno.EIO, name
        assert (at / "d1/f1").stat().st_size == len(files["d1/f1"])
        service.start()
        for name, data in files.items():
            assert (at / name).read_bytes() == data, name
    log = node.places.log.read_text()
    assert "cannot be fetched" in log


class _Unavailable(http.server.BaseHTTPRequestHandler):
    """What a proxy answers without its service, or one that lets nobody ask for a while."""

    status = 503

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.send_header("Retry-After", "86400")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def _unavailable(service: Service, status: int | None) -> Iterator[None]:
    """A service that was stopped, and if a status is given, somebody in its place who answers with that."""
    service.stop()
    if status is None:
        yield
        return
    host, port = service.host.split(":")
    handler = type("Handler", (_Unavailable,), {"status": status})
    with http.server.ThreadingHTTPServer((host, int(port)), handler) as proxy:
        thread = threading.Thread(target=proxy.serve_forever)
        thread.start()
        try:
            yield
        finally:
            proxy.shutdown()
            thread.join()


@pytest.mark.parametrize("status", [None, 429, 503])
def test_an_image_that_is_here_is_mounted_without_its_service(
    service: Service, node: NodeClient, tmp_path: Path, status: int | None
) -> None:
    files = contents(2)
    at = point(tmp_path)
    reference = push(service, "here", files)
    with node.mount(service.url, reference, at, KernelMountOptions(eager=True)):
        assert [mount["local"] for mount in node.mounts()] == [True]
    with _unavailable(service, status), node.mount(service.url, reference, at) as mounted:
        assert mounted.fields["offline"]
        assert {name: (at / name).read_bytes() for name in files} == files


def test_wrong_bytes_are_an_io_error_and_heal(tmp_path: Path) -> None:
    files = contents(3)
    data, good = tmp_path / "data", tmp_path / "good"
    with running_service(data, "--workers", "1") as service:
        reference = push(service, "damaged", files)
        with running_node(tmp_path, QUICK) as node:
            at = point(tmp_path)
            with node.mount(service.url, reference, at, LAZILY):
                service.stop()
                shutil.copytree(data, good)
                for record in records(data, Table.FRAMES):
                    flip_record(data, record, -40)
                service.start()
                outcomes = {name: _outcome(at / name, files[name]) for name in files}
                assert set(outcomes.values()) == {errno.EIO}
                service.stop()
                shutil.rmtree(data)
                good.rename(data)
                service.start()
                assert {name: _outcome(at / name, files[name]) for name in files} == dict.fromkeys(files, 0)
            assert "extent" in node.places.log.read_text()


def test_damage_keeps_nothing_else_from_being_filled(tmp_path: Path) -> None:
    files = contents(33, 12, 1 << 20)
    data, at = tmp_path / "data", point(tmp_path)
    with running_service(data, "--workers", "1") as service:
        reference = push(service, "partly", files)
        with running_node(tmp_path, replace(QUICK, fill=True)) as node, node.mount(service.url, reference, at):
            service.stop()  # the container has some seconds to itself before the rest of its image is fetched
            of_files = next(record for record in records(data, Table.FRAMES) if record.value[1] == Role.FILES)
            flip_record(data, of_files, -40)
            service.start()
            deadline = time.monotonic() + 60
            while (found := node.mounts()[0])["filling"]:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert found["missing_objects"] == 1
            assert "corrupt" in found["last_error"]


def _outcome(path: Path, expected: bytes) -> int:
    """0 for the right bytes, an errno, or -1 for wrong ones."""
    try:
        return 0 if path.read_bytes() == expected else -1
    except OSError as error:
        return error.errno or -1


def test_many_mounts_have_the_right_contents(service: Service, node: NodeClient, tmp_path: Path) -> None:
    shared = contents(4, 6)
    images = [contents(100 + number, 4) | shared for number in range(6)]
    references = [push(service, f"many{number}", files) for number, files in enumerate(images)]
    at = point(tmp_path)
    for turn in range(ROUNDS):
        files = images[turn % len(images)]
        wish = KernelMountOptions(temporary=bool(turn % 2), fill=False)
        with node.mount(service.url, references[turn % len(images)], at, wish):
            found = {str(path.relative_to(at)): path.read_bytes() for path in at.rglob("*") if path.is_file()}
            assert found == files, turn
    assert left_over(node) == []


def test_a_pool_that_is_too_small_breaks_nothing_in_use(service: Service, tmp_path: Path) -> None:
    first, second = contents(5, 40, 60_000), contents(6, 40, 60_000)
    references = push(service, "first", first), push(service, "second", second)
    options = WorkerOptions(budget=1 << 20, timeout_s=10.0, fill=True, profiles=False)
    with running_node(tmp_path, options) as node:
        here, there = point(tmp_path, "first"), point(tmp_path, "second")
        with node.mount(service.url, references[0], here), node.mount(service.url, references[1], there):
            with (here / "d0/f0").open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
                for _ in range(3):
                    for at, files in ((here, first), (there, second)):
                        assert {name: (at / name).read_bytes() for name in files} == files
                assert bytes(mapped) == first["d0/f0"]
            # How much of it stays, and why, is tests/pool/test_custody.py's business.
            assert node.status()["pool"]["evictions"] > 0


def test_an_image_that_the_pool_does_not_take_is_told(service: Service, tmp_path: Path) -> None:
    reference = push(service, "large", {"file": random.Random(8).randbytes(3 << 20)})
    with running_node(tmp_path, WorkerOptions(budget=4 << 20, profiles=False)) as node:
        at = point(tmp_path)
        with pytest.raises(PoolFullError, match=r"the pool is full: it does not take 1 of the files of .*, 3\.1 MB"):
            node.mount(service.url, reference, at, KernelMountOptions(eager=True))
        assert left_over(node) == []


def test_an_image_larger_than_the_pool_is_not_begun(service: Service, tmp_path: Path) -> None:
    """Others would be evicted, and a slow link be busy, for what is refused in the end."""
    small, large = contents(31, 3), contents(32, 40, 60_000)
    references = push(service, "small", small), push(service, "larger", large)
    with running_node(tmp_path, WorkerOptions(budget=1 << 20, profiles=False)) as node:
        here, at = point(tmp_path, "here"), point(tmp_path)
        eager = KernelMountOptions(eager=True)
        with node.mount(service.url, references[0], here, eager):
            with pytest.raises(PoolFullError, match=r"takes 2\.\d MB, of a budget of 1\.0 MB: .* --budget"):
                node.mount(service.url, references[1], at, eager)
            assert [mount["missing_objects"] for mount in node.mounts()] == [0]
            assert node.status()["pool"]["evictions"] == 0


def test_a_failed_mount_leaves_nothing(service: Service, node: NodeClient, tmp_path: Path) -> None:
    reference = push(service, "failing", contents(7, 3))
    with pytest.raises(NotADirectoryError):
        node.mount(service.url, reference, tmp_path / "data" / "format")
    at = point(tmp_path)
    upper = tmp_path / "upper"
    upper.mkdir()
    (upper / "something").touch()
    with pytest.raises(Exception, match="neither empty nor"):
        node.mount(service.url, reference, at, KernelMountOptions(upper=upper))
    assert _left(node) == []
    _die_in_the_middle(service, node, at)
    deadline = time.monotonic() + 60
    while _left(node):  # the node notices when it next looks at the conversation
        assert time.monotonic() < deadline, _left(node)
        time.sleep(0.01)
    assert [path.name for path in upper.iterdir()] == ["something"]
    # What one that was killed, or met a full disk, had begun to note.
    killed = tmp_path / "killed"
    killed.mkdir()
    (killed / ".info.json").write_text('{"image"')
    with node.mount(service.url, reference, at, KernelMountOptions(upper=killed)):
        assert sorted(path.name for path in killed.iterdir()) == ["info.json", "upper", "work"]


def _left(node: NodeClient) -> list[object]:
    return [*node.mounts(), *node.places.tree_mounts.iterdir(), *node.places.containers.iterdir()]


def _die_in_the_middle(service: Service, node: NodeClient, at: Path) -> None:
    """Ask for a mount, and end without putting it into its place."""
    program = f"""
import os
from pagepool.node.client import NodeClient, KernelMountOptions
from pagepool.node.places import NodePlaces
from pagepool.mount import kernel
from pagepool.oci import Reference
from pathlib import Path
kernel.attach = lambda *_: os._exit(3)
node = NodeClient(NodePlaces(Path({str(node.places.state)!r}), Path({str(node.places.run)!r})))
node.mount({service.url!r}, Reference.parse("failing:1"), {str(at)!r}, KernelMountOptions(temporary=True))
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 3
