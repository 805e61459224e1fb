"""The lazy peer of `pagepool bench mount`: containerd, and with it stargz-snapshotter where that is installed."""

from __future__ import annotations

import os
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

import pytest

from pagepool.cli import app
from pagepool.errors import UnreachableError
from pagepool_service.bench.containerd import CLIENT, Containerd
from pagepool_service.bench.estargz import convert_image
from pagepool_service.bench.lab import Lab
from pagepool_service.bench.mountrows import Row, row
from pagepool_service.bench.mountstart import Program, measure_start
from pagepool_service.bench.stargz import stargz_missing
from pagepool_service.bench.subjects import BenchError, first_output_s, run
from pagepool_service.commands.benchmount import _lazy_cells
from tests.bench.samples import write_layout
from tests.support.layouts import read_image
from tests.support.pythonroot import python_root
from tests.support.tools import require

_SPEAK = ("/usr/bin/python3", "-I", "-S", "-c", "print('ready', flush=True)")
_STAY = ("/usr/bin/python3", "-I", "-S", "-c", "import sys; print('ready', flush=True); sys.stdin.read()")
_TOOLS = ("containerd", "ctr", "runc", "skopeo", "ip", "nsenter", "setpriv", "unshare")


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image in which Python runs, and which has more than it reads."""
    path = tmp_path_factory.mktemp("layouts") / "python"
    files = {"opt/unread": os.urandom(2 << 20), **python_root()}
    # eStargz wants every directory of what it moves in the layer.
    parents = {f"{parent}/" for name in files for parent in PurePosixPath(name).parents if parent.name}
    write_layout(path, dict.fromkeys(sorted(parents), b"") | files)
    return path


@pytest.fixture
def work() -> Iterator[Path]:
    """A directory with a short path, as sockets need; there is nothing of it in the end, and no process knows it."""
    with tempfile.TemporaryDirectory(prefix="ppt-") as name:
        yield Path(name)
        assert list(Path(name).iterdir()) == []
        assert name not in Path("/proc/self/mountinfo").read_text()
        assert _processes(name) == []
    group = f"pagepool-bench-{os.getpid()}"
    found = [path for pattern in (group, f"*/{group}") for path in Path("/sys/fs/cgroup").glob(pattern)]
    found += Path("/run/netns").glob(f"{group}*")
    assert found == []


def test_containerd_takes_its_containers_with_it(layout: Path, work: Path) -> None:
    require(*_TOOLS)
    archive = work / "archive"
    run(["skopeo", "copy", "--quiet", f"oci:{layout}", f"oci-archive:{archive}:localhost/python:latest"])
    before = _machine_wide()
    engine = Containerd(work / "c", os.environ)
    try:
        engine.start()
        run(engine.command(CLIENT, "images", "import", archive))
        archive.unlink()
        image = ("--seccomp", "localhost/python:latest")
        assert first_output_s(engine.command(CLIENT, "run", "--rm", *image, "first", *_SPEAK), os.environ) > 0
        staying = engine.command(CLIENT, "run", *image, "second", *_STAY)
        with subprocess.Popen(staying, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as ctr:
            assert ctr.stdout is not None
            assert ctr.stdout.readline() == b"ready\n"
            assert _processes(str(work))
            engine.stop()
            assert ctr.wait() != 0
    finally:
        engine.stop()
    assert _machine_wide() == before


def test_containerd_that_does_not_start(work: Path) -> None:
    require(*_TOOLS)
    engine = Containerd(work / "c", os.environ, ("nsenter", "--net=/absent"))
    with pytest.raises(UnreachableError, match=r"it did not start: .*/absent"):
        engine.start()
    engine.stop()
    with pytest.raises(BenchError, match="too long for the sockets in it"):
        Containerd(work / ("c" * 100), os.environ).start()


def test_it_has_to_be_there(
    layout: Path, tmp_path: Path, work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    require("podman", "docker-registry", *_TOOLS)
    for tool in ("podman", "runc", "docker-registry", "skopeo", "ip", "nsenter"):
        (tmp_path / tool).symlink_to(run(["which", tool]).strip())
    monkeypatch.setenv("PATH", str(tmp_path))
    words = ["bench", "mount", "--no-ours", "--images", str(layout), "--work", str(work), "--only"]

    def said(*more: str) -> tuple[int, str]:
        return app.run([*words, *more]), capsys.readouterr().err

    status, text = said("start", "--peer")  # there is none of the images whose starts are measured
    assert status == 0
    assert "without stargz-snapshotter: there is no containerd (apt-get install containerd), no containerd-st" in text
    status, text = said("start", "--stargz")
    assert status == 1
    assert "needs containerd (apt-get install containerd), containerd-stargz-grpc (a release of github.com/" in text
    status, text = said("start", "--no-peer")
    assert status == 2
    assert "nothing to measure" in text
    status, text = said("many", "--stargz")
    assert status == 2
    assert "--stargz is of the phase start" in text


def test_lazy_starts(layout: Path, work: Path) -> None:
    _require_stargz()
    lab = Lab({"python": layout}, (), 1, work, os.environ, lambda _: None, lazy=True)
    rows = list(measure_start(lab, [Program("python", ("python",), _SPEAK)]))
    links = ("python", "python, learned", "python, 100 Mbit/s, 20 ms", "python, 100 Mbit/s, 20 ms, learned")
    assert [one.name for one in rows] == [f"{name}, {what}" for name in links for what in ("s", "MB received")]
    assert all(one.lazy and one.pagepool is None and one.peer is None for one in rows)


def test_what_a_command_opens_is_put_first(layout: Path, tmp_path: Path, work: Path) -> None:
    _require_stargz()
    plain, made = tmp_path / "plain", tmp_path / "made"
    convert_image(layout, plain, work, os.environ)
    convert_image(layout, made, work, os.environ, _SPEAK)
    names = {target: _names(target) for target in (layout, plain, made)}
    assert set(names[plain]) - set(names[layout]) == {".no.prefetch.landmark", "stargz.index.json"}
    assert set(names[made]) - set(names[layout]) == {".prefetch.landmark", "stargz.index.json"}
    ahead = names[made][: names[made].index(".prefetch.landmark")]
    assert "opt/unread" not in ahead
    assert {name for name in ahead if "/python3" in name}


def test_figures_beside_both() -> None:
    faster = row("start", "s", {"pagepool": 2.0, "docker-registry": 9.0, "stargz-snapshotter": 3.0}, "faster", 4.0)
    assert (faster.judged, faster.lazy_judged, faster.to_lazy) == (4.5, 3.0, 1.5)
    ratio = row(
        "start", "MB", {"pagepool": 20.0, "docker-registry": 80.0, "stargz-snapshotter": 40.0}, "ratio", unit=10
    )
    assert (ratio.lazy, ratio.judged, ratio.lazy_judged, ratio.to_lazy) == (4.0, 0.25, 0.5, 0.5)
    assert _lazy_cells(faster) == ("s", "3.00", "3.00x", "1.50x")
    assert _lazy_cells(Row("start", "s", None, None, "faster", 4.0, 3.0)) == ("s", "3.00", "", "")
    said = ratio.as_json()
    assert (said["stargz"], said["stargz_value"], said["value_to_stargz"]) == (4.0, 0.5, 0.5)


def _require_stargz() -> None:
    require("docker-registry", *_TOOLS)
    if stargz_missing():
        pytest.skip("needs stargz-snapshotter, of which no distribution has a package")


def _names(layout: Path) -> list[str]:
    """What is in an image of one layer, in order."""
    digest = read_image(layout).layers[0].digest
    with tarfile.open(layout / "blobs" / digest.replace(":", "/")) as archive:
        return archive.getnames()


def _processes(word: str) -> list[Path]:
    """Processes with this in an argument."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if word.encode() in path.read_bytes():
                found.append(path)
    return found


def _machine_wide() -> list[str]:
    """What containerd keeps in fixed places."""
    return sorted(str(path) for path in Path("/run/containerd").rglob("*"))
