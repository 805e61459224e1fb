"""`pagepool demo` from the outside: a whole round, in every form of its output."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pagepool.digest import Digest
from pagepool.node.start import own_cgroups
from pagepool.oci import Config, parse_config
from tests.demo.runner import DEMO, Start
from tests.fault.test_node_life import is_empty
from tests.support.nodeserver import require_kernel_mounts

_WITHOUT_SERVICE = (
    "import sys; sys.modules |= dict.fromkeys(('isal', 'lmdb', 'fastapi', 'uvicorn'));"
    " from pagepool.cli import main; main(['demo'])"
)


def _config(layout: Path, tag: str) -> tuple[Path, Config]:
    """The config of one of the demo's images, and its file."""
    entries = json.loads((layout / "index.json").read_bytes())["manifests"]
    digest = next(entry["digest"] for entry in entries if tag in entry["annotations"].values())
    manifest = json.loads((layout / "blobs" / digest.replace(":", "/")).read_bytes())
    path = layout / "blobs" / manifest["config"]["digest"].replace(":", "/")
    return path, parse_config(path.read_bytes())


def test_a_whole_round(start: Start, place: Path) -> None:
    status, printed, errors = start(place, "--json").finish()
    assert (status, errors) == (0, "")
    found = json.loads(printed)
    assert found["equal"] is True
    assert all(check["equal"] and check["expected"] == check["got"] for check in found["checks"])
    kinds = [check["kind"] for check in found["checks"]]
    assert {kind: kinds.count(kind) for kind in kinds} == {"manifest": 2, "config": 2, "layer": 6, "diff_id": 6}
    _check_figures(found)


def test_an_image_is_mounted_by_the_kernel(start: Start, place: Path) -> None:
    """By a node of its own, of which nothing is left: no process, no mount, no control group."""
    require_kernel_mounts()
    status, printed, errors = start(place, "--json").finish()
    assert (status, errors) == (0, "")
    reading = json.loads(printed)["reading"]
    assert (reading["backend"], reading["mounted"], reading["not_kernel"]) == ("kernel", True, "")
    assert reading["kernel"]["files"] > 0
    assert reading["kernel"]["bytes"] > 1 << 20
    assert reading["kernel"]["program"] == "/usr/bin/true"
    assert _traces(place) == []
    assert _nodes_below(place) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_of_the_node_is_left_after_an_interruption(start: Start, place: Path, number: signal.Signals) -> None:
    require_kernel_mounts()
    demo = start(place)
    while not _nodes_below(place):
        assert demo.process.poll() is None, "it ended without a node"
        time.sleep(0.005)
    demo.process.send_signal(number)
    demo.finish()
    deadline = time.monotonic() + 60
    while _nodes_below(place):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert _traces(place) == []
    if number == signal.SIGKILL:  # nobody is left who could remove it
        shutil.rmtree(next(place.iterdir()))


def _nodes_below(place: Path) -> list[str]:
    """Command lines of processes that work below a directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (process / "cmdline").read_text(errors="replace").split("\0")
            if "pagepool.node" in words and any(word.startswith(f"{place}/") for word in words):
                found.append(" ".join(words))
    return found


def _traces(place: Path) -> list[str]:
    """Mounts of a demo, and control groups of nodes with nobody in them. Other tests have demos, and nodes, too."""
    points = Path("/proc/self/mountinfo").read_text().splitlines()
    deadline = time.monotonic() + 60
    while (groups := list(filter(is_empty, own_cgroups()))) and time.monotonic() < deadline:
        time.sleep(0.05)  # it may be that of another node, which begins or ends
    return [line for line in points if str(place) in line] + list(map(str, groups))


def _check_figures(found: dict[str, Any]) -> None:
    """The figures must agree with each other, and show what the demo is there to show."""
    first, second = found["images"]
    total = found["total"]
    assert first["state"] == second["state"] == "ready"
    assert total["logical_bytes"] == first["logical_bytes"] + second["logical_bytes"]
    shared = found["shared"]["same_blob_bytes"]
    assert 0 < shared == first["pushed_bytes"] + second["pushed_bytes"] - total["pushed_bytes"]
    assert first["new_bytes"] + second["new_bytes"] == total["new_bytes"] == total["unique_bytes"]
    assert second["new_bytes"] < second["unique_bytes"] // 4, "nearly all was there already"
    assert sum(total["stored"].values()) == total["stored_bytes"] <= total["disk_bytes"]
    steps = [step["title"] for step in found["steps"]]
    assert steps[:4] == [
        "choose files of this machine",
        "pack them into two images",
        "start the service",
        "push demo/app:1",
    ]
    assert 0 < sum(step["seconds"] for step in found["steps"]) <= found["seconds"]


def _check_report_for_people(printed: str) -> None:
    for part in ("push demo/app:2", "LOGICAL  AS PUSHED", "demo/app:1  ", "both  ", "Every digest is equal.", "docker"):
        assert part in printed
    assert max(len(line) for line in printed.splitlines() if "/kept/" not in line) <= 110


def test_what_is_kept_can_go_round_again(start: Start, place: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    status, printed, errors = start(place, "--keep", str(kept)).finish()
    assert (status, errors) == (0, "")
    _check_report_for_people(printed)
    assert f"pagepool serve --data {kept / 'store'}" in printed
    assert {"images", "store", "pulled-1", "pulled-2"} <= {entry.name for entry in kept.iterdir()}
    again = start(place, "--json", f"{kept}/images:1", f"{kept}/images:2", f"{kept}/pulled-1")
    status, printed, errors = again.finish()
    assert status == 0, errors
    found = json.loads(printed)
    assert [image["name"] for image in found["images"]] == ["demo/images:1", "demo/images:2", "demo/pulled-1:latest"]
    assert found["images"][2]["new_bytes"] == 0, "it is the first image once more"
    _check_that_a_lying_config_is_found_out(start, place, kept / "images")


def _check_that_a_lying_config_is_found_out(start: Start, place: Path, layout: Path) -> None:
    path, config = _config(layout, "1")
    lie = Digest.of(b"something else")
    forged = config.raw.replace(str(config.diff_ids[0]).encode(), str(lie).encode())
    _replace_config(layout, path, forged)
    status, printed, errors = start(place, "--json", f"{layout}:1").finish()
    assert status == 5, errors
    found = json.loads(printed)
    assert found["equal"] is False
    assert [(check["kind"], check["expected"]) for check in found["checks"] if not check["equal"]] == [
        ("diff_id", str(lie))
    ]
    assert found["images"][0]["state"] == "unmountable"


def _replace_config(layout: Path, path: Path, forged: bytes) -> None:
    """Put another config into an image, with all digests as they have to be."""
    old, new = path.name, Digest.of(forged).hex
    (layout / "blobs" / "sha256" / new).write_bytes(forged)
    index = layout / "index.json"
    for entry in json.loads(index.read_bytes())["manifests"]:
        manifest = layout / "blobs" / entry["digest"].replace(":", "/")
        raw = manifest.read_bytes()
        if old.encode() in raw:
            changed = raw.replace(old.encode(), new.encode())
            name = Digest.of(changed).hex
            manifest.with_name(name).write_bytes(changed)
            index.write_bytes(index.read_bytes().replace(manifest.name.encode(), name.encode()))


def test_a_broken_layout_is_refused(start: Start, place: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    status, _, errors = start(place, str(tmp_path / "empty")).finish()
    assert status == 4
    assert "without an OCI layout" in errors
    status, _, errors = start(place, str(tmp_path / "missing")).finish()
    assert (status, "no such layout" in errors) == (4, True)


def test_wrong_usage_is_told(start: Start, place: Path) -> None:
    for size in ("1", "many", "5000GB"):
        status, _, errors = start(place, "--size", size).finish()
        assert status == 2
        assert f"'{size}'" in errors


@pytest.mark.skipif(os.geteuid() == 0 and shutil.which("setpriv") is None, reason="needs setpriv (util-linux)")
def test_needs_no_rights(start: Start, place: Path) -> None:
    """Root without a single capability is nobody in particular."""
    without = ("setpriv", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all") if os.geteuid() == 0 else ()
    status, printed, errors = start(place, command=[*without, *DEMO, "--size", "12MB", "--json"]).finish()
    assert status == 0, errors
    found = json.loads(printed)
    assert found["equal"] is True
    mounted = [step["title"] for step in found["steps"] if step["title"].startswith("mount")]
    assert bool(mounted) is found["reading"]["mounted"]  # no step says that what could not be mounted was


def test_settings_of_a_real_service_do_not_count(
    start: Start, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And quietly it prints nothing but the tables."""
    monkeypatch.setenv("PAGEPOOL_READ_ONLY", "yes")
    monkeypatch.setenv("PAGEPOOL_DATA", str(tmp_path / "precious"))
    status, printed, errors = start(place, "--quiet").finish()
    assert status == 0, errors
    assert not (tmp_path / "precious").exists()
    assert printed.startswith("IMAGE ")
    assert "docker push" not in printed


def test_says_what_is_missing_without_the_service(start: Start, place: Path) -> None:
    status, _, errors = start(place, command=[sys.executable, "-P", "-c", _WITHOUT_SERVICE]).finish()
    assert status == 1
    assert errors == ("pagepool: error: the command demo needs pagepool[service]: pip install 'pagepool[service]'\n")


def test_a_terminal_gets_a_live_line(place: Path) -> None:
    written = _in_terminal([*DEMO, "--size", "12MB"], place)
    assert b"\r\x1b[K  push demo/app:1" in written
    assert b"%" in written
    assert b"Every digest is equal." in written


def test_a_terminal_is_left_as_it_was(place: Path) -> None:
    """Ctrl-C through the terminal itself, with a shell's job control in between as usual."""
    written = _in_terminal([*DEMO, "--size", "12MB"], place, interrupt_after=b"start the service  ")
    assert written.endswith(b"pagepool: error: interrupted\r\n")
    assert b"\x1b[?25h" in written[-120:], "the cursor is shown again"


def _in_terminal(command: list[str], place: Path, interrupt_after: bytes = b"") -> bytes:
    """Run a command in a terminal of its own, and return all that appears there."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["TMPDIR"] = str(place)
        root = Path(__file__).parents[2]
        os.environ["PYTHONPATH"] = f"{root / 'client'}:{root / 'service'}:{os.environ.get('PYTHONPATH', '')}"
        os.execv(command[0], command)
    written = b""
    interrupted = False
    deadline = time.monotonic() + 120
    try:
        while time.monotonic() < deadline:
            written += os.read(terminal, 65536)
            if interrupt_after and interrupt_after in written and not interrupted:
                interrupted = True
                os.write(terminal, b"\x03")
    except OSError:  # how a terminal says that its last user has gone
        pass
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == (130 if interrupt_after else 0), written
    return written
