"""`pagepool bench registry` on two small images: what it says, and what it leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.bench.samples import write_layout
from tests.support.cli import environment, pagepool
from tests.support.tools import ToolError, require


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with two near-identical images."""
    directory = tmp_path_factory.mktemp("layouts")
    for number, name in enumerate(("tool-old", "tool-new")):
        write_layout(directory / name, {"shared": os.urandom(1 << 20), "own": bytes([number]) * 300_000})
    return directory


def measured(layouts: Path, work: Path, *options: str) -> dict[str, Any]:
    said = pagepool("bench", "registry", "--images", layouts, "--work", work, "--runs", "1", "--json", *options)
    result: dict[str, Any] = json.loads(said)
    return result


def test_beside_docker_registry(layouts: Path, tmp_path: Path) -> None:
    require("docker-registry", root=False)
    result = measured(layouts, tmp_path, "--peer", "--report", str(tmp_path / "report.json"))
    assert [run["kind"] for run in result["runs"]] == ["pagepool", "docker-registry"]
    assert json.loads((tmp_path / "report.json").read_text()) == result
    (tmp_path / "report.json").unlink()
    assert not list(tmp_path.iterdir())
    for run in result["runs"]:
        assert [push["name"] for push in run["pushes"]] == ["tool-new", "tool-old"]
        assert all(push["ready_s"] >= push["acknowledged_s"] > 0 for push in run["pushes"])
        assert run["pulled"] > 2_000_000
        assert run["disk"] > run["pulled"] / 3
        assert 0 < run["memory"]["private"] < run["memory"]["pss"] <= run["memory"]["high_water"]
    assert all(line["ratio"] > 0 for line in result["lines"] if line["peer"] is not None)
    assert {target["met"] for target in result["targets"]} <= {True, False}
    (ingest,), (prototype,) = result["ingest"], result["prototype"]
    assert [image["name"] for image in ingest] == ["tool-old", "tool-new"]
    assert [image["plain_size"] for image in prototype] == [image["plain_size"] for image in ingest]
    assert [line["name"] for line in result["beside_prototype"]] == [
        "ingest, first image, MB/s",
        "ingest, near-identical image, MB/s",
    ]


def test_without_docker_registry(layouts: Path, tmp_path: Path) -> None:
    result = measured(layouts, tmp_path, "--no-peer")
    assert [run["kind"] for run in result["runs"]] == ["pagepool"]
    assert all(line["ratio"] is None for line in result["lines"])
    assert [target["met"] for target in result["targets"] if "docker-registry" in target["name"]] == [None, None]


def test_a_table_for_people(layouts: Path, tmp_path: Path) -> None:
    said = pagepool("bench", "registry", "--images", layouts, "--work", tmp_path, "--runs", "1", "--no-peer")
    assert "2 images, medians of 1 runs" in said
    assert "stored, but opaque copies, MB" in said
    assert "not measured" in said
    assert "of the plain prototype's speed" in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(layouts: Path, tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "pagepool.cli", "bench", "registry", "--images", str(layouts), "--no-peer"]
    process = subprocess.Popen(
        [*command, "--work", str(tmp_path), "--runs", "100"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment()},
    )
    assert process.stderr is not None
    with process, process.stderr:
        said = next(line for line in process.stderr if "took" in line)
        assert "pagepool took tool-new" in said
        servers = children(process.pid)
        assert servers
        process.send_signal(number)
        process.stderr.read()
        assert process.wait(60) == 130
    assert not list(tmp_path.iterdir())
    assert not any(Path(f"/proc/{server}").exists() for server in servers)


def test_no_images() -> None:
    with pytest.raises(ToolError, match=r"tests/support/images\.py --set bench"):
        pagepool("bench", "registry")


def test_not_a_layout(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="neither an OCI layout nor a directory of OCI layouts"):
        pagepool("bench", "registry", "--images", tmp_path)


def children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
