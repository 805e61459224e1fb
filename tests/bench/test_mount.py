"""`pagepool bench mount`: its parts, and the side of podman on small images; what it leaves behind."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pagepool.cli import app
from pagepool_service.bench.charging import brought_in
from pagepool_service.bench.mountbench import PHASES
from pagepool_service.bench.mountcache import base_files, differing, find_trio, read_files
from pagepool_service.bench.mountrows import Row, row
from pagepool_service.bench.mountwarm import TASKS, compare, take_sample
from pagepool_service.bench.mountwrite import write_large_layout
from pagepool_service.bench.subjects import BenchError, first_output_s, run
from pagepool_service.commands.benchmount import _cells
from tests.bench.samples import write_layout
from tests.support.tools import require

_OLD = {"etc/one": b"1" * 5000, "etc/two": b"2" * 100, "etc/copy": b"1" * 5000}
_NEW = {"etc/one": b"1" * 5000, "etc/two": b"3" * 9000, "etc/twice": b"3" * 9000}


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images on two near-identical bases."""
    directory = tmp_path_factory.mktemp("layouts")
    for name, files in (("app-old", _OLD), ("other-old", _OLD), ("app-new", _NEW)):
        write_layout(directory / name, files)
    return directory


@pytest.fixture
def work() -> Iterator[Path]:
    """A directory with a short path, as sockets need; nothing is mounted below it in the end."""
    with tempfile.TemporaryDirectory(prefix="ppt-") as name:
        yield Path(name)
        assert name not in Path("/proc/self/mountinfo").read_text()


@pytest.fixture
def nothing_is_left() -> Iterator[None]:
    yield
    places = [Path("/run/netns"), Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")]
    found = [path for place in places if place.is_dir() for path in place.glob(f"pagepool-bench-{os.getpid()}*")]
    assert found == []


@pytest.mark.usefixtures("nothing_is_left")
def test_podman_alone(layouts: Path, tmp_path: Path, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    require("podman", "runc", "skopeo", "docker-registry", "ip", "nsenter")
    report = tmp_path / "report.json"
    words = ["bench", "mount", "--images", str(layouts), "--work", str(work), "--report", str(report), "--json"]
    assert app.run([*words, "--no-ours", "--peer", "--only", "cache,write", "--large", "1"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == json.loads(report.read_text())
    assert said["images"] == ["app-new", "app-old", "other-old"]
    figures = {one["name"]: one for one in said["figures"]}
    assert all(one["pagepool"] is None and one["met"] is None for one in figures.values())
    assert figures["page cache added, another of the same image, MB"]["overlayfs"] < 0.1
    assert figures["disk that takes (1 MiB), MB"]["overlayfs"] > 1


def test_phases_that_there_are_not(layouts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["bench", "mount", "--images", str(layouts), "--only", "warm,hot"]) == 2
    assert "hot: there are start, cache, warm, write, many" in capsys.readouterr().err
    assert app.run(["bench", "mount"]) == 2
    assert tuple(PHASES) == ("start", "cache", "warm", "write", "many")


def test_rows() -> None:
    faster = row("start", "s", {"pagepool": 2.0, "docker-registry": 9.0}, "faster", 4.0)
    assert (faster.judged, faster.met) == (4.5, True)
    ratio = row("warm", "us", {"pagepool": 11.0, "docker-registry": 10.0}, "ratio", 1.05, unit=10)
    assert (ratio.pagepool, ratio.judged, ratio.met) == (1.1, 1.1, False)
    value = row("cache", "MB", {"pagepool": 0.0}, "value", 1.0)
    assert (value.judged, value.peer, value.met) == (0.0, None, True)
    assert _cells(faster) == ("s", "2.00", "9.00", "4.50x", ">= 4", "met")
    assert _cells(row("cache", "MB", {"docker-registry": 123.4})) == ("MB", "-", "123", "", "", "")
    assert Row("p", "n", 1.0, None, "ratio", 2.0).met is None
    assert ratio.as_json()["met"] is False


def test_images_for_the_page_cache(layouts: Path) -> None:
    found = find_trio({path.name: path for path in layouts.iterdir()})
    assert found == ("app-old", "other-old", "app-new")
    assert find_trio({"app-old": layouts / "app-old", "app-new": layouts / "app-new"}) is None
    old, new = base_files(layouts / "app-old"), base_files(layouts / "app-new")
    assert {name: one.size for name, one in old.items()} == {b"etc/one": 8192, b"etc/two": 4096, b"etc/copy": 8192}
    assert differing(old, new) == 12_288
    assert differing(old, old) == 0


@pytest.mark.usefixtures("nothing_is_left")
def test_page_cache_that_a_process_brings_in(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("needs root")
    path = tmp_path / "data"

    def write() -> None:
        path.write_bytes(bytes(4 << 20))

    assert (4 << 20) <= brought_in(write) < (8 << 20)
    assert brought_in(lambda: read_files(tmp_path, [b"data", b"absent"])) < (1 << 20)
    with pytest.raises(BenchError):
        brought_in(lambda: (tmp_path / "absent").read_bytes())


def test_reading_two_trees(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "lib").mkdir(parents=True)
        (tmp_path / name / "lib/large").write_bytes(bytes(40_000))
        (tmp_path / name / "small").write_bytes(b"s")
        (tmp_path / name / "link").symlink_to("small")
    sample = take_sample(tmp_path / "one")
    assert (len(sample.files), sample.size) == (2, 40_000)
    rows = list(compare({"pagepool": tmp_path / "one", "docker-registry": tmp_path / "two"}))
    assert [one.name for one in rows] == [task.name for task in TASKS]
    assert all(one.judged is not None and one.judged > 0 for one in rows)


def test_first_output() -> None:
    assert first_output_s(["sh", "-c", "echo first; cat >/dev/null"], os.environ) > 0
    with pytest.raises(BenchError, match="exit status 3"):
        first_output_s(["sh", "-c", "echo first; echo why >&2; exit 3"], os.environ)
    with pytest.raises(BenchError, match="output False"):
        first_output_s(["true"], os.environ)
    with pytest.raises(BenchError, match="no such thing"):
        run(["sh", "-c", "echo no such thing >&2; false"])


def test_large_layout(tmp_path: Path) -> None:
    write_large_layout(tmp_path / "large", 2 << 20)
    (name,) = base_files(tmp_path / "large").items()
    assert (name[0], name[1].size) == (b"large", 2 << 20)
