"""`pagepool bench pods` on a small image: what it says, what it wants, and what it leaves behind."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pagepool.cli import app
from pagepool_service.bench.mountstart import Program
from pagepool_service.bench.podbench import PodPlan, PodTimes, best_of, compare_ways, measure_pods
from tests.bench.samples import write_layout
from tests.support.kernelmounts import skip_without_kernel_mounts
from tests.support.tools import require

_UNREAD = 4 << 20
_TOOLS = ("containerd", "containerd-shim-runc-v2", "ip", "nsenter", "runc", "skopeo", "setpriv")


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image with a program, and more than that reads."""
    busybox = Path("/bin/busybox")
    if not busybox.exists():
        pytest.skip("needs busybox (apt-get install busybox-static)")
    path = tmp_path_factory.mktemp("layouts") / "tool"
    write_layout(path, {"bin/sh": busybox.read_bytes(), "opt/unread": os.urandom(_UNREAD)})
    return path


@pytest.fixture
def work() -> Iterator[Path]:
    """A directory with a short path, as sockets need; there is nothing of it in the end."""
    with tempfile.TemporaryDirectory(prefix="ppt-") as name:
        yield Path(name)
        assert list(Path(name).iterdir()) == []
        assert name not in Path("/proc/self/mountinfo").read_text()
    group = f"pagepool-bench-{os.getpid()}"
    found = [path for pattern in (group, f"*/{group}") for path in Path("/sys/fs/cgroup").glob(pattern)]
    assert [*found, *Path("/run/netns").glob(f"{group}*")] == []


def test_pods_in_every_way(layout: Path, work: Path) -> None:
    require(*_TOOLS)
    skip_without_kernel_mounts()
    program = Program("echo", ("absent", "tool"), ("/bin/sh", "-c", "echo ready"))
    said: list[str] = []
    environment = {**os.environ, "PAGEPOOL_RECOMPRESS": "no"}
    plan = PodPlan({"tool": layout}, 1, False, work, environment, said.append)
    results = measure_pods(plan, [program, Program("none", ("absent",), ("/bin/sh",))])
    assert list(results.rounds) == ["echo"]
    received = {way: rounds[0].received for way, rounds in results.rounds["echo"].items()}
    assert sorted(received) == ["overlayfs", "pagepool", "pagepool, learned"]
    assert len(said) == len(received)
    assert max(received["pagepool"], received["pagepool, learned"]) < _UNREAD < received["overlayfs"]
    assert len(results.figures) == 8
    assert all(one.ratio for one in results.figures)
    told = json.loads(json.dumps(results.as_json()))
    assert told["rounds"]["echo"]["overlayfs"][0]["received"] == received["overlayfs"]


def test_what_stands_beside_what() -> None:
    ours, other = PodTimes(1.0, 0.5, 0.2, 2_000_000), PodTimes(4.0, 3.0, 0.1, 8_000_000)
    faster = PodTimes(0.5, 0.5, 0.2, 1_000_000)
    ways = {"pagepool": ours, "pagepool, learned": faster, "overlayfs": other, "overlayfs, docker-registry": ours}
    found = list(compare_ways("echo", ways))
    assert [(one.name, one.against) for one in found] == [
        (f"echo{words}: {what}", way)
        for words in ("", ", learned")
        for way in ("overlayfs", "overlayfs, docker-registry")
        for what in ("from nothing, s", "pull alone, s", "MB received", "a further container, s")
    ]
    assert [one.ratio for one in found[:4]] == [0.25, 0.5 / 3, 0.25, 2.0]
    assert [one.ratio for one in found[12:]] == [0.5, 1.0, 0.5, 1.0]


def test_the_best_round_counts() -> None:
    slow, fast = PodTimes(3.0, 0.5, 0.2, 900), PodTimes(2.0, 0.7, 0.3, 1000)
    assert best_of([slow, fast]) == PodTimes(2.0, 0.5, 0.2, 1000)


def test_no_images(layout: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert app.run(["bench", "pods"]) == 2
    assert "which images? Give --images DIR" in capsys.readouterr().err
    monkeypatch.setenv("PATH", "/nowhere")
    assert app.run(["bench", "pods", "--images", str(layout)]) == 1
    assert "bench pods needs busybox (apt-get install busybox-static), containerd (" in capsys.readouterr().err
