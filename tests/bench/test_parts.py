"""Parts of the benchmark against what they are parts of: `du`, the kernel, a tar, arithmetic."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from pagepool.linux.processes import process_tree
from pagepool_service.bench.big import make_big_image
from pagepool_service.bench.images import find_images, find_pair
from pagepool_service.bench.ingest import IngestTime
from pagepool_service.bench.registry import PushTime, Results, Run
from pagepool_service.bench.report import make_report
from pagepool_service.bench.servers import PAGEPOOL, PEER
from pagepool_service.bench.usage import Memory, MemorySampler, disk_bytes
from tests.bench.samples import write_layout

MIB = 1 << 20
TOTALS = {"stored_bytes": 900, "stored": {"files": 500, "opaque": 300, "spool": 0, "uploads": 0, "index": 100}}


def test_disk_as_du_counts(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(8 * MIB)
        file.write(b"x" * 5000)
        os.fsync(file.fileno())  # or the file system allocates its blocks when it pleases
    os.link(tmp_path / "sparse", tmp_path / "below" / "again")
    du = subprocess.run(["du", "-s", "-B1", tmp_path], capture_output=True, text=True, check=True).stdout
    assert disk_bytes(tmp_path) == int(du.split()[0])


def test_memory_of_a_process_and_its_children() -> None:
    script = "import subprocess, sys; x = b'1' * (64 << 20); subprocess.run([sys.executable, '-c', sys.argv[1]])"
    child = "x = b'1' * (32 << 20); print(flush=True); input()"
    command = ["python3", "-c", script, child]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert len(list(process_tree(process.pid))) == 2
        with MemorySampler(process.pid) as sampler:
            peak = sampler.peak()
        process.communicate(b"\n")
    assert 96 * MIB < peak.private <= peak.pss <= peak.high_water < 160 * MIB


def test_a_big_layer_is_a_tar_with_old_new_and_random_files(tmp_path: Path) -> None:
    real = {f"f{number}": os.urandom(50) * 4000 for number in range(8)}
    write_layout(tmp_path / "source", real)
    (source,) = find_images([tmp_path / "source"])
    image = make_big_image(source, tmp_path, 20 * MIB)
    (layer,) = image.layers
    assert hashlib.sha256(layer.path.read_bytes()).hexdigest() == layer.digest.hex
    assert layer.size >= 20 * MIB
    with tarfile.open(layer.path) as archive:
        members = archive.getmembers()
        contents = [archive.extractfile(member).read() for member in members]  # type: ignore[union-attr]
    assert sum(data in real.values() for data in contents) == pytest.approx(len(contents) / 3, abs=4)
    assert (members[-1].name, members[-1].size) == ("single", 5 * MIB)
    again = tmp_path / "again"
    again.mkdir()
    assert make_big_image(source, again, 20 * MIB).layers[0].digest == layer.digest


def test_the_pair(tmp_path: Path) -> None:
    for name in ("a", "b-old", "b-new", "numpy-new"):
        write_layout(tmp_path / name, {"name": name.encode()})
    images = find_images([tmp_path])

    def names() -> list[str]:
        return [image.name for image in find_pair(images) or ()]

    assert names() == ["b-old", "b-new"]
    write_layout(tmp_path / "numpy-old", {"name": b"numpy-old"})
    images = find_images([tmp_path])
    assert names() == ["numpy-old", "numpy-new"]
    images = find_images([tmp_path / "numpy-new", tmp_path / "a"])
    assert names() == ["numpy-new", "a"]
    assert find_pair(images[:1]) is None


def run(kind: str, seconds: float, memory: int = 100) -> Run:
    totals = TOTALS if kind == PAGEPOOL else {}
    peak = Memory(memory * MIB, memory * MIB // 2, 2 * memory * MIB)
    pushes = [PushTime("a", 5, seconds, 2 * seconds)]
    return Run(kind, pushes, 1.0, 2.0, 700, 2 * seconds, 1000, [seconds, 9.0, seconds], peak, 1000, totals)


def test_figures() -> None:
    runs = [run(PAGEPOOL, 4.0), run(PEER, 2.0), run(PAGEPOOL, 2.0, 399), run(PEER, 1.0), run(PAGEPOOL, 8.0)]
    ingest = [[IngestTime("a", 10**9, 4.0), IngestTime("b", 10**9, 2.5)]]
    results = Results(["a"], runs, ingest)
    report = make_report(results)
    lines: dict[str, object] = {line.name: (line.pagepool, line.peer, line.ratio) for line in report.lines}
    assert lines["push until acknowledged, s"] == (4.0, 1.5, pytest.approx(4 / 1.5))
    assert lines["push until ready, s"] == (8.0, 3.0, pytest.approx(8 / 3))
    assert lines["stored until then, MB"] == (pytest.approx(700e-6), pytest.approx(700e-6), pytest.approx(1.0))
    assert lines["first pull, compared, MB/s"] == (
        pytest.approx(125e-6),
        pytest.approx(375e-6),
        pytest.approx(1 / 3),
    )
    assert lines["stored, but opaque copies, MB"] == (pytest.approx(600e-6), pytest.approx(1000e-6), pytest.approx(0.6))
    assert [target.met for target in report.targets] == [True, True, False, True, True]
    worse = dataclasses.replace(results, big=[run(PAGEPOOL, 1.0, 401)])
    assert [target.met for target in make_report(worse).targets] == [True, True, False, True, False]
    assert not report.beside
    prototype = [[IngestTime("a", 10**9, 3.8), IngestTime("b", 10**9, 2.0)]]
    beside = make_report(dataclasses.replace(results, prototype=prototype))
    ratios: list[object] = [(line.pagepool, line.peer, line.ratio) for line in beside.beside]
    assert ratios == [(250, pytest.approx(263.2, abs=0.1), pytest.approx(0.95)), (400, 500, pytest.approx(0.8))]
    judged = {target.name: target.met for target in beside.targets if "prototype" in target.name}
    assert judged == {
        "ingest, first image, of the plain prototype's speed": True,
        "ingest, near-identical image, of the plain prototype's speed": False,
    }
    alone = dataclasses.replace(results, runs=runs[:1], ingest=[])
    assert [target.met for target in make_report(alone).targets] == [None, None, None, None, True]
