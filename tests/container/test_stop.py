"""`pagepool stop`: containers end, by their own signal or by force, and nothing else gets a signal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from click.shell_completion import ShellComplete

from pagepool.cli import roots
from pagepool.cli.app import group
from pagepool.container import cleanup_stale, find_containers, list_containers, stopping
from pagepool.container.records import RUNNING, hold
from pagepool.errors import BusyError
from tests.container.conftest import READY, TIMEOUT_S, begin, end

if TYPE_CHECKING:
    from pathlib import Path

    from tests.container.conftest import Place

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def test_by_name(place: Place) -> None:
    started = begin(place, "--name", "web", "--", "sh", "-c", f"trap 'echo bye; exit 3' TERM; {READY}")
    done = place.call(*place.command("stop", "web"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "web\n", "")
    # When it says so nothing is left.
    assert place.containers() == []
    assert end(started) == (3, "bye\n")


@pytest.mark.parametrize(
    ("given", "image", "got"),
    [((), "SIGUSR2", "USR2"), ((), "SIGRTMIN+3", "37"), (("--signal", "hup"), "SIGUSR2", "HUP")],
)
def test_by_which_signal(place: Place, given: tuple[str, ...], image: str, got: str) -> None:
    place.config["StopSignal"] = image
    traps = "".join(f"trap 'echo {name}; exit 0' {name}; " for name in ("TERM", "HUP", "USR2", "37"))
    started = begin(place, "--", "sh", "-c", f"{traps}{READY}")
    (record,) = place.containers()
    done = place.call(*place.command("stop", *given, record.id[:20]))
    assert (done.returncode, done.stdout) == (0, f"{record.id}\n")
    assert end(started) == (0, f"{got}\n")


@pytest.mark.parametrize("wait", ["0", "0.2"])
def test_what_does_not_heed_it_is_killed(place: Place, wait: str) -> None:
    started = begin(place, "--", "sh", "-c", f"trap '' TERM; {READY}")
    (record,) = place.containers()
    done = place.call(*place.command("stop", "--json", "--time", wait, record.id))
    assert json.loads(done.stdout) == {"stopped": [{"id": record.id, "name": None, "killed": True}]}
    assert end(started) == (137, "")


def test_several_and_those_in_the_background(place: Place) -> None:
    script = f"trap 'exit 0' TERM; {READY}"
    names = ["one", "two"]
    for name in names:
        assert place.run("--detach", "--name", name, "--", "sh", "-c", script).returncode == 0
    started = begin(place, "--name", "three", "--", "sh", "-c", script)
    done = place.call(*place.command("stop", "three", *names, "one"))
    assert (done.returncode, done.stdout) == (0, "three\none\ntwo\n")
    assert place.containers() == []
    assert end(started) == (0, "")


def test_what_is_not_known_stops_nothing(place: Place) -> None:
    first, second = (begin(place, "--", "sh", "-c", f"trap 'exit 0' TERM; {READY}") for _ in range(2))
    ids = [record.id for record in place.containers()]
    for name, code, reason in (
        ("web", 3, "container web is unknown"),
        (ids[0][:2], 3, f"container {ids[0][:2]} is unknown"),
        (place.prefix, 4, "the ids of 2 containers begin so"),
    ):
        done = place.call(*place.command("stop", ids[0], name))
        assert done.returncode == code, done.stderr
        assert reason in done.stderr
    assert [record.id for record in place.containers()] == ids
    assert place.call(*place.command("stop", "--time", "0", *ids)).returncode == 0
    assert {end(first)[0], end(second)[0]} == {137}


def test_a_container_whose_owner_was_killed_is_not_known(place: Place) -> None:
    started = begin(place, "--name", "web", "--", "sh", "-c", READY)
    started.kill()
    started.wait()
    assert place.call(*place.command("stop", "web")).returncode == 3
    assert len(cleanup_stale(place.directory)) == 1


def test_a_process_that_has_a_pid_of_before_gets_no_signal(place: Place) -> None:
    started = begin(place, "--name", "web", "--", "sh", "-c", f"trap 'exit 5' TERM; {READY}")
    path = place.directory / place.containers()[0].id / "record"
    with subprocess.Popen(["sleep", "1000"]) as other:
        try:
            path.write_text(json.dumps({**json.loads(path.read_text()), "pid": other.pid}))
            done = place.call(*place.command("stop", "web"))
            assert (done.returncode, done.stdout) == (0, "web\n")
            assert end(started)[0] == 5
            assert other.poll() is None
        finally:
            other.kill()


def test_one_that_is_being_removed_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its record goes before its root does: there is nothing to kill then, and it has not ended either."""
    monkeypatch.setattr(stopping, "_CLEAN_UP_S", 0.01)
    held = hold(tmp_path, "container", "web")
    with subprocess.Popen(["sleep", "1000"]) as owner:
        try:
            held.write(replace(list_containers(tmp_path)[0], owner=owner.pid, status=RUNNING, alone=True))
            (record,) = find_containers(["web"], tmp_path)
            one = stopping.Stopping(record, tmp_path)
            held.close()
            with pytest.raises(BusyError, match=f"process {owner.pid} has not ended"):
                one.wait(0.0)
            assert not one.killed
            assert owner.poll() is None
        finally:
            owner.kill()
        one.wait(TIMEOUT_S)
        one.close()


_PROGRAM = """
import json, sys
from pathlib import Path
from pagepool.container import Container, RunOptions, run_container
from tests.container.driver import make_config
given, directory, runtime, script = json.loads(sys.argv[1]), *sys.argv[2:]
options = RunOptions(command=("sh", "-c", script), name="web")
container = Container(given["prefix"] + "0", "app:1", Path(given["root"]), make_config(given["config"]), options)
print(run_container(container, directory=Path(directory), runtime=runtime), flush=True)
sys.stdin.read()
"""


def test_one_that_a_program_runs_which_goes_on(place: Place) -> None:
    """It has ended when nothing is left of it, though its owner does something else then."""
    words = [place.command()[3], str(place.directory), place.runtime, f"trap 'exit 5' TERM; {READY}"]
    with subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=place.environment(),
        text=True,
    ) as program:
        place.started.append(program)
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
        while [record.status for record in place.containers()] == ["created"]:
            pass
        done = place.call(*place.command("stop", "web"))
        assert (done.returncode, done.stdout, done.stderr) == (0, "web\n", "")
        assert place.containers() == []
        assert program.stdout.readline() == "5\n"
        assert program.poll() is None


def test_shells_complete_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roots, "containers_directory", lambda: tmp_path)
    monkeypatch.setattr(roots, "ended_directory", lambda: tmp_path / "ended")
    helds = [hold(tmp_path, one, name) for one, name in (("0123", "web"), ("4567", ""), ("89ab", "db"))]
    try:
        for incomplete, found in (("", ["web", "4567", "db"]), ("w", ["web"]), ("45", ["4567"]), ("x", [])):
            completion = ShellComplete(group, {}, "pagepool", "_PAGEPOOL_COMPLETE")
            for words in (["stop"], ["exec"], ["logs"], ["stop", "web"]):
                shown = completion.get_completions(words, incomplete)
                assert sorted(item.value for item in shown) == sorted(found), (words, incomplete)
    finally:
        for held in helds:
            held.close()


@pytest.mark.parametrize(("words", "reason"), [((), "CONTAINER"), (("-s", "NOPE", "a"), "'NOPE' is no signal")])
def test_command_lines_that_say_nothing(place: Place, words: tuple[str, ...], reason: str) -> None:
    done = place.call(*place.command("stop", *words))
    assert done.returncode == 2
    assert reason in done.stderr
