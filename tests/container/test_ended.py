"""What is kept of containers in the background that have ended: `ps --all`, `wait`, `logs`, `stop`, `container rm`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.shell_completion import ShellComplete

from pagepool.cli import roots
from pagepool.cli.app import group
from pagepool.cli.containers import show_age
from pagepool.container import (
    Record,
    Waiting,
    cleanup_stale,
    ended,
    list_all,
    list_containers,
    list_ended,
    remove_ended,
)
from pagepool.container.ended import remove_unreadable, write_ended
from pagepool.container.records import EXITED, RUNNING, hold
from tests.container.conftest import READY, begin, end, wait_until_gone

if TYPE_CHECKING:
    from tests.container.conftest import Place

_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
_UNTIL_GO = "while ! test -e /go; do sleep 0.05; done; exit {}"


def _run(place: Place, *options: str, script: str, name: str = "job") -> str:
    done = place.run("--detach", "--name", name, *options, "--", "sh", "-c", script)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def _call(place: Place, *words: str) -> tuple[int, str, str]:
    done = place.call(*place.command(*words))
    return done.returncode, done.stdout, done.stderr


def _rows(place: Place, *words: str) -> list[dict[str, Any]]:
    code, out, _ = _call(place, "ps", "--json", *words)
    assert code == 0
    rows: list[dict[str, Any]] = json.loads(out)["containers"]
    return rows


@_ROOT
def test_what_is_kept_of_one_that_has_ended(place: Place) -> None:
    """Its exit code, what it was, when it ended, and its log; and its name can be used again."""
    before = datetime.now(UTC)
    identity = _run(place, "--label", "a=b", script="echo hello; exit 3")
    assert _call(place, "wait", "job") == (0, "3\n", "")
    assert place.containers() == []
    assert _rows(place) == []
    (row,) = _rows(place, "--all")
    assert (row["id"], row["name"], row["image"], row["command"]) == (
        identity,
        "job",
        "app:1",
        ["sh", "-c", "echo hello; exit 3"],
    )
    assert (row["status"], row["exit_code"], row["pid"], row["owner"], row["labels"]) == (
        "exited",
        3,
        None,
        None,
        {"a": "b"},
    )
    assert before <= datetime.fromisoformat(row["ended_at"]) <= datetime.now(UTC)
    _, shown, _ = _call(place, "ps", "-a")
    assert "exited (3) " in shown
    assert _rows(place, "-a", "--filter", "status=running") == []
    assert [one["id"] for one in _rows(place, "-a", "-f", "status=exited")] == [identity]
    assert _call(place, "logs", "job") == (0, "hello\n", "")
    second = _run(place, script=f"echo again; {_UNTIL_GO.format(5)}")
    while _call(place, "logs", "job")[1] != "again\n":
        pass
    assert _call(place, "wait", identity[:30]) == (0, "3\n", "")
    (place.root / "go").touch()
    assert _call(place, "wait", "job", identity) == (0, "5\n3\n", "")
    assert _call(place, "logs", "job") == (0, "again\n", "")
    assert [one["id"] for one in _rows(place, "-a")] == [identity, second]
    Path(row["log"]).unlink()
    code, _, err = _call(place, "logs", identity)
    assert (code, f"{row['log']}: No such file" in err) == (1, True)


@_ROOT
@pytest.mark.parametrize("options", [("--detach",), ("--detach", "--rm"), ()])
def test_who_waits_hears_of_the_end(place: Place, options: tuple[str, ...]) -> None:
    """Whether anything is kept or not."""
    script = f"echo ready; {_UNTIL_GO.format(4)}"
    started = place.start(*options, "--name", "job", "--", "sh", "-c", script)
    while [record.status for record in place.containers()] != [RUNNING]:
        pass
    waiting = place.start_command("wait", "job")
    while not _waits(waiting.pid):
        assert waiting.poll() is None
    (place.root / "go").touch()
    assert end(waiting) == (0, "4\n")
    assert end(started)[0] == (0 if options else 4)
    assert place.containers() == []
    assert [one.exit_code for one in place.ended()] == ([4] if options == ("--detach",) else [])
    if not place.ended():
        assert _call(place, "wait", "job")[0] == 3
        assert list((place.directory / "logs").iterdir()) == []


def _waits(pid: int) -> bool:
    """Whether a process waits for a lock (proc(5), /proc/locks)."""
    lines = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    return any(line[1:3] == ["->", "FLOCK"] and line[5] == str(pid) for line in lines)


def test_who_waits_hears_of_the_end_when_all_is_gone(tmp_path: Path) -> None:
    """A container's root goes behind its record: until then nobody else can have its upper."""
    held = hold(tmp_path, "container", "web")
    with subprocess.Popen(["sleep", "1000"]) as owner:
        held.write(replace(list_containers(tmp_path)[0], owner=owner.pid, status=RUNNING, background=True))
        waiting = Waiting(list_containers(tmp_path)[0], tmp_path)
        codes: list[int | None] = []
        thread = threading.Thread(target=lambda: codes.append(waiting.wait().exit_code))
        held.tell(3)
        held.close()
        thread.start()
        while thread.is_alive() and not _polls(thread):
            pass
        assert thread.is_alive()
        owner.kill()
        thread.join()
        assert codes == [3]
        waiting.close()


def _polls(thread: threading.Thread) -> bool:
    """Whether a thread of ours is in poll(2), or ppoll(2)."""
    number = Path(f"/proc/self/task/{thread.native_id}/syscall").read_text().split()[0]
    return number in ("7", "271", "73")


@_ROOT
def test_what_is_not_known_is_not_waited_for(place: Place) -> None:
    started = begin(place, "--name", "job", "--", "sh", "-c", READY)
    code, out, err = _call(place, "wait", "job", "other")
    assert (code, out, err) == (3, "", "pagepool: error: container other is unknown, or has ended\n")
    assert _call(place, "stop", "-t", "0", "job")[0] == 0
    assert end(started)[0] == 137


@_ROOT
def test_one_whose_owner_was_killed(place: Place) -> None:
    """Nobody knows how it ended: that is said, and its log is kept."""
    identity = _run(place, script=f"echo hello; {READY}")
    while "ready" not in _call(place, "logs", "job")[1]:
        pass
    waiting = place.start_command("wait", "job")
    (record,) = place.containers()
    while not _waits(waiting.pid):
        assert waiting.poll() is None
    os.kill(record.owner, signal.SIGKILL)
    wait_until_gone(record.owner)
    said = "pagepool: warning: how container job ended is not known: its pagepool run was killed\n"
    assert end(waiting) == (1, f"?\n{said}")
    assert [row["status"] for row in _rows(place, "-a")] == ["dead"]
    assert _call(place, "wait", "job") == (1, "?\n", said)
    assert place.run("--", "true").returncode == 0  # which cleans up
    (row,) = _rows(place, "-a")
    assert (row["id"], row["status"], row["exit_code"]) == (identity, "killed", None)
    assert "killed" in _call(place, "ps", "-a")[1]
    assert _call(place, "logs", "job")[1].startswith("hello\nready\n")
    code, out, err = _call(place, "wait", "--json", "job")
    assert (code, err) == (1, said)
    assert json.loads(out)["containers"] == [
        {"id": identity, "name": "job", "exit_code": None, "ended_at": row["ended_at"]}
    ]


@_ROOT
def test_an_owner_that_is_killed_after_it_has_noted_the_end(place: Place) -> None:
    """What it has noted counts, before somebody has cleaned up and afterwards."""
    _run(place, script=READY)
    (record,) = place.containers()
    os.kill(record.owner, signal.SIGKILL)
    wait_until_gone(record.owner)
    past = replace(record, owner=0, pid=0, status=EXITED, exit_code=7, ended_s=time.time())
    write_ended(past)
    assert _call(place, "wait", "job") == (0, "7\n", "")
    assert list_all(place.directory, place.directory / "ended") == [past]
    assert len(cleanup_stale(place.directory)) == 1
    assert place.ended() == [past]
    assert Path(record.log).exists()


@_ROOT
def test_an_owner_that_is_killed_before_it_has_noted_the_end(place: Place) -> None:
    """What it has told those who wait is noted by whoever cleans up."""
    identity = _run(place, script=READY)
    (record,) = place.containers()
    os.kill(record.owner, signal.SIGKILL)
    wait_until_gone(record.owner)
    (place.directory / identity / "lock").write_text("7\n")
    assert _call(place, "wait", "job") == (0, "7\n", "")
    assert len(cleanup_stale(place.directory)) == 1
    assert [(one.id, one.status, one.exit_code) for one in place.ended()] == [(identity, EXITED, 7)]


@_ROOT
def test_one_that_could_not_begin_is_not_kept(place: Place) -> None:
    assert place.run("--detach", "--name", "job", "--", "nope").returncode == 127
    assert place.ended() == []
    assert list((place.directory / "logs").iterdir()) == []


@_ROOT
def test_stopping_one_that_has_ended(place: Place) -> None:
    """Is said, and no error, as with docker; others are stopped."""
    identity = _run(place, script="exit 3")
    assert _call(place, "wait", "job")[0] == 0
    started = begin(place, "--name", "web", "--", "sh", "-c", READY)
    code, out, err = _call(place, "stop", "--time", "0", "job", "web")
    assert (code, out) == (0, "web\njob\n")
    assert "container job has ended already: exited (3) " in err
    assert end(started)[0] == 137
    _, out, _ = _call(place, "stop", "--json", "job")
    assert json.loads(out) == {"stopped": [{"id": identity, "name": "job", "killed": False}]}
    assert _call(place, "exec", "job", "true")[0] == 125


@_ROOT
def test_removing_what_is_kept(place: Place) -> None:
    first, second = (_run(place, script="exit 3") for _ in range(2) if _call(place, "wait", "job")[0] in (0, 3))
    assert _call(place, "wait", second)[1] == "3\n"
    running = _run(place, script=READY, name="web")
    code, out, err = _call(place, "container", "rm", "job", "web")
    assert (code, out) == (9, "")
    assert "container web runs: pagepool stop ends it, or --force" in err
    assert _call(place, "container", "rm", "job") == (0, "job\n", "")
    assert [one.id for one in place.ended()] == [first]
    assert _call(place, "container", "rm", "--force", "web") == (0, "web\n", "")
    assert (place.containers(), [one.id for one in place.ended()]) == ([], [first])
    assert [path.stem for path in (place.directory / "logs").iterdir()] == [first]
    assert _call(place, "container", "rm", "web")[0] == 3
    running = _run(place, script=READY, name="web")
    os.kill(place.containers()[0].owner, signal.SIGKILL)
    wait_until_gone(place.containers()[0].owner)
    code, out, _ = _call(place, "container", "prune", "--json")
    assert (code, set(json.loads(out)["removed"])) == (0, {first, running})
    assert place.ended() == place.containers() == []
    assert list((place.directory / "logs").iterdir()) == []


def _past(directory: Path, identity: str, ended_s: float) -> Record:
    log = directory.parent / f"{identity}.container-log"
    log.write_text(identity)
    record = Record(identity, "", "app:1", (), "", 0.0, 0, status=EXITED, log=str(log), log_kept=True)
    return replace(record, ended_directory=str(directory), ended_s=ended_s, exit_code=0)


def test_the_last_ones_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest go, with their logs, whether they can be read or not."""
    monkeypatch.setattr(ended, "MOST", 3)
    directory = tmp_path / "ended"
    for number in range(3):
        write_ended(_past(directory, f"id{number}", number))
        os.utime(directory / f"id{number}.json", (number, number))
    (directory / "id0.json").write_text('{"id": "id0", "na')
    os.utime(directory / "id0.json", (0, 0))
    cut_off = directory / ".id9.new"
    cut_off.touch()
    os.utime(cut_off, (0, 0))
    for number in (3, 4):
        write_ended(_past(directory, f"id{number}", number))
    assert [one.id for one in list_ended(directory)] == ["id2", "id3", "id4"]
    assert {path.stem for path in tmp_path.glob("*.container-log")} == {"id0", "id2", "id3", "id4"}
    assert {path.name for path in directory.iterdir()} == {"id2.json", "id3.json", "id4.json"}
    for one in list_ended(directory):
        remove_ended(one)
        remove_ended(one)
    assert list(directory.iterdir()) == []


def test_a_record_is_written_once(tmp_path: Path) -> None:
    past = _past(tmp_path / "ended", "id", 1.0)
    write_ended(past)
    write_ended(replace(past, exit_code=9))
    assert list_ended(tmp_path / "ended") == [past]


def test_records_that_cannot_be_read_are_passed_over(tmp_path: Path) -> None:
    directory = tmp_path / "ended"
    write_ended(_past(directory, "id", 1.0))
    whole = (directory / "id.json").read_bytes()
    bad = {
        "empty": b"",
        "cut": whole[:50],
        "list": b"[]",
        "few": b'{"id": "few"}',
        "other": whole,
        "bytes": b"\xff\xfe",
    }
    for name, data in bad.items():
        (directory / f"{name}.json").write_bytes(data)
    told: list[str] = []
    assert [one.id for one in list_ended(directory, lambda path, _: told.append(path.stem))] == ["id"]
    assert sorted(told) == sorted(bad)
    assert sorted(remove_unreadable(directory)) == sorted(bad)
    assert [path.name for path in directory.iterdir()] == ["id.json"]


@_ROOT
def test_records_that_cannot_be_read_are_told_of(place: Place) -> None:
    """Of containers that run, too; and one whose owner was killed is cleaned up all the same."""
    _run(place, script="exit 3")
    assert _call(place, "wait", "job")[0] == 0
    started = begin(place, "--name", "web", "--", "sh", "-c", READY)
    (record,) = place.containers()
    bad = [place.directory / record.id / "record", place.directory / "ended" / "bad.json"]
    for path in bad:
        path.write_text('{"id": "b')
    code, out, err = _call(place, "ps", "-a")
    assert (code, "exited (3)" in out) == (0, True)
    assert all(f"pagepool: warning: {path} is passed over: " in err for path in bad)
    assert _call(place, "wait", "job") == (0, "3\n", "")
    started.kill()
    started.wait()
    assert [one.id for one in cleanup_stale(place.directory)] == [record.id]
    assert _call(place, "container", "prune")[0] == 0
    assert list((place.directory / "ended").iterdir()) == []


def test_shells_complete_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roots, "containers_directory", lambda: tmp_path / "containers")
    monkeypatch.setattr(roots, "ended_directory", lambda: tmp_path / "ended")
    held = hold(tmp_path / "containers", "0123", "web")
    for identity, name in (("4567", "job"), ("89ab", ""), ("cdef", "web")):
        write_ended(replace(_past(tmp_path / "ended", identity, 1.0), name=name))
    try:
        for words, found in (
            (["wait"], ["web", "job", "89ab"]),
            (["logs"], ["web", "job", "89ab"]),
            (["container", "rm"], ["job", "89ab", "web"]),
            (["stop"], ["web"]),
            (["diff"], ["web"]),
            (["commit"], ["web"]),
            (["cp"], ["", "web:/"]),  # files, which the shell completes itself
        ):
            shown = ShellComplete(group, {}, "pagepool", "_PAGEPOOL_COMPLETE").get_completions(words, "")
            assert sorted(item.value for item in shown) == sorted(found), words
    finally:
        held.close()


@_ROOT
def test_no_name_is_null_wherever_there_is_json(place: Place) -> None:
    """What `run --detach` tells of a container is what `ps` shows."""
    done = place.run("--detach", "--json", "--", "sh", "-c", "exit 0")
    told = json.loads(done.stdout)
    assert _call(place, "wait", told["id"]) == (0, "0\n", "")
    (row,) = _rows(place, "--all")
    assert (told["id"], told["name"]) == (row["id"], row["name"]) == (row["id"], None)


@pytest.mark.parametrize(
    ("seconds", "shown"), [(-5, "0 seconds ago"), (1.5, "1 second ago"), (65, "65 seconds ago"), (7300, "2 hours ago")]
)
def test_ages(seconds: float, shown: str) -> None:
    assert show_age(time.time() - seconds) == shown
