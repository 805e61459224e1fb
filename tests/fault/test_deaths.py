"""The death of any one process of ours, again and again, while containers use what is mounted: no error, right bytes.

Eight containers, each with an image of its own, open files for the first time, run programs, and fault in large files
that are not whole, all the time. `PAGEPOOL_DEATH_SECONDS` says how long it goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from pagepool.node.client import KernelMountOptions
from pagepool.node.handover import SUPERVISOR, WORKER, Post
from pagepool.node.start import upgrade_node
from pagepool.node.worker import WorkerOptions
from pagepool.oci import Reference
from tests.fault import containers
from tests.service.pushes import push_image
from tests.support.nodeserver import running_node
from tests.support.server import Service, running_service

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pagepool.node.client import NodeClient

SECONDS = float(os.environ.get("PAGEPOOL_DEATH_SECONDS", "2"))
CONTAINERS = 8
# A service that is started on a machine with fifty things to do besides takes minutes: that is no error of the node's.
PATIENCE_S = 240.0
OPTIONS = WorkerOptions(timeout_s=PATIENCE_S, fill=False, profiles=False, large=1 << 20)


def make_files(seed: int) -> dict[str, bytes]:
    """The files of one image."""
    randomness = random.Random(seed)
    program = Path("/usr/bin/true").read_bytes()
    files = {f"data/{number}": randomness.randbytes(3000 + 40 * number) for number in range(150)}
    # What follows an executable does not change it, but for its digest.
    files |= {f"bin/{number}": program + randomness.randbytes(100) for number in range(20)}
    return files | {f"large/{number}": randomness.randbytes(3 << 20) for number in range(3)}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """With an image for each container. For all tests: what dies here is there again afterwards."""
    directory = tmp_path_factory.mktemp("service")
    with running_service(directory / "data", "--workers", "1") as running:
        for number in range(CONTAINERS):
            files = make_files(number)
            with httpx.Client(base_url=running.url, timeout=120) as http:
                push_image(http, f"image{number}", "1", files)
            digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
            (directory / f"{number}.json").write_text(json.dumps(digests))
        yield running


@contextmanager
def used(service: Service, node: NodeClient, tmp_path: Path, seconds: float) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Containers that use images, for so long."""
    with ExitStack() as stack:
        processes = []
        for number in range(CONTAINERS):
            digests, at = service.data.with_name(f"{number}.json"), tmp_path / f"mnt{number}"
            at.mkdir()
            wish = KernelMountOptions(temporary=True, fill=False)
            stack.enter_context(node.mount(service.url, Reference.parse(f"image{number}:1"), at, wish))
            command = [sys.executable, containers.__file__, str(at), str(digests), str(seconds)]
            process = subprocess.Popen(command, stdout=subprocess.PIPE)
            stack.enter_context(process)
            stack.callback(process.kill)
            processes.append(process)
        yield processes


def check(processes: list[subprocess.Popen[bytes]]) -> None:
    """Wait for all, and see that nothing went wrong."""
    for process in processes:
        output, _ = process.communicate(timeout=PATIENCE_S)
        found = json.loads(output)
        assert found["errors"] == []
        assert set(found["done"]) == {"open", "exec", "mmap"}


def holder(node: NodeClient, name: str) -> int:
    """The process that has a post, once one has."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        process = Post(node.places.run, name).holder()
        if process is not None:
            return process
        time.sleep(0.01)
    raise AssertionError(f"nobody is {name}")


def kill(node: NodeClient, name: str) -> None:
    """Kill one process of the node, and wait until another one is in its place and the node answers."""
    victim = holder(node, name)
    os.kill(victim, signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE_S
    while Post(node.places.run, name).holder() in (victim, None) or not node.is_running():
        assert time.monotonic() < deadline, f"{name} was not replaced"
        time.sleep(0.01)


@pytest.mark.parametrize(
    "victims", [(WORKER,), (SUPERVISOR,), (WORKER, SUPERVISOR)], ids=["worker", "supervisor", "both"]
)
def test_killing_either_process_is_not_seen(service: Service, tmp_path: Path, victims: tuple[str, ...]) -> None:
    with running_node(tmp_path, OPTIONS) as node, used(service, node, tmp_path, SECONDS) as processes:
        deaths, randomness = 0, random.Random(1)
        while any(process.poll() is None for process in processes):
            kill(node, victims[deaths % len(victims)])
            deaths += 1
            time.sleep(randomness.random())  # whatever they are doing then
        check(processes)
        assert deaths >= len(victims)


def test_a_service_that_is_killed_and_started_again_is_not_seen(service: Service, tmp_path: Path) -> None:
    with running_node(tmp_path, OPTIONS) as node, used(service, node, tmp_path, SECONDS) as processes:
        while any(process.poll() is None for process in processes):
            service.kill()
            service.start()
            time.sleep(1.0)  # so that it serves something
        check(processes)


def test_replacing_the_node_is_not_seen(service: Service, tmp_path: Path) -> None:
    with running_node(tmp_path, OPTIONS) as node, used(service, node, tmp_path, SECONDS) as processes:
        before = holder(node, WORKER)
        while any(process.poll() is None for process in processes):
            upgrade_node(node.places)
            time.sleep(0.5)
        check(processes)
        assert holder(node, WORKER) != before


def test_when_all_die_at_once_what_is_here_goes_on(service: Service, tmp_path: Path) -> None:
    files = make_files(1)
    at = tmp_path / "mnt"
    at.mkdir()
    lazily = KernelMountOptions(temporary=True, fill=False)
    with (
        running_node(tmp_path, OPTIONS) as node,
        node.mount(service.url, Reference.parse("image1:1"), at, lazily),
    ):
        here = [f"data/{number}" for number in range(50)]
        for name in here:
            assert (at / name).read_bytes() == files[name]
        victims = [holder(node, SUPERVISOR), holder(node, WORKER)]
        for victim in victims:
            os.kill(victim, signal.SIGSTOP)
        for victim in victims:
            os.kill(victim, signal.SIGKILL)
        for name in here:
            assert (at / name).read_bytes() == files[name]
        (at / "written").write_bytes(b"still")
        with pytest.raises(OSError, match="Transport endpoint"):
            (at / "data/100").read_bytes()
        node.ensure()
        again = tmp_path / "again"
        again.mkdir()
        with node.mount(service.url, Reference.parse("image1:1"), again):
            assert {name: (again / name).read_bytes() for name in files} == files
        assert (at / "written").read_bytes() == b"still"
