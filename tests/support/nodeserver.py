"""A real node for tests: its own directories, and nothing of it left in the end."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pagepool.errors import PagepoolError
from pagepool.mount import kernel
from pagepool.node.client import NodeClient
from pagepool.node.handover import SUPERVISOR, WORKER, Post, mark_stopped
from pagepool.node.places import NodePlaces
from pagepool.node.start import ensure_node
from pagepool.node.worker import WorkerOptions
from tests.support.cli import environment

if TYPE_CHECKING:
    from collections.abc import Iterator


def require_kernel_mounts() -> None:
    """Skip unless this kernel and user can do them."""
    if os.geteuid():
        pytest.skip("needs root: kernel mounts")
    support = kernel.probe(Path(tempfile.gettempdir()))
    if not support.kernel:
        pytest.skip(f"needs kernel mounts: {support.reason}")


def left_over(node: NodeClient, timeout_s: float = 60.0) -> list[object]:
    """What a node has of mounts, once all are unmounted: mounts, metadata images, what was written. Waits for it to go.

    Whoever makes a mount namespace on this machine just then, another test for example, has copies of all mounts in it,
    and a node rightly says that they are there.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        found = [*node.mounts(), *node.places.tree_mounts.iterdir(), *node.places.containers.iterdir()]
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


def commands_of(node: NodeClient, server: str) -> dict[str, str]:
    """Variables with which commands mount by the kernel, by a node, from a service."""
    places = {"PAGEPOOL_NODE_RUN": str(node.places.run), "PAGEPOOL_NODE_STATE": str(node.places.state)}
    return {**environment(), **places, "PAGEPOOL_SERVER": server, "PAGEPOOL_BACKEND": "kernel"}


@contextmanager
def running_node(directory: Path, options: WorkerOptions | None = None) -> Iterator[NodeClient]:
    """A node below a directory; in the end its mounts, its processes and its lazy mount are gone."""
    require_kernel_mounts()
    # The path of a socket is short; those of pytest's directories are not.
    run = Path(tempfile.mkdtemp(prefix="pagepool-node-"))
    places = NodePlaces(directory / "node", run)
    client = NodeClient(places)
    try:
        ensure_node(places, options)
        yield client
    finally:
        log = places.log.read_text(errors="replace") if places.log.exists() else ""
        end_node(client)
        shutil.rmtree(run, ignore_errors=True)
        print(log[-20000:])


def end_node(client: NodeClient) -> None:
    """Unmount what is mounted of a node, and end it."""
    with suppress(PagepoolError):
        for mount in client.mounts():
            with suppress(PagepoolError, OSError):
                kernel.unmount_kernel(Path(mount["path"]), force=True)
        client.prune()
        client.stop()
    _kill_what_is_left(client.places.run)
    _unmount_below(client.places.run)
    _unmount_below(client.places.state)


def _kill_what_is_left(run: Path) -> None:
    """A node that did not answer, or not end: it would outlive the test, and its directories."""
    if run.is_dir():
        mark_stopped(run)
        for name in (SUPERVISOR, WORKER):
            post = Post(run, name)
            while (lock := post.take()) is None:
                post.send(signal.SIGKILL)
                time.sleep(0.01)
            os.close(lock)


def _unmount_below(top: Path) -> None:
    """Whatever went wrong before: nothing stays mounted."""
    for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
        point = line.split(" ")[4]
        if point == str(top) or point.startswith(f"{top}/"):
            subprocess.run(["umount", "-l", point], check=False)
