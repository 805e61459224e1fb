"""What a node leaves behind: stopped, killed, begun anew; and credentials that do not count any more."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pagepool.cli.kernelmounts import kernel_row, state_of
from pagepool.errors import InvalidError, UnreachableError
from pagepool.linux import mounts
from pagepool.mount import kernel
from pagepool.mount.mountinfo import mount_points
from pagepool.node import ending
from pagepool.node.client import KernelMountOptions, NodeClient
from pagepool.node.control import NodeGoneError, converse
from pagepool.node.handover import SUPERVISOR, WORKER, Post
from pagepool.node.start import arguments, ensure_node, own_cgroups, upgrade_node
from tests.fault.conftest import QUICK
from tests.fault.test_node import LAZILY, contents, point, push
from tests.support.kernelmounts import wait_detached
from tests.support.nodeserver import running_node
from tests.support.server import Service

if TYPE_CHECKING:
    pass

_IMAGE_SIZE = 320 << 20


def mounted_below(top: Path) -> list[Path]:
    """What is mounted there."""
    return [one.path for one in mount_points() if one.path.is_relative_to(top)]


def none_left(node: NodeClient) -> bool:
    """Whether no mount is left, in the end."""
    deadline = time.monotonic() + 60
    while node.mounts():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)  # another mount namespace may have a copy of what was mounted here, for a while
    return True


def kill_all(node: NodeClient) -> None:
    """All processes of a node at the same moment."""
    found = [Post(node.places.run, name).holder() for name in (SUPERVISOR, WORKER)]
    for number in (signal.SIGSTOP, signal.SIGKILL):  # or one could be quicker than the second signal
        for process in found:
            assert process
            os.kill(process, number)
    for name in (SUPERVISOR, WORKER):
        os.close(Post(node.places.run, name).wait())


def test_what_the_kernel_can_is_known_before_anything_is_mounted(node: NodeClient) -> None:
    """Commands that mount ask the node, and need not try it."""
    deadline = time.monotonic() + 60
    while (found := node.support()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert found == kernel.probe(node.places.state).reason
    assert node.mounts() == []


def test_ended_while_it_is_replaced(node: NodeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has it replaced is told, and does not wait for a worker that nobody starts."""

    def stop_first(_post: Post, _number: int) -> None:
        monkeypatch.undo()
        node.stop()

    monkeypatch.setattr(Post, "send", stop_first)
    with pytest.raises(UnreachableError, match="ended meanwhile"):
        upgrade_node(node.places)


def is_empty(cgroup: Path) -> bool:
    """Whether it is there, and nobody in it."""
    with suppress(OSError):
        return not (cgroup / "cgroup.procs").read_text()
    return False


def test_stopped_with_nothing_mounted(service: Service, node: NodeClient, tmp_path: Path) -> None:
    at = point(tmp_path)
    with node.mount(service.url, push(service, "stopped", contents(1, 3)), at, KernelMountOptions(temporary=True)):
        pass
    assert none_left(node)
    ended = node.stop()
    assert (ended.was_running, ended.mounts, ended.cleared) == (True, 0, True)
    assert mounted_below(node.places.run) == []
    assert not node.places.sources.exists()
    deadline = time.monotonic() + 60
    for cgroup in own_cgroups():
        while is_empty(cgroup):  # that of another node of this machine may be, while that begins or ends
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert not node.stop().was_running
    with pytest.raises(UnreachableError):
        node.status()
    assert ensure_node(node.places, QUICK)


@pytest.mark.parametrize("told", [False, True])
def test_stopped_while_its_worker_dies(node: NodeClient, monkeypatch: pytest.MonkeyPatch, *, told: bool) -> None:
    """Before it is told, or has done anything about it: there was another one, whose end was waited for in vain."""

    def die(*arguments: Any) -> Any:
        answer = converse(*arguments) if told else None
        os.kill(Post(node.places.run, WORKER).holder() or 0, signal.SIGKILL)
        if not told:
            raise NodeGoneError(str(node.places.control), "the node ended in the middle")
        return answer

    monkeypatch.setattr(ending, "converse", die)
    monkeypatch.setattr(ending, "_END_S", 20.0)
    ended = node.stop()
    assert (ended.was_running, ended.mounts, ended.cleared) == (True, 0, True)


def test_stopped_with_something_mounted(service: Service, node: NodeClient, tmp_path: Path) -> None:
    """It stays, and another node takes it over."""
    at, files = point(tmp_path), contents(2, 3)
    node.mount(service.url, push(service, "mounted", files), at, KernelMountOptions(eager=True))
    assert node.stop().mounts == 1
    assert {name: (at / name).read_bytes() for name in files} == files
    assert mounted_below(node.places.run)
    assert ensure_node(node.places, QUICK)
    assert [mount["path"] for mount in node.mounts()] == [str(at)]
    node.unmount(at)
    assert none_left(node)
    assert node.stop().cleared
    assert mounted_below(node.places.run) == []


def test_all_processes_killed(service: Service, node: NodeClient, tmp_path: Path) -> None:
    """Everything can be taken away by commands, and a new node goes on with what is there."""
    at, files = point(tmp_path), contents(3, 3)
    reference = push(service, "killed", files)
    node.mount(service.url, reference, at, KernelMountOptions(temporary=True, fill=False))
    kill_all(node)
    assert node.stop().mounts == 1
    node.unmount(at)
    assert node.stop().cleared
    assert mounted_below(node.places.run) == []
    assert ensure_node(node.places, QUICK)
    with node.mount(service.url, reference, at):
        assert {name: (at / name).read_bytes() for name in files} == files
    # What belonged to the mount that the dead node had made is removed by the one after it.
    assert none_left(node)


# As `python -m pagepool.node`, but what it has started is killed at once, the first time.
_KILLED_AT_ONCE = """
import os, signal, sys
from pagepool.node import start
from pagepool.node.handover import SUPERVISOR, WORKER, Post
begin = start.start_node
def start_and_kill(command, descriptors, run):
    begin(command, descriptors, run)
    start.start_node = begin
    posts, locks = [Post(run, name) for name in (SUPERVISOR, WORKER)], [None]
    while None in locks:
        for lock in filter(None, locks):
            os.close(lock)
        for post in posts:
            post.send(signal.SIGKILL)
        locks = [post.take() for post in posts]
    for lock in locks:
        os.close(lock)
start.start_node = start_and_kill
sys.exit(start.main(sys.argv[1:]))
"""


def test_all_processes_killed_before_it_serves(node: NodeClient) -> None:
    """Whoever started it does not wait for ever: it starts another one."""
    kill_all(node)
    words = [sys.executable, "-c", _KILLED_AT_ONCE, "start", *arguments(node.places, QUICK)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False, start_new_session=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert node.is_running()


def test_a_new_node_after_all_were_killed(service: Service, node: NodeClient, tmp_path: Path) -> None:
    at, again, files = point(tmp_path), point(tmp_path, "again"), contents(4, 3)
    reference = push(service, "anew", files)
    node.mount(service.url, reference, at, LAZILY)
    kill_all(node)
    assert ensure_node(node.places, QUICK)
    (found,) = node.mounts()
    assert (found["path"], found["cut_off"]) == (str(at), True)
    assert "errors until then: its node has ended" in state_of(kernel_row(found))
    with node.mount(service.url, reference, again, LAZILY):
        assert {mount["path"]: mount["cut_off"] for mount in node.mounts()} == {str(at): True, str(again): False}
        assert {name: (again / name).read_bytes() for name in files} == files
    node.unmount(at)
    assert none_left(node)


def test_a_worker_that_dies_while_a_mount_is_put_into_its_place(
    service: Service, node: NodeClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asked for it does not notice."""
    at, files = point(tmp_path), contents(5, 3)
    reference = push(service, "dying", files)
    attach, deaths = kernel.attach, [0, 1]

    def die_after(descriptor: int, path: Path) -> None:
        attach(descriptor, path)
        if deaths.pop():
            os.kill(int(node.status()["pid"]), signal.SIGKILL)

    monkeypatch.setattr(kernel, "attach", die_after)
    with node.mount(service.url, reference, at, KernelMountOptions(temporary=True)) as mounted:
        assert [mount["id"] for mount in node.mounts()] == [mounted.id]
        assert [mount["attached"] for mount in node.mounts()] == [True]
        assert {name: (at / name).read_bytes() for name in files} == files
    assert deaths == [0]
    assert none_left(node)


def test_a_worker_that_dies_while_it_fills(service: Service, node: NodeClient, tmp_path: Path) -> None:
    """The next one goes on with it; whoever asked for it does not notice."""
    at, files = point(tmp_path), contents(8, 40)
    reference = push(service, "filled", files)
    totals: list[int] = []

    def die(total: int) -> None:
        totals.append(total)
        os.kill(int(node.status()["pid"]), signal.SIGKILL)
        for process in service.children():
            os.kill(process, signal.SIGCONT)

    with node.mount(service.url, reference, at, LAZILY):
        for process in service.children():
            os.kill(process, signal.SIGSTOP)  # nothing comes before the worker is dead
        assert node.fill(str(at), die) == totals[0] > 0
        assert len(totals) == 1
        assert node.fill(str(at)) == 0
        service.stop()
        assert {name: (at / name).read_bytes() for name in files} == files


@pytest.mark.parametrize("name", [WORKER, SUPERVISOR])
def test_a_signal_that_another_thread_is_given(node: NodeClient, name: str) -> None:
    """The kernel may give it to any thread; the one that waits for it must be woken all the same. Killing a worker that
    did not end took 20 s, in which nothing was answered."""
    process = Post(node.places.run, name).holder()
    assert process
    others = [int(one.name) for one in Path(f"/proc/{process}/task").iterdir() if one.name != str(process)]
    descriptor = os.pidfd_open(process)
    try:
        assert ctypes.CDLL(None).tgkill(process, others[0], signal.SIGTERM) == 0
        assert select.select([descriptor], [], [], 60)[0]
    finally:
        os.close(descriptor)


def test_a_tree_file_that_is_gone(service: Service, node: NodeClient, tmp_path: Path) -> None:
    """The next worker cannot take the tree up again; mounting the image once more repairs that."""
    at, again, files = point(tmp_path), point(tmp_path, "again"), contents(6, 3)
    reference = push(service, "lost", files)
    mounted = node.mount(service.url, reference, at, LAZILY)
    (node.places.tree_files / mounted.fields["tree"]).unlink()
    before = node.status()["pid"]
    os.kill(before, signal.SIGKILL)
    assert [mount["known"] for mount in node.mounts()] == [False]
    assert _outcome(at / "d0/f0") == errno.EIO
    with node.mount(service.url, reference, again, LAZILY):
        assert (at / "d1/f1").read_bytes() == files["d1/f1"]
        assert [mount["known"] for mount in node.mounts()] == [True, True]
    node.unmount(at)


def test_another_worker_fills_what_is_to_be_filled(service: Service, tmp_path: Path) -> None:
    """And leaves alone what was mounted with --no-fill."""
    left, filled = point(tmp_path, "left"), point(tmp_path, "filled")
    references = push(service, "left", contents(21, 3)), push(service, "filled", contents(22, 3))
    with (
        running_node(tmp_path, replace(QUICK, fill=True)) as node,
        node.mount(service.url, references[0], left, LAZILY),
        node.mount(service.url, references[1], filled),
    ):
        before = node.status()["pid"]
        os.kill(before, signal.SIGKILL)
        while node.status()["pid"] == before:
            pass
        deadline = time.monotonic() + 60
        while not (found := {one["path"]: one["filling"] for one in node.mounts()})[str(filled)]:
            assert time.monotonic() < deadline  # the worker takes mounts up, the oldest first, when it serves
            time.sleep(0.01)
        assert not found[str(left)]


def _outcome(path: Path) -> int:
    try:
        path.read_bytes()
    except OSError as error:
        return error.errno or -1
    return 0


def test_a_boot(service: Service, node: NodeClient, tmp_path: Path) -> None:
    """RUN on a disk: nothing of what it says of mounts is so any more."""
    at = point(tmp_path)
    reference = push(service, "booted", contents(7, 3))
    mounted = node.mount(service.url, reference, at, KernelMountOptions(temporary=True, fill=False))
    kill_all(node)
    kernel.unmount_kernel(at, force=True)
    for path in reversed(mounted_below(node.places.run)):
        mounts.unmount(path, mounts.MNT_DETACH)
    (node.places.run / "boot").write_bytes(b"another one")
    assert (node.places.containers / mounted.id).exists()
    assert ensure_node(node.places, QUICK)
    assert none_left(node)
    with node.mount(service.url, reference, at):
        pass
    assert none_left(node)
    assert not list(node.places.sources.glob("*.json")) or node.status()["trees"] == 1
    assert node.stop().cleared


@pytest.mark.skipif("\txfs\n" not in Path("/proc/filesystems").read_text(), reason="needs XFS")
def test_a_pool_image(service: Service, tmp_path: Path) -> None:
    """All of STATE is on it; it is mounted again as long as its file is there; copies of large files share blocks."""
    large = contents(8, 1, 24 << 20)["d0/f0"]
    reference = push(service, "large", {"large": large})
    at = point(tmp_path)
    with running_node(tmp_path, replace(QUICK, pool_image=_IMAGE_SIZE, large=64 << 20)) as node:
        places = node.places
        assert places.pool_image.stat().st_size == _IMAGE_SIZE
        assert [one.type for one in mount_points() if one.path == places.state] == ["xfs"]
        with node.mount(service.url, reference, at, KernelMountOptions(temporary=True, eager=True)):
            os.sync()
            before = os.statvfs(places.state)
            with (at / "large").open("r+b") as file:
                file.write(b"changed")
                file.flush()
                os.fsync(file.fileno())
            after = os.statvfs(places.state)
            assert (before.f_bfree - after.f_bfree) * after.f_frsize < len(large) // 4
        assert none_left(node)
        assert node.stop().mounts == 0
        assert mounted_below(places.state) == []
        wait_detached(places.pool_image)
        assert list(places.state.iterdir()) == []
        with pytest.raises(InvalidError, match="does not change its size"):
            ensure_node(places, replace(QUICK, pool_image=2 * _IMAGE_SIZE))
        assert ensure_node(places, QUICK)
        assert places.objects.is_dir()
        assert [one.type for one in mount_points() if one.path == places.state] == ["xfs"]


def test_a_pool_image_hides_no_pool(node: NodeClient) -> None:
    node.stop()
    with pytest.raises(InvalidError, match="has a pool already"):
        ensure_node(node.places, replace(QUICK, pool_image=_IMAGE_SIZE))
    assert not node.places.pool_image.exists()
    with pytest.raises(InvalidError, match="at least"):
        ensure_node(replace(node.places, state=node.places.state / "other"), replace(QUICK, pool_image=1 << 20))
