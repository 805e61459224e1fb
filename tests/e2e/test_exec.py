"""`pagepool exec` in containers of real images on kernel mounts, and beside podman's."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.e2e.test_podman import nameable
from tests.support.cli import pagepool as program
from tests.support.nodeserver import commands_of, left_over, running_node
from tests.support.podman import Podman, own_storage
from tests.support.tools import require

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pagepool.node.client import NodeClient
    from tests.support.server import Service

    Call = Callable[..., subprocess.CompletedProcess[str]]

_TIMEOUT_S = 120
_CONFIGURATION = "events {} daemon off; http { access_log off; server { listen unix:/tmp/n; root /srv/w; } }"
_ASKING = (
    'perl -MIO::Socket::UNIX -e \'do { $s = IO::Socket::UNIX->new(Peer => "/tmp/n") } until $s; '
    'print $s "GET / HTTP/1.0\\r\\n\\r\\n"; print while <$s>\' | tail -1'
)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NodeClient]:
    """A node with an empty pool."""
    require("runc")
    with running_node(tmp_path) as running:
        yield running


@pytest.fixture
def call(node: NodeClient, service: Service) -> Call:
    """Calls a command of pagepool's."""

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        given = {**os.environ, **commands_of(node, service.url)}
        return subprocess.run(
            [sys.executable, "-m", "pagepool.cli", *words],
            env=given,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIMEOUT_S,
        )

    return call


@pytest.fixture
def name() -> str:
    """Of a container: all on this machine are in one list."""
    return f"test-{secrets.token_hex(6)}"


@pytest.mark.parametrize("runtime", ["runc", "own"])
def test_a_server_is_looked_after(
    images: dict[str, Path], service: Service, call: Call, node: NodeClient, name: str, runtime: str
) -> None:
    program("push", "--quiet", images["nginx-new"], "nginx:1", server=service.url)
    script = f"mkdir -p /srv/w; echo first > /srv/w/index.html; echo '{_CONFIGURATION}' > /tmp/c; exec nginx -c /tmp/c"
    began = call("run", "-d", "--rm", "--runtime", runtime, "--name", name, "nginx:1", "--", "sh", "-c", script)
    assert began.returncode == 0, began.stderr
    try:
        assert call("exec", name, "sh", "-c", _ASKING).stdout == "first\n"
        assert call("exec", name, "sh", "-c", "echo second > /srv/w/index.html").returncode == 0
        assert call("exec", "-u", "www-data", name, "sh", "-c", f"id -un; {_ASKING}").stdout == "www-data\nsecond\n"
        assert call("exec", name, "nginx", "-c", "/tmp/c", "-t").returncode == 0
    finally:
        assert call("stop", name).stdout == f"{name}\n"
    assert call("exec", name, "true").returncode == 125
    assert left_over(node) == []


@pytest.mark.parametrize("image", ["slim", "numpy-new"])
def test_programs_of_images(
    images: dict[str, Path], slim: Path, service: Service, call: Call, node: NodeClient, name: str, image: str
) -> None:
    """What the container wrote is there for them, and what they write for it; files are fetched for them, too."""
    program("push", "--quiet", {**images, "slim": slim}[image], f"{image}:1", server=service.url)
    script = "echo its > /written; while ! test -e /answer; do sleep 0.05; done; cat /answer; exec sleep 1000"
    began = call("run", "-d", "--rm", "--runtime", "own", "--name", name, f"{image}:1", "--", "sh", "-c", script)
    assert began.returncode == 0, began.stderr
    try:
        python = "import json, sys; print(json.dumps(open('/written').read()))"
        words = ("cat", "/written") if image == "slim" else ("python3", "-c", python)
        reading = "while ! test -e /written; do sleep 0.05; done; cat /written"
        assert call("exec", name, "sh", "-c", reading).stdout == "its\n"
        assert call("exec", name, *words).stdout.strip().strip('"').removesuffix("\\n") == "its"
        if image == "numpy-new":
            multiply = "import numpy; a = numpy.ones((20, 20)); print(int((a @ a).sum()))"
            assert call("exec", name, "python3", "-c", multiply).stdout == "8000\n"
        assert call("exec", name, "sh", "-c", "echo theirs > /later; mv /later /answer").returncode == 0
        while call("logs", name).stdout != "theirs\n":
            pass
    finally:
        assert call("stop", "--time", "0", name).returncode == 0
    assert left_over(node) == []


@pytest.fixture(scope="module")
def podman(slim: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    """One that runs a container ``c``."""
    with own_storage() as podman:
        layout = nameable(slim, tmp_path_factory.mktemp("podman"))
        image = podman.podman("pull", "--quiet", f"oci:{layout}:latest").strip()
        options = ("--network", "none", "--name", "c", "--env", "A=1", "--workdir", "/srv")
        podman.podman("run", "--detach", *options, image, "sleep", "1000")
        try:
            yield podman
        finally:
            podman.podman("rm", "--force", "--time", "0", "c")


@pytest.mark.parametrize("runtime", ["runc", "own"])
def test_it_is_as_podmans(slim: Path, service: Service, call: Call, podman: Podman, name: str, runtime: str) -> None:
    """Exit codes, environment, user and directory; users by number, as podman does not find the tables here."""
    program("push", "--quiet", slim, "debian:1", server=service.url)
    options = ("--network", "none", "--runtime", runtime, "--name", name, "--env", "A=1", "--workdir", "/srv")
    began = call("run", "--detach", "--rm", *options, "debian:1", "--", "sleep", "1000")
    assert began.returncode == 0, began.stderr
    shown = "echo $A $B $PATH $HOME; pwd; id -u; id -g; id -G; umask"
    cases: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
        ((), ("sh", "-c", shown)),
        (("--user", "4444"), ("sh", "-c", "id -u; id -g; pwd")),
        (("--user", "4444:7", "--workdir", "/usr"), ("sh", "-c", "id -u; id -g; id -G; pwd")),
        (("--env", "A=2", "--env", "B=3"), ("sh", "-c", shown)),
        ((), ("sh", "-c", "exit 7")),
        ((), ("sh", "-c", "kill -9 $$")),
        ((), ("nope",)),
        ((), ("/etc/passwd",)),
    )
    try:
        for given, words in cases:
            done = call("exec", *given, name, *words)
            theirs = podman.attempt("exec", *given, "c", *words)
            assert (done.returncode, done.stdout) == (theirs.returncode, theirs.stdout), (given, words, done.stderr)
        assert call("exec", f"{name}-gone", "true").returncode == podman.attempt("exec", "gone", "true").returncode
    finally:
        assert call("stop", "--time", "0", name).returncode == 0
