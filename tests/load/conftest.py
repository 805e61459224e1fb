"""Load tests at a real service, as programs; each has a directory for temporary files that must be empty in the end."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from pagepool.digest import blake3_raw
from tests.cli.conftest import program_command, program_environment
from tests.service.pushes import push_image
from tests.support.server import Service, running_service

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_TIMEOUT_S = 120.0


def sample_files(seed: int) -> dict[str, bytes]:
    """Files of an image: small ones, some of several pages, one of several extents; equal ones for equal seeds."""
    chance = random.Random(seed)
    files = {f"usr/bin/tool{number}": chance.randbytes(chance.randrange(1, 9000)) for number in range(20)}
    files |= {f"usr/lib/lib{number}.so": chance.randbytes(20_000 * number) for number in range(4)}
    return files | {"usr/share/model.bin": random.Random(0).randbytes(300_000), "etc/empty": b"", "etc/conf": b"x=1\n"}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with two overlapping images, app:1 and app:2."""
    with running_service(tmp_path_factory.mktemp("service") / "data") as running:
        with httpx.Client(base_url=running.url, timeout=60) as http:
            push_image(http, "app", "1", sample_files(1))
            push_image(http, "app", "2", sample_files(1) | sample_files(2))
        yield running


def damage(service: Service, content: bytes, place: int) -> None:
    """Change one bit of an object in a service's pool, as a disk or memory does: no time of the file says so."""
    name = blake3_raw(content).hex()
    path = service.cache / "objects" / name[:2] / name[2:]
    before = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(place)
        file.write(bytes([content[place] ^ 1]))
    path.chmod(before.st_mode)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@dataclass(slots=True)
class Ended:
    """How a program ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """What it printed."""
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found


class Program:
    """A `pagepool load` that was started."""

    def __init__(self, place: Path, *arguments: str) -> None:
        environment = program_environment() | {"TMPDIR": str(place), "HOME": str(place.parent)}
        self.process = subprocess.Popen(
            program_command("load", *arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=place,
        )

    def wait_line(self, start: str) -> str:
        """The next line on standard error that begins so."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if line.startswith(start):
                return line
        raise AssertionError(f"it ended without {start!r}")

    def end(self, number: int | None = None) -> Ended:
        """Wait for its end, after a signal if there is one."""
        if number is not None:
            self.process.send_signal(number)
        out, err = self.process.communicate(timeout=_TIMEOUT_S)
        return Ended(self.process.returncode, out, err)

    def close(self) -> None:
        """End what a failed test has left."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.communicate()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """Where programs have their temporary files."""
    place = tmp_path / "tmp"
    place.mkdir()
    yield place
    assert list(place.iterdir()) == [], "something was left"


@pytest.fixture
def start(place: Path) -> Iterator[Callable[..., Program]]:
    """Starts `pagepool load` with some arguments."""
    started: list[Program] = []

    def begin(*arguments: str) -> Program:
        started.append(Program(place, *arguments))
        return started[-1]

    yield begin
    for one in started:
        one.close()
