"""Running the program: in this process where that will do, as a process where signals and pipes matter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pagepool.cli import credentials
from pagepool.cli.app import run as run_program
from pagepool.node.client import NodeClient
from tests.oci.samples import Sample, simple
from tests.support.nodeserver import running_node
from tests.support.server import running_service
from tests.transport.peer import docker_registry

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Result:
    """How a run of the program ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as JSON."""
        return json.loads(self.out)


Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def clean_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No credentials or settings of the user who runs the tests."""
    for name in ("PAGEPOOL_SERVER", "REGISTRY_AUTH_FILE", "DOCKER_CONFIG", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(credentials, "_RUN", tmp_path / "run-containers")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the program in this process."""

    def invoke(*arguments: str | Path) -> Result:
        capsys.readouterr()
        code = run_program([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return invoke


def program_command(*arguments: str | Path) -> list[str]:
    """The command line of the program as a process."""
    return [sys.executable, "-m", "pagepool.cli", *map(str, arguments)]


def program_environment() -> dict[str, str]:
    """The environment for it."""
    paths = [str(ROOT / "client"), str(ROOT / "service")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"}


def spawn(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the program as a process, to its end."""
    settings: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 60, "cwd": "/"}
    return subprocess.run(program_command(*arguments), env=program_environment(), check=False, **settings | options)


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """``host:port`` of a docker-registry."""
    with docker_registry(tmp_path_factory.mktemp("peer")) as running:
        yield running.host


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """``host:port`` of a pagepool service."""
    with running_service(tmp_path_factory.mktemp("service") / "data") as running:
        yield running.host


@pytest.fixture(scope="module", params=["docker-registry", "pagepool"])
def server(request: pytest.FixtureRequest) -> str:
    """``host:port`` of a registry of each kind."""
    return str(request.getfixturevalue("peer" if request.param == "docker-registry" else "service"))


@pytest.fixture
def layout(tmp_path: Path) -> tuple[Path, Sample]:
    """A layout with one image of two layers, called 1."""
    sample = simple(2)
    return sample.write_layout(tmp_path / "layout", {"1": sample.root()}), sample


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[NodeClient]:
    """The node that commands use."""
    with running_node(tmp_path) as running:
        monkeypatch.setenv("PAGEPOOL_NODE_STATE", str(running.places.state))
        monkeypatch.setenv("PAGEPOOL_NODE_RUN", str(running.places.run))
        yield running


@pytest.fixture
def image(run: Run, service: str, layout: tuple[Path, Sample], monkeypatch: pytest.MonkeyPatch) -> str:
    """An image that is ready."""
    monkeypatch.setenv("PAGEPOOL_SERVER", f"http://{service}")
    assert run("push", "-q", layout[0], "mounting:1").code == 0
    return "mounting:1"
