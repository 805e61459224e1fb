"""Programs of real images in containers on kernel mounts: what people run, through `pagepool run`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from typing import TYPE_CHECKING

import pytest

from tests.support.cli import pagepool as program
from tests.support.nodeserver import commands_of, left_over, running_node
from tests.support.tools import require, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pagepool.node.client import NodeClient
    from tests.support.server import Service

    Run = Callable[..., str]

_DATABASE = """set -e
mkdir -p /data && chown postgres: /data
su postgres -s /bin/sh -c '
set -e
PATH=/usr/lib/postgresql/15/bin:$PATH
initdb -D /data -A trust >/dev/null
pg_ctl -D /data -w -l /data/log -o "-k /data -h \\"\\"" start >/dev/null
psql -h /data -qAt -d postgres -c "create table t as select n, md5(n::text) m from generate_series(1, 20000) n"
psql -h /data -qAt -d postgres -c "select count(*), sum(n) from t"
pg_ctl -D /data -w -m fast stop >/dev/null'
"""


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NodeClient]:
    """A node with an empty pool."""
    require("runc")
    with running_node(tmp_path) as running:
        yield running


@pytest.fixture
def start(node: NodeClient, service: Service) -> Run:
    """Runs a command in a container of an image, as `pagepool run` does; what it printed."""

    def start(image: str, *words: str, options: tuple[str, ...] = ()) -> str:
        command = [sys.executable, "-m", "pagepool.cli", "run", *options, f"{image}:1", "--", *words]
        return run(command, commands_of(node, service.url))

    return start


def push(service: Service, layout: Path, name: str) -> None:
    """Push an image, as NAME:1."""
    program("push", "--quiet", layout, f"{name}:1", server=service.url)


def spawn(variables: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    """Call a command that may fail."""
    command = [sys.executable, "-m", "pagepool.cli", *words]
    return subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=False)


def test_a_shell_and_python_with_numpy(images: dict[str, Path], service: Service, start: Run, node: NodeClient) -> None:
    push(service, images["numpy-new"], "numpy")
    assert start("numpy", "sh", "-c", "echo $((6 * 7)); id -un; pwd").split() == ["42", "root", "/"]
    multiply = "import numpy; a = numpy.ones((20, 20)); print(int((a @ a).sum()))"
    assert start("numpy", "python3", "-c", multiply) == "8000\n"
    assert start("numpy", "python3", "-c", multiply, options=("--runtime", "own")) == "8000\n"
    assert left_over(node) == []


def test_what_is_written_is_kept_and_committed(
    slim: Path, service: Service, start: Run, node: NodeClient, tmp_path: Path
) -> None:
    push(service, slim, "debian")
    keeping = ("--upper", str(tmp_path / "work"))
    start("debian", "sh", "-c", "echo one >/srv/kept; rm /etc/motd", options=keeping)
    assert left_over(node) == []
    assert start("debian", "sh", "-c", "cat /srv/kept; echo two >>/srv/kept", options=keeping) == "one\n"
    assert left_over(node) == []
    program("commit", "--quiet", tmp_path / "work", "changed:1", server=service.url)
    assert start("changed", "sh", "-c", "cat /srv/kept; test -e /etc/motd || echo gone") == "one\ntwo\ngone\n"


@pytest.mark.parametrize("options", [("--runtime", "runc"), ("--runtime", "own", "--upper")])
def test_what_a_container_that_runs_has_written(
    options: tuple[str, ...], slim: Path, service: Service, start: Run, node: NodeClient, tmp_path: Path
) -> None:
    """It is compared and committed by the container's name, which goes on."""
    push(service, slim, "debian")
    kept = (str(tmp_path / "work"),) if "--upper" in options else ()
    name = f"named-{uuid.uuid4().hex}"
    script = "echo one >/srv/kept; rm /etc/motd; touch /srv/done; while ! test -e /srv/go; do sleep 0.05; done; exit 3"
    identity = start(
        "debian", "sh", "-c", script, options=(*options, *kept, "--detach", "--name", name, "--tmpfs", "/run/x")
    ).strip()
    variables = commands_of(node, service.url)

    def call(*words: str | Path) -> str:
        return run([sys.executable, "-m", "pagepool.cli", *words], variables)

    try:
        while "A /srv/done" not in (shown := call("diff", name)).splitlines():
            pass
        assert {"A /srv/kept", "D /etc/motd", "C /srv"} <= set(shown.splitlines())
        inverse = call("diff", identity[:12], "debian:1").splitlines()
        assert {"D /srv/kept", "A /etc/motd"} <= set(inverse)
        call("diff", "--tar", tmp_path / "layer.tar", name)
        assert "srv/kept" in run(["tar", "tf", tmp_path / "layer.tar"]).splitlines()
        call("commit", "--quiet", name, "changed:1")
        assert start("changed", "sh", "-c", "cat /srv/kept; test -e /etc/motd || echo gone") == "one\ngone\n"
        # The container ends as soon as it sees the file, and takes `touch` along if that has not ended by then.
        assert spawn(variables, "exec", name, "touch", "/srv/go").returncode in (0, 137)
        assert call("wait", name) == "3\n"
        done = spawn(variables, "commit", name, "changed:2")
        assert (done.returncode, "no container that runs" in done.stderr) == (2, True)
        done = spawn(variables, "diff", name)
        assert (done.returncode, "no container that runs" in done.stderr) == (2, True)
    finally:
        spawn(variables, "container", "rm", "--force", name)
    assert left_over(node) == []


def test_committing_one_that_goes_on_writing(slim: Path, service: Service, start: Run, node: NodeClient) -> None:
    """Is refused: it would be of no one moment. What it has changed is shown all the same."""
    push(service, slim, "debian")
    name = f"named-{uuid.uuid4().hex}"
    start("debian", "sh", "-c", "while :; do echo x >>/srv/log; done", options=("--detach", "--rm", "--name", name))
    variables = commands_of(node, service.url)
    try:
        while "A /srv/log" not in run([sys.executable, "-m", "pagepool.cli", "diff", name], variables):
            pass
        for number in range(20):
            done = spawn(variables, "commit", name, f"writing:{number}")
            if done.returncode:  # else it was made to wait, on a busy machine, while all of it was read
                break
        assert (done.returncode, f"container {name} goes on writing" in done.stderr) == (9, True)
        assert spawn(variables, "inspect", f"writing:{number}").returncode == 3
    finally:
        spawn(variables, "container", "rm", "--force", name)


def test_by_fuse_only_files_are_copied(
    slim: Path, service: Service, start: Run, node: NodeClient, tmp_path: Path
) -> None:
    push(service, slim, "debian")
    name = f"named-{uuid.uuid4().hex}"
    start("debian", "sleep", "600", options=("--backend", "fuse", "--detach", "--rm", "--name", name))
    variables = commands_of(node, service.url)
    try:
        for words in (("diff", name), ("commit", name, "changed:1")):
            done = spawn(variables, *words)
            assert (done.returncode, "only if the kernel mounts it" in done.stderr) == (1, True)
        assert spawn(variables, "cp", f"{name}:/etc/debian_version", str(tmp_path / "version")).returncode == 0
        assert (tmp_path / "version").read_text().startswith("12.")
    finally:
        spawn(variables, "container", "rm", "--force", name)


def test_memory_is_shown_by_the_names_of_containers(slim: Path, service: Service, start: Run, node: NodeClient) -> None:
    push(service, slim, "debian")
    name = f"named-{uuid.uuid4().hex}"
    identity = start("debian", "sleep", "600", options=("--detach", "--rm", "--name", name)).strip()
    try:
        command, variables = [sys.executable, "-m", "pagepool.cli", "memory"], commands_of(node, service.url)
        assert f"\n{name} " in run(command, variables)
        (shown,) = json.loads(run([*command, "--json"], variables))["containers"]
        assert (shown["id"], shown["name"]) == (identity, name)
    finally:
        program("stop", "--time", "0", name)


def test_a_database(postgres: Path, service: Service, start: Run) -> None:
    push(service, postgres, "postgres")
    assert start("postgres", "sh", "-c", _DATABASE) == "20000|200010000\n"


def test_redis_answers(redis: Path, service: Service, start: Run) -> None:
    push(service, redis, "redis")
    script = (
        "redis-server --port 0 --unixsocket /tmp/s --daemonize yes >/dev/null; "
        "for i in $(seq 200); do redis-cli -s /tmp/s ping >/dev/null 2>&1 && break; sleep 0.05; done; "
        "redis-cli -s /tmp/s set a 1; redis-cli -s /tmp/s incr a; redis-cli -s /tmp/s shutdown nosave"
    )
    assert start("redis", "sh", "-c", script).split() == ["OK", "2"]


def test_nginx_serves(images: dict[str, Path], service: Service, start: Run) -> None:
    push(service, images["nginx-new"], "nginx")
    script = (
        "set -e; mkdir -p /srv/w; echo hello from nginx > /srv/w/index.html; "
        "printf 'events {} http { server { listen unix:/tmp/n; root /srv/w; } }' > /tmp/c; nginx -c /tmp/c; "
        'perl -MIO::Socket::UNIX -e \'$s = IO::Socket::UNIX->new(Peer => "/tmp/n") or die; '
        'print $s "GET / HTTP/1.0\\r\\n\\r\\n"; print while <$s>\' | tail -1; nginx -c /tmp/c -s stop'
    )
    assert start("nginx", "sh", "-c", script) == "hello from nginx\n"


def test_what_starts_open_is_learned(images: dict[str, Path], service: Service, start: Run) -> None:
    push(service, images["python-new"], "python")
    start("python", "python3", "-c", "import json, ssl")
    found = json.loads(program("profile", "show", "--json", "python:1", server=service.url))
    assert found["starts"] == 1
    assert any(one["path"].endswith("/python3.11") for one in found["objects"])
    program("profile", "rm", "python:1", server=service.url)
    start("python", "true")
