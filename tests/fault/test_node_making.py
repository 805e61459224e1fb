"""Mounting an image whose tree the service is still putting together: it takes longer than any request may."""

from __future__ import annotations

import os
import subprocess
import time
from typing import TYPE_CHECKING

import httpx
import pytest

from pagepool.errors import PendingError
from pagepool.node.client import KernelMountOptions, NodeClient
from tests.fault.conftest import QUICK
from tests.fault.test_node import contents, point, push
from tests.fault.test_node_options import command
from tests.service.test_images_api import settled
from tests.support.cli import environment
from tests.support.making import being_made, tree_name
from tests.support.server import Service

if TYPE_CHECKING:
    from pathlib import Path

_TEXT = b"the service is putting this image's tree together: "
_TIMEOUT_S = 60.0


def settle(service: Service, name: str) -> None:
    """Wait until an image's layers were read."""
    with httpx.Client(base_url=service.url, timeout=_TIMEOUT_S) as http:
        settled(http, f"/v1/{name}/images/1")


def test_a_mount_waits_for_a_tree_as_long_as_it_takes(service: Service, node: NodeClient, tmp_path: Path) -> None:
    """Here twice as long as a node has for a request, all attempts together."""
    files, at, told = contents(31, 3), point(tmp_path), []
    with being_made(service.data, tree_name(files)) as held:
        reference = push(service, "waits", files)
        settle(service, "waits")
        begun = time.monotonic()

        def tell(seconds: int) -> None:
            told.append(seconds)
            held.step(len(told))
            if time.monotonic() - begun > 2 * QUICK.timeout_s:
                held.release()

        with node.mount(service.url, reference, at, KernelMountOptions(), on_making=tell):
            assert {name: (at / name).read_bytes() for name in files} == files
    assert told


def test_a_mount_waits_for_a_tree_no_longer_than_it_may(service: Service, node: NodeClient, tmp_path: Path) -> None:
    files, at = contents(32, 3), point(tmp_path)
    with being_made(service.data, tree_name(files)):
        reference = push(service, "limited", files)
        settle(service, "limited")
        with pytest.raises(PendingError, match="is not ready"):
            node.mount(service.url, reference, at, tree_timeout_s=0.0)
        assert not at.is_mount()
    with node.mount(service.url, reference, at):
        assert {name: (at / name).read_bytes() for name in files} == files


def test_a_terminal_is_told_of_it(service: Service, node: NodeClient, tmp_path: Path) -> None:
    files, at = contents(33, 3), point(tmp_path)
    ours, theirs = os.openpty()
    with being_made(service.data, tree_name(files)) as held:
        reference = push(service, "terminal", files)
        settle(service, "terminal")
        words = command(node, "mount", "--backend", "kernel", str(reference), at)
        env = {**os.environ, **environment(), "PAGEPOOL_SERVER": service.url, "COLUMNS": "200", "TERM": "xterm"}
        with subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL, stderr=theirs) as process:
            os.close(theirs)
            said = b""
            while _TEXT not in said:
                said += os.read(ours, 4096)  # OSError once the command has ended
            held.release()
            while True:
                try:
                    said += os.read(ours, 4096)
                except OSError:
                    break
            assert process.wait(_TIMEOUT_S) == 0
    os.close(ours)
    assert b"mounted terminal:1" in said
    node.unmount(at)


def test_a_command_says_that_it_was_not_ready(service: Service, node: NodeClient, tmp_path: Path) -> None:
    files, at = contents(34, 3), point(tmp_path)
    with being_made(service.data, tree_name(files)):
        reference = push(service, "late", files)
        settle(service, "late")
        for variables, options in (({}, ["--tree-timeout", "0"]), ({"PAGEPOOL_TREE_TIMEOUT": "0"}, [])):
            words = command(node, "mount", "--backend", "kernel", *options, str(reference), at)
            env = {**os.environ, **environment(), "PAGEPOOL_SERVER": service.url, **variables}
            done = subprocess.run(words, env=env, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)
            assert (done.returncode, "late:1 is not ready" in done.stderr) == (9, True), done.stderr
