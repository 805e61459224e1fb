"""A real image's root, unpacked once by umoci; for each test an overlay of it, which is looked at afterwards."""

from __future__ import annotations

import json
import os
import pty
import secrets
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pagepool.container import Record, cleanup_stale, list_containers, list_ended, remove_ended
from pagepool.container.records import DEAD
from tests.support import images
from tests.support.cli import environment
from tests.support.forkserver import DRIVER, fork
from tests.support.sharing import share
from tests.support.tools import require, run

_ROOT = Path(__file__).parents[2]
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TIMEOUT_S = 60
READY = "echo ready; while :; do sleep 0.05; done"


@dataclass
class Place:
    """Where a test runs containers.

    Args:
        root: the container's root.
        directory: where containers are noted.
        runtime: runc or own.
        prefix: what the ids of all its containers begin with.
        started: by `start`.
        config: the ``config`` object of the image's configuration.
        resizes: whether a container's terminal is told when ours has another size.
    """

    root: Path
    directory: Path
    runtime: str
    prefix: str = field(default_factory=lambda: f"test-{secrets.token_hex(6)}-")
    started: list[subprocess.Popen[str]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=lambda: {"Cmd": ["python3"], "Env": [PATH, "LANG=C.UTF-8"]})
    resizes: bool = True

    def argv(self, *arguments: str | Path) -> list[str]:
        """How to start `pagepool run` with these arguments behind its own; the image is named already by ``IMAGE``."""
        return self.command("run", "--runtime", self.runtime, *arguments)

    def command(self, *arguments: str | Path) -> list[str]:
        """How to start any command."""
        given: dict[str, Any] = {"root": str(self.root), "directory": str(self.directory)}
        given |= {"prefix": self.prefix, "config": self.config, "resizes": self.resizes}
        words = [str(word) for word in arguments]
        return [sys.executable, "-m", DRIVER, json.dumps(given), *words]

    def run(
        self, *arguments: str | Path, given: str | None = None, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a container of ``app:1`` to its end; everything behind ``--`` is its command."""
        return self.call(*self.argv(*_with_image(arguments)), given=given, **variables)

    def call(self, *argv: str, given: str | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a program to its end."""
        fresh = [sys.executable, "-m", DRIVER]
        if list(argv[:3]) == fresh and not variables:
            return _call_forked(argv, self.environment(), given)
        return subprocess.run(
            argv,
            env=self.environment() | variables,
            cwd=_ROOT,
            input=given,
            stdin=subprocess.DEVNULL if given is None else None,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            check=False,
            timeout=TIMEOUT_S,
        )

    def start(self, *arguments: str | Path) -> subprocess.Popen[str]:
        """Start a container, its output a pipe."""
        return self._start(self.argv(*_with_image(arguments)))

    def start_command(self, *arguments: str) -> subprocess.Popen[str]:
        """Start any command, its output a pipe."""
        return self._start(self.command(*arguments))

    def _start(self, words: list[str]) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            words,
            env=self.environment(),
            cwd=_ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.started.append(process)
        return process

    def environment(self) -> dict[str, str]:
        """Of what is started."""
        return {**os.environ, **environment()}

    def containers(self) -> list[Record]:
        """What there is."""
        return list_containers(self.directory)

    def ended(self) -> list[Record]:
        """What is kept of those that have ended."""
        return list_ended(self.directory / "ended")


def _call_forked(
    argv: Sequence[str], environment: dict[str, str], given: str | None
) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run` does it, by a process that has imported the driver already."""
    ours, theirs = zip(*(os.pipe() for _ in range(2)), strict=True)
    feeding = os.pipe() if given is not None else ()
    try:
        process = fork(
            argv[3:], environment, *theirs, program=DRIVER, given=feeding[0] if feeding else None, place=_ROOT
        )
    finally:
        for descriptor in (*theirs, *feeding[:1]):
            os.close(descriptor)
    if feeding:
        assert len(given or "") <= select.PIPE_BUF
        os.write(feeding[1], (given or "").encode())
        os.close(feeding[1])
    said = dict.fromkeys(ours, b"")
    try:
        deadline = time.monotonic() + TIMEOUT_S
        waiting = set(ours)
        while waiting:
            ready, _, _ = select.select(list(waiting), [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise subprocess.TimeoutExpired(list(argv), TIMEOUT_S)
            for descriptor in ready:
                part = os.read(descriptor, 1 << 16)
                said[descriptor] += part
                if not part:
                    waiting.remove(descriptor)
        code = process.wait(max(0.0, deadline - time.monotonic()))
    finally:
        process.kill()
        for descriptor in ours:
            os.close(descriptor)
    texts = (said[descriptor].decode(errors="surrogateescape") for descriptor in ours)
    out, err = (text.replace("\r\n", "\n").replace("\r", "\n") for text in texts)
    return subprocess.CompletedProcess(list(argv), code, out, err)


def begin(place: Place, *arguments: str) -> subprocess.Popen[str]:
    """Start a container, and wait for its first line."""
    started = place.start(*arguments)
    assert started.stdout is not None
    assert started.stdout.readline() == "ready\n"
    # It says so itself; that pagepool has noticed comes after.
    while [record.status for record in place.containers()] == ["created"]:
        pass
    return started


def end(started: subprocess.Popen[str]) -> tuple[int, str]:
    """What a container that ends by itself ended with, and showed since."""
    with started:
        out, _ = started.communicate(timeout=TIMEOUT_S)
    return started.returncode, out


def wait_until_gone(pid: int) -> None:
    """Wait for the end of a process."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    assert poller.poll(TIMEOUT_S * 1000), f"{pid} is still there"
    os.close(descriptor)


def in_terminal(place: Place, words: list[str], typed: bytes, until: bytes = b"ready") -> tuple[int, bytes]:
    """Run a program from a terminal of 33 lines, and type something once it shows that it is ready."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (33, 77))
    before = termios.tcgetattr(slave)
    started = subprocess.Popen(
        words, stdin=slave, stdout=slave, stderr=slave, env=place.environment(), start_new_session=True, cwd=_ROOT
    )
    shown = b""
    try:
        ended = os.pidfd_open(started.pid)
        poller = select.poll()
        poller.register(master, select.POLLIN)
        poller.register(ended, select.POLLIN)
        while until not in shown:
            ready = {descriptor for descriptor, _ in poller.poll(TIMEOUT_S * 1000)}
            assert master in ready, f"it has ended, or does nothing: {shown!r}"
            shown += os.read(master, 4096)
        os.write(master, typed)
        # Drained while it ends, so that nothing waits for us.
        while ended not in {descriptor for descriptor, _ in poller.poll(TIMEOUT_S * 1000)}:
            shown += os.read(master, 4096)
        os.close(ended)
        code = started.wait()
        while select.select([master], [], [], 0)[0]:
            shown += os.read(master, 4096)
        assert termios.tcgetattr(slave) == before
    finally:
        started.kill()
        started.wait()
        os.close(master)
        os.close(slave)
    return code, shown


def _with_image(arguments: tuple[str | Path, ...]) -> list[str | Path]:
    words = list(arguments)
    at = words.index("--") if "--" in words else len(words)
    return [*words[:at], "app:1", *words[at:]]


@pytest.fixture(scope="session")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of an image with python, as umoci unpacks it. Nobody writes to it."""
    require("umoci")
    layout = images.build(["python-new"], images.default_cache_dir())["python-new"]

    def unpack(place: Path) -> None:
        run(["umoci", "unpack", "--image", f"{layout}:latest", place])

    return share(tmp_path_factory, "unpacked", unpack) / "rootfs"


@pytest.fixture
def root(unpacked: Path, tmp_path: Path) -> Iterator[Path]:
    """A root of the test's own."""
    memory = tmp_path / "memory"
    for directory in (memory, tmp_path / "root"):
        directory.mkdir()
    # In memory, as the upper of an overlay cannot be on an overlay, which /tmp of a container is.
    run(["mount", "-t", "tmpfs", "tmpfs", memory])
    try:
        (memory / "upper").mkdir()
        (memory / "working").mkdir()
        layers = f"lowerdir={unpacked},upperdir={memory}/upper,workdir={memory}/working"
        run(["mount", "-t", "overlay", "overlay", "-o", layers, tmp_path / "root"])
        try:
            yield tmp_path / "root"
        finally:
            run(["umount", "--lazy", tmp_path / "root"])
    finally:
        run(["umount", "--lazy", memory])


@pytest.fixture(params=["runc", "own"])
def place(request: pytest.FixtureRequest, root: Path, tmp_path: Path) -> Iterator[Place]:
    """Where to run containers by each runtime; nothing may be left of them."""
    if request.param == "runc":
        require("runc")
    found = Place(root, tmp_path / "containers", request.param)
    mounts = _mounts(tmp_path)
    try:
        yield found
        for record in found.ended():
            remove_ended(record)
        left = (
            found.containers(),
            *(list(Path("/sys/fs/cgroup").glob(f"{at}pagepool-{found.prefix}*")) for at in ("", "*/")),
        )
        states = [path for name in ("runc", "logs", "ended") for path in (found.directory / name).glob("*")]
    finally:
        for process in found.started:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        for record in found.containers():  # of a test that failed
            if record.status != DEAD:
                os.kill(record.owner, signal.SIGKILL)
                wait_until_gone(record.owner)
        cleanup_stale(found.directory)
    assert left == ([], [], [])
    assert states == []
    assert _mounts(tmp_path) == mounts


def _mounts(below: Path) -> list[str]:
    return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(below) in line]
