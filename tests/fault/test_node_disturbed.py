"""A node that is disturbed: its lazy mount unmounted or aborted, its pool removed or broken, its state taken twice."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pagepool.errors import BusyError, UnreachableError
from pagepool.linux import mounts
from pagepool.node.client import KernelMountOptions, NodeClient
from pagepool.node.handover import SUPERVISOR, WORKER, Post
from pagepool.node.links import ReadInParts
from pagepool.node.places import NodePlaces
from pagepool.node.start import ensure_node
from tests.fault.conftest import QUICK
from tests.fault.test_node import LAZILY, contents, point, push
from tests.fault.test_node_life import kill_all, mounted_below, none_left
from tests.faults import filled
from tests.support.groups import counted_group
from tests.support.nodeserver import end_node, require_kernel_mounts, running_node
from tests.support.server import Service

if TYPE_CHECKING:
    from collections.abc import Iterator


def break_pool(pool: Path) -> None:
    """Have no process open it any more."""
    (pool / "epoch").unlink()
    (pool / "epoch").mkdir()


def test_a_lazy_mount_that_was_unmounted(service: Service, node: NodeClient, tmp_path: Path) -> None:
    """By whoever unmounts all that is FUSE: it is mounted again, for further mounts and for the next worker."""
    at, again, files = point(tmp_path), point(tmp_path, "again"), contents(20, 6)
    reference = push(service, "unmounted", files)
    first, second, *rest = sorted(files)
    with node.mount(service.url, reference, at, LAZILY):
        mounts.unmount(node.places.lazy, mounts.MNT_DETACH)
        with node.mount(service.url, reference, again, LAZILY):
            assert (again / first).read_bytes() == files[first]
        mounts.unmount(node.places.lazy, mounts.MNT_DETACH)
        worker = Post(node.places.run, WORKER)
        before = worker.holder()
        assert before
        os.kill(before, signal.SIGKILL)
        assert (at / second).read_bytes() == files[second]
        cut_off = {mount["path"]: mount["cut_off"] for mount in node.mounts()}  # by the next worker, once it is ready
        cut_off.pop(str(again), None)  # a mount namespace that another test makes just now may still have it
        assert cut_off == {str(at): False}
        assert node.places.lazy in mounted_below(node.places.run)
        assert {name: (at / name).read_bytes() for name in rest} == {name: files[name] for name in rest}
    assert none_left(node)


@pytest.mark.parametrize("meanwhile", ["served", "replaced"])
def test_a_lazy_mount_that_was_aborted(service: Service, node: NodeClient, tmp_path: Path, meanwhile: str) -> None:
    """Nothing serves it any more: the node ends, and the next mount begins another one."""
    at, again, files = point(tmp_path), point(tmp_path, "again"), contents(21, 6)
    reference = push(service, "aborted", files)
    first, second = "d0/f0", "d1/f1"  # what lies beside a file comes along
    node.mount(service.url, reference, at, LAZILY)
    assert (at / first).read_bytes() == files[first]
    holders = [Post(node.places.run, name).holder() for name in (SUPERVISOR, WORKER)]
    if meanwhile == "replaced":
        for process in holders:
            assert process
            os.kill(process, signal.SIGSTOP)
        assert holders[1]
        os.kill(holders[1], signal.SIGKILL)
    with contextlib.suppress(OSError):
        mounts.unmount(node.places.lazy, mounts.MNT_FORCE)
    if meanwhile == "replaced":
        assert holders[0]
        os.kill(holders[0], signal.SIGCONT)
    for name in (SUPERVISOR, WORKER):
        os.close(Post(node.places.run, name).wait())
    assert "the lazy mount is gone" in node.places.log.read_text()
    assert (at / first).read_bytes() == files[first]
    with pytest.raises(OSError, match="not connected"):
        (at / second).read_bytes()
    assert ensure_node(node.places, QUICK)
    with node.mount(service.url, reference, again, LAZILY):
        assert {name: (again / name).read_bytes() for name in files} == files
        assert {mount["path"]: mount["cut_off"] for mount in node.mounts()} == {str(at): True, str(again): False}
    node.unmount(at)
    assert none_left(node)


def test_a_pool_that_was_removed(service: Service, node: NodeClient, tmp_path: Path) -> None:
    """What is mounted is found and undone all the same, serves on, and the next node has a new pool."""
    at, files = point(tmp_path), contents(22, 6)
    reference = push(service, "removed", files)
    node.mount(service.url, reference, at, LAZILY)
    assert (at / "d0/f0").read_bytes() == files["d0/f0"]
    shutil.rmtree(node.places.pool)
    assert {name: (at / name).read_bytes() for name in files} == files
    (found,) = node.mounts()
    assert (found["path"], found["missing_objects"]) == (str(at), len(files))
    with pytest.raises(FileNotFoundError, match="pool/objects"):
        node.mount(service.url, reference, point(tmp_path, "again"), LAZILY)
    node.unmount(at)
    assert none_left(node)
    assert node.stop().cleared
    assert ensure_node(node.places, QUICK)
    with node.mount(service.url, reference, at, LAZILY):
        assert {name: (at / name).read_bytes() for name in files} == files


def test_two_nodes_with_one_state(service: Service, node: NodeClient, tmp_path: Path) -> None:
    """What the one's containers have written is not removed by the other."""
    at, files = point(tmp_path), contents(23, 3)
    node.mount(service.url, push(service, "twice", files), at, KernelMountOptions(temporary=True, fill=False))
    (at / "written").write_text("by the container")
    with tempfile.TemporaryDirectory(prefix="pagepool-node-") as run:
        other = NodeClient(NodePlaces(node.places.state, Path(run)))
        try:
            with pytest.raises(BusyError, match="in use by another node"):
                ensure_node(other.places, QUICK)
            kill_all(node)
            assert ensure_node(other.places, QUICK)
            while other.support() is None:  # it is looked for after what is left was removed
                time.sleep(0.05)
            assert (at / "written").read_text() == "by the container"
            (at / "more").touch()
        finally:
            end_node(other)
    assert ensure_node(node.places, QUICK)
    node.unmount(at)
    assert none_left(node)
    assert not any(node.places.containers.iterdir())


def test_a_node_that_cannot_begin(node: NodeClient) -> None:
    """Who starts it is told why, and nothing of it is left; one that could once can be ended all the same."""
    pool = node.places.pool
    supervisor, worker = (Post(node.places.run, name) for name in (SUPERVISOR, WORKER))
    break_pool(pool)
    before = worker.holder()
    assert before
    os.kill(before, signal.SIGKILL)
    while "3 times in a row" not in node.places.log.read_text():
        time.sleep(0.05)
    assert node.stop().was_running
    with pytest.raises(UnreachableError, match=r"does not begin to serve: .*epoch"):
        ensure_node(node.places, QUICK)
    for post in (supervisor, worker):
        lock = post.take()
        assert lock is not None
        os.close(lock)
    shutil.rmtree(pool)
    assert ensure_node(node.places, QUICK)
    assert node.mounts() == []


@pytest.fixture
def counted() -> Iterator[Path]:
    """A cgroup of its own, that counts processes and threads."""
    with counted_group() as group:
        yield group


def test_a_node_that_may_have_no_more_threads(
    service: Service, node: NodeClient, tmp_path: Path, counted: Path
) -> None:
    """A command is told so. Taken for dead, the node would be started again, and its lazy mount taken away."""
    at, again, files = point(tmp_path), point(tmp_path, "again"), contents(24, 4)
    reference = push(service, "counted", files)
    first, *rest = sorted(files)
    with node.mount(service.url, reference, at, LAZILY):
        assert (at / first).read_bytes() == files[first]
        holders = [Post(node.places.run, name).holder() for name in (SUPERVISOR, WORKER)]
        for process in holders:
            counted.joinpath("cgroup.procs").write_text(str(process))
        counted.joinpath("pids.max").write_text("1")
        with pytest.raises(BusyError, match="no more threads"):
            ensure_node(node.places)
        with pytest.raises(BusyError, match="no more threads"):
            node.mount(service.url, reference, again, LAZILY)
        counted.joinpath("pids.max").write_text("max")
        assert {name: (at / name).read_bytes() for name in rest} == {name: files[name] for name in rest}
        with node.mount(service.url, reference, again, LAZILY):
            assert (again / first).read_bytes() == files[first]
        assert [Post(node.places.run, name).holder() for name in (SUPERVISOR, WORKER)] == holders
    assert none_left(node)


def test_a_file_that_is_read_in_parts_by_a_node_without_threads(
    service: Service, tmp_path: Path, counted: Path
) -> None:
    """It is to be brought in behind its reader, who waits for that, and would for ever if it never began."""
    at, content = point(tmp_path), random.Random(26).randbytes(2 << 20)
    reference = push(service, "parts", {"middle": content})
    options = replace(QUICK, profiles=True, parts=ReadInParts.ALWAYS, large=8 << 20)
    with running_node(tmp_path, options) as node, node.mount(service.url, reference, at, LAZILY):
        for name in (SUPERVISOR, WORKER):
            counted.joinpath("cgroup.procs").write_text(str(Post(node.places.run, name).holder()))
        counted.joinpath("pids.max").write_text("1")
        read = subprocess.run(["cat", at / "middle"], capture_output=True, check=False, timeout=30)
        counted.joinpath("pids.max").write_text("max")
        assert (read.stdout == content, read.stderr) == (True, b"")


def test_a_node_whose_run_directory_is_full(service: Service, tmp_path: Path) -> None:
    """Its worker is replaced all the same: what is to be fetched would have to wait until there is room."""
    run, at, files = Path(tempfile.mkdtemp(prefix="pagepool-full-")), point(tmp_path), contents(27, 4, 1_000_000)
    reference = push(service, "narrow", files)
    first, second, third, *_ = sorted(files)
    node = NodeClient(NodePlaces(tmp_path / "node", run))
    with mounted_in_memory(run):
        try:
            ensure_node(node.places, QUICK)
            with node.mount(service.url, reference, at, LAZILY):
                assert (at / first).read_bytes() == files[first]
                (noted,) = node.places.sources.glob("*.json")
                while '"lease": ""' in noted.read_text():  # the last that is noted, in place of what takes a page, too
                    time.sleep(0.01)
                with filled(run):
                    os.kill(Post(run, WORKER).holder() or 0, signal.SIGKILL)
                    read = subprocess.run(["cat", at / second], capture_output=True, check=False, timeout=30)
                    assert (read.stdout == files[second], read.stderr) == (True, b"")
                assert (at / third).read_bytes() == files[third]
            assert none_left(node)
        finally:
            end_node(node)


@contextlib.contextmanager
def mounted_in_memory(directory: Path) -> Iterator[None]:
    """A tmpfs of 2 MiB on a directory, which goes with it."""
    require_kernel_mounts()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m,mode=700", "tmpfs", directory], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", directory], capture_output=True, check=False)  # `end_node` may have done it
        directory.rmdir()


def test_a_node_whose_socket_is_gone_keeps_what_it_serves(service: Service, node: NodeClient, tmp_path: Path) -> None:
    """No other node can be started beside it, and who tries takes nothing away."""
    at, files = point(tmp_path), contents(25, 4)
    reference = push(service, "unheard", files)
    with node.mount(service.url, reference, at, LAZILY):
        hidden = node.places.control.rename(node.places.control.with_name("hidden"))
        with pytest.raises(BusyError, match="in use by another node"):
            ensure_node(node.places)
        assert node.places.lazy in mounted_below(node.places.run)
        assert {name: (at / name).read_bytes() for name in files} == files
        hidden.rename(node.places.control)
    assert none_left(node)
