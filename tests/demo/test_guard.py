"""`pagepool demo` leaves nothing behind, however and whenever it is ended: no process, no file."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.demo.runner import DEMO, Start

# Lines of the report before which a signal is sent; the last are printed when all work is done.
_LINES = range(15)
_SEED = 20240611


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_at_any_step_leaves_nothing(start: Start, place: Path, number: signal.Signals) -> None:
    chosen = random.Random(_SEED + number)
    print(f"seed {_SEED + number}")
    for lines in sorted(chosen.sample(_LINES, 3)):
        demo = start(place)
        seen = demo.read_lines(lines)
        demo.process.send_signal(number)
        status, _, errors = demo.finish()
        told = f"after {lines} lines, {seen[-1:]}: status {status}, {errors!r}"
        assert status == (130 if number == signal.SIGINT else -number), told
        assert errors.strip() == ("pagepool: error: interrupted" if number == signal.SIGINT else ""), told
        assert demo.left() == [], told
        assert list(place.iterdir()) == [], told


def test_a_signal_while_the_program_starts_leaves_nothing(start: Start, place: Path) -> None:
    chosen = random.Random(_SEED)
    print(f"seed {_SEED}")
    for number in (signal.SIGINT, signal.SIGTERM) * 3:
        demo = start(place)
        # Not a synchronisation: the point is to hit anything at all between the interpreter's start and the work.
        with pytest.raises(subprocess.TimeoutExpired):
            demo.process.wait(chosen.uniform(0.02, 0.6))
        demo.process.send_signal(number)
        status, _, errors = demo.finish()
        assert status != 0, errors
        assert demo.left() == [], errors
        assert list(place.iterdir()) == [], errors


def test_many_signals_are_as_good_as_one(start: Start, place: Path) -> None:
    demo = start(place)
    demo.read_lines(6)
    for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGINT):
        demo.process.send_signal(number)
    status, _, errors = demo.finish()
    assert status in (130, -signal.SIGTERM), errors
    assert demo.left() == []


@pytest.mark.parametrize("victim", ["work", "serve"])
def test_a_killed_part_fails_and_leaves_nothing(start: Start, place: Path, victim: str) -> None:
    demo = start(place)
    demo.read_lines(6)
    pids = demo.children()
    working = next(pid for pid, (parent, _) in pids.items() if parent == demo.process.pid)
    serving = next(pid for pid, (parent, _) in pids.items() if parent == working)
    demo.kill(working if victim == "work" else serving)
    status, _, errors = demo.finish()
    assert status == (137 if victim == "work" else 6), errors
    assert errors.startswith("pagepool: error: "), errors
    assert demo.left() == [], errors


def test_every_process_dies_with_the_first(start: Start, place: Path) -> None:
    demo = start(place)
    demo.read_lines(6)
    demo.process.kill()
    demo.finish()
    demo.wait_gone()
    # Nobody is left to remove the directory; the fixture wants it gone.
    (stale,) = place.iterdir()
    assert stale.name.startswith("pagepool-demo-")
    shutil.rmtree(stale)


def test_an_ignored_signal_stays_ignored(start: Start, place: Path) -> None:
    demo = start(place, command=["sh", "-c", f"trap '' HUP; exec {' '.join(DEMO)} --size 5MB --json"])
    demo.wait_forked()
    demo.process.send_signal(signal.SIGHUP)
    status, printed, errors = demo.finish()
    assert status == 0, errors
    assert '"equal": true' in printed


def test_what_is_there_already_is_not_replaced(start: Start, place: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("mine")
    status, _, errors = start(place, "--keep", str(kept)).finish()
    assert status == 4
    assert errors == f"pagepool: error: invalid image '{kept}': exists: --keep names a new or empty directory\n"
    assert (kept / "file").read_text() == "mine"


def test_an_interrupted_demo_keeps_nothing(start: Start, place: Path, tmp_path: Path) -> None:
    demo = start(place, "--keep", str(tmp_path / "kept"))
    demo.read_lines(8)
    demo.process.send_signal(signal.SIGINT)
    status, _, _ = demo.finish()
    assert status == 130
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["tmp"]
