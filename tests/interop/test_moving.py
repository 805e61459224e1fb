"""The commands by which docs/questions.md moves images to another registry: there, and back."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pagepool.digest import Digest
from pagepool.layout import plan_copy, run_copy
from pagepool.oci import Reference
from pagepool.transport import RegistryClient, RegistrySink, Session
from tests.cli.conftest import program_environment
from tests.oci.samples import Sample
from tests.support.server import running_service
from tests.transport.peer import docker_registry

_PAGE = Path(__file__).parents[2] / "docs" / "questions.md"


def test_images_move_there_and_back(tmp_path: Path) -> None:
    """From docker-registry to pagepool, and from there to another docker-registry: every digest is equal."""
    if shutil.which("skopeo") is None:
        pytest.skip("needs skopeo (apt-get install skopeo)")
    names = ["team/app:1", "web:latest"]
    with docker_registry(tmp_path / "old") as old, running_service(tmp_path / "data") as service:
        for number, name in enumerate(names):
            _push(old.url, name, number)
        before = _digests(old.url, names)
        _move(tmp_path, old.host, service.host)
        assert _digests(service.url, names) == before
        with docker_registry(tmp_path / "new") as new:
            _move(tmp_path, service.host, new.host)
            assert _digests(new.url, names) == before
    assert len(set(before)) == len(names)


def _push(url: str, name: str, number: int) -> None:
    sample = Sample()
    sample.add_image([f"layer of {number}".encode()])
    with Session(url) as session:
        sink = RegistrySink(RegistryClient(session), Reference.parse(name))
        run_copy(plan_copy(sample), sample, sink)


def _move(directory: Path, source: str, target: str) -> None:
    found = re.search(r"<!-- moving -->\n```sh\n(.*?)```", _PAGE.read_text(), re.DOTALL)
    assert found is not None
    script = found[1].replace("127.0.0.1:5001", source).replace("127.0.0.1:5000", target)
    program = f"pagepool() {{ '{sys.executable}' -P -m pagepool.cli \"$@\"; }}\n"
    done = subprocess.run(
        ["sh", "-eu"],
        input=program + script,
        cwd=directory,
        env=program_environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, "not copied" in done.stdout) == (0, False), done.stdout + done.stderr


def _digests(url: str, names: list[str]) -> list[Digest]:
    with Session(url) as session:
        registry = RegistryClient(session)
        found = [registry.head_manifest(one.repository, one.target) for one in map(Reference.parse, names)]
    return [one.digest for one in found if one is not None]
