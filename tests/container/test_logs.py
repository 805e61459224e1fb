"""`pagepool logs`: what containers in the background have written, and how much of it is kept."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pagepool.container import cleanup_stale, logs
from pagepool.container.logs import MOST, KeptLog, read_log
from tests.container.conftest import READY, begin, end, wait_until_gone
from tests.faults import small_file_system, stop_writing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.container.conftest import Place

_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
_SCRIPT = "echo one; echo two; printf three; while ! test -e /go; do sleep 0.05; done; echo; echo four; exec sleep 1000"


def _run(place: Place, *options: str, script: str = _SCRIPT) -> None:
    done = place.run("--detach", "--name", "web", *options, "--", "sh", "-c", script)
    assert done.returncode == 0, done.stderr


def _logs(place: Place, *words: str) -> str:
    done = place.call(*place.command("logs", *words, "web"))
    assert done.returncode == 0, done.stderr
    return done.stdout


def _until(place: Place, text: str) -> None:
    while text not in _logs(place):
        pass


def _stop(place: Place) -> None:
    assert place.call(*place.command("stop", "--time", "0", "web")).returncode == 0


@_ROOT
def test_what_it_has_written(place: Place) -> None:
    _run(place)
    _until(place, "three")
    assert _logs(place) == "one\ntwo\nthree"
    assert _logs(place, "--tail", "2") == "two\nthree"
    assert _logs(place, "-n", "0") == ""
    following = place.start_command("logs", "--follow", "--tail", "1", "web")
    assert following.stdout is not None
    assert following.stdout.read(5) == "three"
    (place.root / "go").touch()
    assert following.stdout.readline() == "\n"
    assert following.stdout.readline() == "four\n"
    _stop(place)
    assert end(following) == (0, "")
    assert _logs(place, "--follow") == "one\ntwo\nthree\nfour\n"
    done = place.call(*place.command("logs", "nothing"))
    assert (done.returncode, done.stderr) == (3, "pagepool: error: container nothing is unknown, or has ended\n")


@_ROOT
@pytest.mark.parametrize("options", [(), ("-t",)])
def test_no_more_than_is_kept_is_on_the_disk(place: Place, options: tuple[str, ...]) -> None:
    """However much it writes; the last of it is there, in whole lines."""
    lines = 200_000
    script = f"seq -f 'line %012.0f of what it writes without end' {lines}; while :; do sleep 0.05; done"
    _run(place, *options, script=script)
    last = f"line {lines:012d} of what it writes without end"
    _until(place, last)
    (record,) = place.containers()
    while (status := Path(record.log).stat()).st_blocks * 512 > MOST + 2 * 65536:
        pass
    assert status.st_size > 8 * MOST
    shown = _logs(place).splitlines()
    assert len(shown) * len(last) > MOST // 2 - 2 * 65536
    numbers = [int(line.split()[1]) for line in shown]
    assert numbers == list(range(lines - len(shown) + 1, lines + 1))
    assert _logs(place, "--tail", "3").splitlines() == shown[-3:]
    _stop(place)


@_ROOT
def test_a_program_that_opens_its_output_anew(place: Place) -> None:
    """As scripts do, also those of users: nothing is lost of what was written before."""
    script = "echo one; echo two > /dev/stdout; echo three > /dev/stderr; sleep 1000"
    _run(place, "-u", "nobody", script=script)
    while len(_logs(place).split()) < 3:
        pass
    # Between the two, runc keeps no order.
    assert sorted(_logs(place).split()) == ["one", "three", "two"]
    _stop(place)


@_ROOT
def test_what_it_writes_at_its_end(place: Place) -> None:
    """However much of it was not read yet when it ended."""
    script = """
import fcntl, os, signal, time
def end(*_):
    fcntl.fcntl(1, 1031, 1 << 20)  # F_SETPIPE_SZ
    os.write(1, b"x" * 500_000 + b" end")
    os._exit(0)
signal.signal(signal.SIGTERM, end)
print("ready", flush=True)
while True:
    time.sleep(0.05)
"""
    assert place.run("--detach", "--name", "web", "--", "python3", "-c", script).returncode == 0
    _until(place, "ready")
    following = place.start_command("logs", "--follow", "web")
    assert following.stdout is not None
    assert following.stdout.readline() == "ready\n"
    (record,) = place.containers()
    os.kill(record.owner, signal.SIGSTOP)
    try:
        os.kill(record.pid, signal.SIGTERM)
        wait_until_gone(record.pid)
    finally:
        os.kill(record.owner, signal.SIGCONT)
    assert end(following) == (0, "x" * 500_000 + " end")


@_ROOT
def test_a_file_of_ones_own(place: Place, tmp_path: Path) -> None:
    """All of this container's is shown, and nothing that was there before; it stays."""
    log = tmp_path / "log"
    log.write_text("before\n")
    _run(place, "--log", str(log))
    _until(place, "three")
    assert _logs(place) == "one\ntwo\nthree"
    assert _logs(place, "-n", "9") == "one\ntwo\nthree"
    _stop(place)
    assert log.read_text() == "before\none\ntwo\nthree"
    with log.open("a") as file:
        file.write("\nanother's\n")
    assert _logs(place) == "one\ntwo\nthree"
    assert _logs(place, "-n", "1") == "three"
    log.unlink()
    done = place.call(*place.command("logs", "web"))
    assert (done.returncode, f"{log}: No such file" in done.stderr) == (1, True)


@_ROOT
def test_what_is_not_kept(place: Place) -> None:
    started = begin(place, "--name", "web", "--", "sh", "-c", READY)
    done = place.call(*place.command("logs", "web"))
    assert (done.returncode, "is not kept" in done.stderr) == (1, True)
    _stop(place)
    assert end(started)[0] == 137
    _run(place, "--log", "/dev/null")
    done = place.call(*place.command("logs", "web"))
    assert (done.returncode, "no regular file" in done.stderr) == (1, True)
    _stop(place)


@_ROOT
def test_when_its_owner_is_killed_the_program_notices_nothing(place: Place) -> None:
    """By runc it goes on writing; what it has written is there, also when somebody has cleaned up."""
    _run(place)
    _until(place, "three")
    (record,) = place.containers()
    os.kill(record.owner, signal.SIGKILL)
    wait_until_gone(record.owner)
    (place.root / "go").touch()
    if place.runtime == "runc":
        _until(place, "four")
    assert _logs(place, "--follow").startswith("one\ntwo\nthree")
    assert len(cleanup_stale(place.directory)) == 1
    assert _logs(place).startswith("one\ntwo\nthree")


@pytest.fixture
def log(tmp_path: Path) -> Iterator[KeptLog]:
    """A log of nobody's."""
    kept = KeptLog(tmp_path / "logs", "one", tmp_path)
    try:
        yield kept
    finally:
        kept.close()
        assert list((tmp_path / "logs").iterdir()) == []


def _append(log: KeptLog, first: int, last: int) -> None:
    with log.path.open("ab") as file:
        file.writelines(b"%099d\n" % number for number in range(first, last))


def test_a_reader_that_is_overtaken_goes_on_behind(log: KeptLog) -> None:
    """It gets whole lines in order, and nothing that is no line."""
    most = MOST // 100 + 1
    _append(log, 0, most)
    reading = read_log(log.path)
    shown = next(reading)
    _append(log, most, 4 * most)
    log.handle()
    shown += b"".join(reading)
    numbers = [int(line) for line in shown[: shown.rfind(b"\n")].split(b"\n") if len(line) == 99]
    assert numbers == sorted(set(numbers))
    assert numbers[0] == 0
    assert numbers[-1] == 4 * most - 1
    assert len(numbers) < 2 * most
    assert b"\0" not in shown


def test_a_reader_that_is_overtaken_while_it_reads(log: KeptLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """After it has looked where something is, and before it reads that."""
    most = MOST // 100 + 1
    _append(log, 0, most)
    read = os.pread
    overtaken: list[int] = []

    def overtake(descriptor: int, size: int, at: int) -> bytes:
        if not overtaken:
            overtaken.append(at)
            _append(log, most, 4 * most)
            log.handle()
        return read(descriptor, size, at)

    monkeypatch.setattr(os, "pread", overtake)
    lines = b"".join(read_log(log.path)).splitlines()
    assert overtaken == [0]
    assert [int(line) for line in lines] == list(range(4 * most - len(lines), 4 * most))


def test_it_waits_for_what_is_written_only(log: KeptLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_EVERY_S", 0.0)
    ((told, events),) = log.interests().items()
    poller = select.poll()
    poller.register(told, events)
    assert poller.poll(0) == []
    _append(log, 0, 1)
    assert poller.poll(0) != []
    assert log.handle()
    assert poller.poll(0) == []
    assert not log.handle()


_UNTOLD = """
import os, sys
from pathlib import Path
Path("/proc/sys/user/max_inotify_instances").write_text("0")
from pagepool.container.logs import MOST, KeptLog
kept = KeptLog(Path(sys.argv[1], "logs"), "one", Path(sys.argv[1]))
os.write(os.open(kept.path, os.O_WRONLY | os.O_APPEND), bytes(4 * MOST))
assert kept.interests() == {} and kept.is_due(()) and kept.wait_s() == 0
kept.handle()
assert kept.path.stat().st_blocks * 512 <= MOST, kept.path.stat()
assert not kept.is_due(()) and kept.wait_s() > 0
"""


@_ROOT
def test_a_log_of_which_the_kernel_tells_nothing(tmp_path: Path) -> None:
    """It allows a user 128 instances of inotify: logs of more containers are looked at all the same."""
    words = ["unshare", "--user", "--map-root-user", sys.executable, "-c", _UNTOLD, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_all_that_is_in_the_pipe_when_the_program_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than is read at a time."""
    kept = KeptLog(tmp_path / "logs", "one", tmp_path, piped=True)
    outputs: list[int] = []
    monkeypatch.setattr(os, "dup2", lambda source, _: outputs.append(source))
    kept.take_output()
    written = bytes(range(256)) * 2000
    fcntl.fcntl(outputs[0], fcntl.F_SETPIPE_SZ, 1 << 20)
    assert os.write(outputs[0], written) == len(written)
    assert kept.handle()
    kept.drain()
    assert b"".join(read_log(kept.path)) == written
    assert not kept.handle()
    kept.close()


def test_a_disk_that_takes_nothing_ends_no_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel has found an error in its file system: the log can neither grow, nor be shortened, nor removed."""
    with small_file_system(tmp_path, 32 << 20) as disk:
        kept = KeptLog(disk, "one", tmp_path, piped=True)
        outputs: list[int] = []
        monkeypatch.setattr(os, "dup2", lambda source, _: outputs.append(source))
        kept.take_output()
        _append(kept, 0, MOST // 100 + 1)
        stop_writing(disk)
        for _ in range(2):
            os.write(outputs[0], b"more\n")
            assert kept.handle()
        kept.close()


def test_logs_of_containers_that_are_gone_are_removed(tmp_path: Path) -> None:
    """As after the machine was booted. What else is there is none."""
    directory = tmp_path / "logs"
    first = KeptLog(directory, "first", tmp_path)
    (directory / "other").touch()
    (tmp_path / "second").mkdir()
    second = KeptLog(directory, "second", tmp_path)
    assert {path.name for path in directory.iterdir()} == {"second.container-log", "other"}
    third = KeptLog(directory, "third", tmp_path)
    assert second.path.exists()
    for one in (first, second, third):
        one.close()


def test_logs_of_containers_that_have_ended_stay(tmp_path: Path) -> None:
    directory, ended = tmp_path / "logs", tmp_path / "ended"
    first = KeptLog(directory, "first", tmp_path / "containers", ended)
    first.stays = True
    first.close()
    ended.mkdir()
    (ended / "first.json").touch()
    second = KeptLog(directory, "second", tmp_path / "containers", ended)
    assert {path.name for path in directory.iterdir()} == {"first.container-log", "second.container-log"}
    (ended / "first.json").unlink()
    third = KeptLog(directory, "third", tmp_path / "containers", ended)
    assert [path.name for path in directory.iterdir()] == ["third.container-log"]
    for one in (second, third):
        one.close()
