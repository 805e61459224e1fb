"""Ways to mount, and what is refused: by whom a directory is used, where it is, how it is called."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pagepool.cli.commands.memory import NodeMemory
from pagepool.errors import BusyError, InvalidError, PagepoolError, UnsupportedError
from pagepool.library import Client
from pagepool.linux import mounts
from pagepool.mount.mountinfo import mount_points
from pagepool.node import client
from pagepool.node.client import KernelMountOptions, NodeClient
from pagepool.node.handover import SUPERVISOR, WORKER, Post
from pagepool.node.memory import measure_memory
from tests.fault.conftest import QUICK
from tests.fault.test_node import LAZILY, contents, point, push
from tests.fault.test_node_life import none_left
from tests.support.cli import environment
from tests.support.deep import make_deep
from tests.support.nodeserver import running_node
from tests.support.server import Service, running_service

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pagepool.oci import Reference

_FILES = contents(1, 5)
_PARALLEL = 50
_MANY = 40


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(tmp_path_factory.mktemp("service") / "data", "--workers", "1") as running:
        yield running


@pytest.fixture(scope="module")
def reference(service: Service) -> Reference:
    return push(service, "app", _FILES)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeClient]:
    with running_node(tmp_path_factory.mktemp("node"), QUICK) as running:
        yield running


def command(node: NodeClient, *words: str | Path) -> list[str]:
    """The command line of the program, for a node."""
    head, *rest = map(str, words)
    where = ["--node-state", str(node.places.state), "--node-run", str(node.places.run)]
    return [sys.executable, "-m", "pagepool.cli", head, *rest, *where]


# `umount --all` ends the FUSE mounts of everybody on the machine. For a test there are none.
_NO_FUSE = """
from pagepool.cli.start import main
from pagepool.cli.commands import umount
umount.list_mounts = lambda directory: []
main()
"""


def run(
    node: NodeClient, service: Service, *words: str | Path, cwd: Path | None = None, fuse: bool = True
) -> tuple[int, str, str]:
    """Run a command: exit code, output, errors. Without `fuse`, it sees no FUSE mounts."""
    env = {**os.environ, **environment(), "PAGEPOOL_SERVER": service.url}
    line = command(node, *words)
    if not fuse:
        line[1:3] = ["-c", _NO_FUSE]
    done = subprocess.run(
        line,
        env=env,
        cwd=cwd or "/",
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return done.returncode, done.stdout, done.stderr


def flags_of(path: Path) -> set[str]:
    """The flags of a mount."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return next(set(line.split(" ")[5].split(",")) for line in lines if line.split(" ")[4] == str(path))


def read_bytes_of(process: int | str) -> int:
    """What a process, or a thread, has had by read(2) so far."""
    lines = Path(f"/proc/{process}/io").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("rchar:")))


def test_a_mount_costs_the_same_however_many_there_are(
    service: Service, reference: Reference, node: NodeClient, tmp_path: Path
) -> None:
    """Neither who mounts or unmounts nor the node reads the machine's list of mounts for it."""
    options = KernelMountOptions(temporary=True, fill=False)
    points = [point(tmp_path, f"mnt{number}") for number in range(_MANY)]
    standing, counted = points[: _MANY // 2], points[_MANY // 2 :]
    worker = Post(node.places.run, WORKER).holder()
    assert worker
    try:
        for at in standing:
            node.mount(service.url, reference, at, options)
        least = len(counted) * len(Path("/proc/self/mountinfo").read_bytes())
        deadline, costs = time.monotonic() + 60, [least]
        while max(costs) >= least // 2:  # a mount namespace that another test made just then had copies: it had to look
            assert time.monotonic() < deadline, (costs, least)
            before = read_bytes_of("thread-self"), read_bytes_of(worker)
            for at in counted:
                node.mount(service.url, reference, at, options)
            mounted = read_bytes_of("thread-self"), read_bytes_of(worker)
            for at in counted:
                node.unmount(at)
            done = read_bytes_of("thread-self"), read_bytes_of(worker)
            costs = [now[who] - then[who] for now, then in ((mounted, before), (done, mounted)) for who in (0, 1)]
            while {one["path"] for one in node.mounts()} != {str(at) for at in standing}:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        assert len(list(node.places.containers.iterdir())) == len(standing)
    finally:
        for at in points:
            if at.is_mount():
                node.unmount(at)
    assert none_left(node)


def test_a_program_takes_the_nodes_word_for_what_the_kernel_can(
    service: Service, reference: Reference, node: NodeClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To try it makes directories in the node's, and takes longer than to mount."""
    monkeypatch.setattr("pagepool.node.client.default_places", lambda: node.places)
    deadline = time.monotonic() + 60
    while node.support() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    at = point(tmp_path)
    with node.mount(service.url, reference, at):  # which makes what the first one needs
        pass
    before = node.places.state.stat().st_mtime_ns
    with Client(service.url, directory=tmp_path / "client") as client:
        image = client.image(reference)
        with image.mount(at, backend="kernel") as mounted:
            assert mounted.path == at
            assert (at / "d0/f0").read_bytes() == _FILES["d0/f0"]
    assert node.places.state.stat().st_mtime_ns == before
    assert none_left(node)


def test_a_mount_that_another_namespace_has_keeps_what_was_written(
    service: Service, reference: Reference, node: NodeClient, tmp_path: Path
) -> None:
    at = point(tmp_path)
    node.mount(service.url, reference, at, KernelMountOptions(temporary=True, fill=False))
    (at / "written").write_text("by the container")
    script = 'echo ready; read word; cat "$0/written"'
    words = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, str(at)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin
        assert other.stdout
        assert other.stdout.readline() == "ready\n"
        node.unmount(at)
        assert [one["path"] for one in node.mounts()] == [str(at)]
        other.stdin.write("go on\n")
        other.stdin.close()
        assert other.stdout.read() == "by the container"
    assert none_left(node)
    assert not any(node.places.containers.iterdir())


def test_directories_that_are_deeper_than_the_stack(
    service: Service, reference: Reference, node: NodeClient, tmp_path: Path
) -> None:
    """A container can make them: its memory is told, and they are removed with the mount."""
    at = point(tmp_path)
    node.mount(service.url, reference, at, KernelMountOptions(temporary=True, fill=False))
    try:
        make_deep(at, 1500)
        (shown,) = measure_memory(NodeMemory(node).inputs()).containers
        assert shown.private == os.sysconf("SC_PAGE_SIZE")
    finally:
        node.unmount(at)
    assert none_left(node)
    assert not any(node.places.containers.iterdir())


def test_flags(service: Service, reference: Reference, node: NodeClient, tmp_path: Path) -> None:
    at = point(tmp_path)
    upper = tmp_path / "upper"
    with node.mount(service.url, reference, at, KernelMountOptions(upper=upper)):
        assert {"rw", "nodev"} <= flags_of(at)
        (at / "new").touch()
    assert none_left(node)
    with node.mount(service.url, reference, at, KernelMountOptions(upper=upper, read_only=True, nosuid=True)):
        assert {"ro", "nodev", "nosuid"} <= flags_of(at)
        assert (at / "new").exists()
        with pytest.raises(OSError, match="Read-only"):
            (at / "other").touch()
    assert none_left(node)
    with node.mount(service.url, reference, at, KernelMountOptions(upper=upper, dev=True)):
        assert not {"ro", "nodev", "nosuid"} & flags_of(at)


@pytest.mark.parametrize(
    "name", ["with spaces, and:colons\\", "ünïcödé ✓", "\udcff bytes", "x" * 200 + "/" + "y" * 200]
)
def test_names(service: Service, reference: Reference, node: NodeClient, tmp_path: Path, name: str) -> None:
    at, upper = tmp_path / "at" / name, tmp_path / "upper" / name
    at.mkdir(parents=True)
    with node.mount(service.url, reference, at, KernelMountOptions(upper=upper)):
        (at / "new").write_bytes(b"new")
        assert str(at) in [mount["path"] for mount in node.mounts()]
        with pytest.raises(BusyError, match="mounted there"):
            node.mount(service.url, reference, at)
    assert (upper / "upper" / "new").read_bytes() == b"new"


def test_uppers_that_are_refused(service: Service, reference: Reference, node: NodeClient, tmp_path: Path) -> None:
    """With nothing left of them that was not there."""
    at, upper, other = point(tmp_path), tmp_path / "upper", push(service, "other", contents(2, 3))
    for inside in (at / "upper", at, tmp_path):
        with pytest.raises(InvalidError, match="in each other"):
            node.mount(service.url, reference, at, KernelMountOptions(upper=inside))
    with node.mount(service.url, reference, at, KernelMountOptions(upper=upper)):
        there = point(tmp_path, "there")
        with pytest.raises(BusyError, match="is mounted at"):
            node.mount(service.url, reference, there, KernelMountOptions(upper=upper))
        (tmp_path / "link").symlink_to(upper)
        with pytest.raises(BusyError, match="is mounted at"):
            node.mount(service.url, reference, there, KernelMountOptions(upper=tmp_path / "link"))
        # An overlay cannot be written to another overlay.
        with pytest.raises((OSError, PagepoolError)) as caught:
            node.mount(service.url, reference, there, KernelMountOptions(upper=at / "sub/upper"))
        assert str(caught.value)
        with node.mount(service.url, reference, there, KernelMountOptions(temporary=True)):
            with pytest.raises(OSError, match=r"upperdir|Invalid|not supported") as refused:
                node.mount(service.url, reference, point(tmp_path, "third"), KernelMountOptions(upper=there / "sub/up"))
            assert refused.value.errno in (errno.EINVAL, errno.EOPNOTSUPP)
            assert not (there / "sub").exists()
    with pytest.raises(InvalidError, match="of another image, app:1"):
        node.mount(service.url, other, at, KernelMountOptions(upper=upper))
    assert sorted(path.name for path in upper.iterdir()) == ["info.json", "upper", "work"]


def test_a_quota_that_cannot_be(service: Service, reference: Reference, node: NodeClient, tmp_path: Path) -> None:
    """It is refused, and nothing is left; where it can be the mount is made."""
    at, upper = point(tmp_path), tmp_path / "a" / "b" / "upper"
    refused = ""
    try:
        node.mount(service.url, reference, at, KernelMountOptions(upper=upper, quota=1 << 20)).unmount()
    except UnsupportedError as error:
        refused = str(error)
    assert "quota" in refused or (upper / "upper").exists()
    assert not refused or not (tmp_path / "a").exists()
    assert none_left(node)


def test_two_mounts_of_an_upper_at_once(
    service: Service, reference: Reference, node: NodeClient, tmp_path: Path
) -> None:
    """One of them is made."""
    points = [point(tmp_path, f"at{number}") for number in range(6)]

    def mount(at: Path) -> str:
        try:
            node.mount(service.url, reference, at, KernelMountOptions(upper=tmp_path / "upper"))
        except BusyError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(len(points)) as threads:
        outcomes = list(threads.map(mount, points))
    assert outcomes.count("") == 1
    node.unmount(points[outcomes.index("")])


@pytest.mark.usefixtures("reference")
def test_many_processes_at_once(service: Service, node: NodeClient, tmp_path: Path) -> None:
    """Of the same image and of others."""
    others = [push(service, f"many{number}", contents(100 + number, 3)) for number in range(4)]
    script = f"""
import sys
from pathlib import Path
from pagepool.node.client import NodeClient, KernelMountOptions
from pagepool.node.places import NodePlaces
from pagepool.oci import Reference
node = NodeClient(NodePlaces(Path({str(node.places.state)!r}), Path({str(node.places.run)!r})))
for line in sys.stdin:
    image, at = line.split()
    with node.mount({service.url!r}, Reference.parse(image), at, KernelMountOptions(temporary=True, fill=False)):
        assert sum(path.is_file() for path in Path(at).rglob("*")) >= 3
        assert all(path.read_bytes() for path in Path(at).rglob("*") if path.is_file())
"""
    images = ["app:1", *(str(other) for other in others)]
    points = [point(tmp_path, f"at{number}") for number in range(_PARALLEL)]
    processes = [
        subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(10)
    ]
    for number, process in enumerate(processes):
        assert process.stdin
        process.stdin.writelines(
            f"{images[(number + turn) % len(images)]} {at}\n" for turn, at in enumerate(points[number::10])
        )
        process.stdin.close()
    for process in processes:
        assert process.stderr
        said = process.stderr.read()
        process.stderr.close()
        assert process.wait(timeout=120) == 0, said
    # A mount namespace that something else on the machine makes just now has copies of all mounts, for a while.
    deadline = time.monotonic() + 60
    while [mount for mount in node.mounts() if mount["path"] in map(str, points)]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert list(node.places.containers.iterdir()) == []


def test_in_use(service: Service, reference: Reference, node: NodeClient, tmp_path: Path) -> None:
    at = point(tmp_path)
    mounted = node.mount(service.url, reference, at, LAZILY)
    with subprocess.Popen(["sleep", "1000"], cwd=at) as sleeper:
        try:
            with pytest.raises(BusyError, match=rf"in use by sleep \({sleeper.pid}\)"):
                mounted.unmount()
        finally:
            sleeper.kill()
    mounted.unmount()


@pytest.mark.usefixtures("reference")
def test_another_mount_namespace(service: Service, node: NodeClient, tmp_path: Path) -> None:
    """A mount lives there as long as the namespace does; what is not the same directory there is refused."""
    at = point(tmp_path)
    script = f"""
import sys
from pathlib import Path
from pagepool.node.client import NodeClient, KernelMountOptions
from pagepool.node.places import NodePlaces
from pagepool.errors import InvalidError
from pagepool.linux import mounts
from pagepool.oci import Reference
node = NodeClient(NodePlaces(Path({str(node.places.state)!r}), Path({str(node.places.run)!r})))
node.mount({service.url!r}, Reference.parse("app:1"), {str(at)!r}, KernelMountOptions(temporary=True))
hidden = Path({str(tmp_path)!r}) / "hidden"
mounts.mount("test", hidden, "tmpfs", 0)
try:
    node.mount({service.url!r}, Reference.parse("app:1"), hidden, KernelMountOptions(upper=hidden / "upper"))
except InvalidError:
    pass
other = Path({str(tmp_path)!r}) / "other"
try:
    node.mount({service.url!r}, Reference.parse("app:1"), other, KernelMountOptions(upper=hidden / "upper"))
except InvalidError as error:
    assert "mount namespaces" in str(error), error
    print("refused", flush=True)
sys.stdin.read()
"""
    point(tmp_path, "hidden")
    point(tmp_path, "other")
    words = ["unshare", "-m", "--propagation", "private", sys.executable, "-c", script]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdin
        assert process.stdout.readline() == "refused\n"
        assert [mount["path"] for mount in node.mounts() if mount["path"].startswith(str(tmp_path))] == [str(at)]
        assert not any(one.path == at for one in mount_points())
        process.stdin.close()
        assert process.wait() == 0
    assert none_left(node)
    assert list(node.places.containers.iterdir()) == []


@pytest.mark.usefixtures("reference")
def test_commands(service: Service, node: NodeClient, tmp_path: Path) -> None:
    """Relative paths, JSON, all at once, what is in another one, and what is in use."""
    one = point(tmp_path, "one")
    code, out, said = run(
        node, service, "mount", "--backend=kernel", "--json", "app:1", "one", "--upper", "up", cwd=tmp_path
    )
    assert code == 0, said
    fields: dict[str, Any] = json.loads(out)
    assert (fields["path"], fields["upper"], fields["backend"]) == (str(one), str(tmp_path / "up"), "kernel")
    (one / "inner").mkdir()
    busy = point(tmp_path, "busy")
    for at in (one / "inner", busy):
        assert run(node, service, "mount", "--backend=kernel", "app:1", at)[0] == 0
    listed = json.loads(run(node, service, "mounts", "--json")[1])["mounts"]
    assert [row["path"] for row in listed] == [str(one), str(one / "inner"), str(busy)]
    assert all(row["last_error"] is None for row in listed)
    code, _, said = run(node, service, "umount", one)
    assert (code, said) == (9, f"pagepool: error: {one} is in use by the mount at {one / 'inner'}\n")
    with subprocess.Popen(["sleep", "1000"], cwd=busy) as sleeper:
        code, out, said = run(node, service, "umount", "--all", "--json", fuse=False)
        sleeper.kill()
    assert json.loads(out)["unmounted"] == [str(one / "inner"), str(one)]
    assert code != 0
    assert "sleep" in said
    assert run(node, service, "umount", busy)[0] == 0
    assert "fuse" not in said
    for words in (["--rw", "--upper", "x"], ["--rw", "--ro"], ["--quota", "1M"]):
        assert run(node, service, "mount", "app:1", one, *words)[0] == 2


def test_two_at_one_place(
    service: Service, reference: Reference, node: NodeClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two that both found a directory free, one is refused: what it hid would come back when it goes."""
    at = point(tmp_path)
    check = client._check_target
    options = KernelMountOptions(temporary=True, fill=False)

    def pass_somebody(target: Path) -> None:
        check(target)
        monkeypatch.setattr(client, "_check_target", check)
        node.mount(service.url, reference, target, options)

    monkeypatch.setattr(client, "_check_target", pass_somebody)
    with pytest.raises(BusyError, match="is mounted there"):
        node.mount(service.url, reference, at, options)
    assert [one.path for one in mount_points()].count(at) == 1
    node.unmount(at)
    assert not at.is_mount()
    assert none_left(node)


def test_interrupted_while_it_is_fetched(service: Service, node: NodeClient, tmp_path: Path) -> None:
    """Nothing is left."""
    push(service, "big", contents(9, 4, 16 << 20))
    at = point(tmp_path)
    words = command(node, "mount", "--backend=kernel", "--eager", "--rw", "big:1", at)
    env = {**os.environ, **environment(), "PAGEPOOL_SERVER": service.url}
    before = set(node.places.tree_files.iterdir())
    with subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while set(node.places.tree_files.iterdir()) == before:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        code = process.wait()
    if code:
        assert not any(one.path == at for one in mount_points())
        assert none_left(node)
    else:  # it was quicker
        mounts.unmount(at)
    assert none_left(node)
    assert list(node.places.containers.iterdir()) == []
    assert list(node.places.tree_mounts.iterdir()) == []


def test_limits_of_who_needs_it_first(service: Service, tmp_path: Path) -> None:
    """They are not meant for a node; those that it must keep, without CAP_SYS_RESOURCE, may be too low for one."""
    with running_node(tmp_path, QUICK) as node:
        node.stop()
        environ, start = {**os.environ, **environment()}, command(node, "node", "start")
        done = subprocess.run(
            ["setpriv", "--bounding-set=-sys_resource", "sh", "-c", 'ulimit -n 40; exec "$@"', "sh", *start],
            env=environ, cwd="/", capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        assert (done.returncode, "may have 40 (ulimit -n)" in done.stderr) == (1, True), done.stderr
        limits = ("--nofile=40:", "--fsize=1048576:", "--cpu=600:", "--data=900000000:", "--as=2000000000:")
        subprocess.run(["prlimit", *limits, *start], env=environ, cwd="/", check=True, timeout=120)
        for name in (SUPERVISOR, WORKER):
            process = Post(node.places.run, name).holder()
            assert process
            for one in (resource.RLIMIT_FSIZE, resource.RLIMIT_CPU, resource.RLIMIT_DATA, resource.RLIMIT_AS):
                soft, hard = resource.prlimit(process, one)
                assert soft == hard, (name, one)
            assert resource.prlimit(process, resource.RLIMIT_NOFILE)[0] > 40, name
        at = point(tmp_path)
        with node.mount(service.url, push(service, "limits", _FILES), at, LAZILY):
            assert {name: (at / name).read_bytes() for name in _FILES} == _FILES
        assert none_left(node)
