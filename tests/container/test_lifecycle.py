"""Signals, terminals, containers in the background, and what is left when processes are killed."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from pagepool.container import cleanup_stale, find_containers, list_containers, list_ended
from pagepool.errors import DeniedError
from tests.container.conftest import READY, TIMEOUT_S, Place, begin, end, in_terminal, wait_until_gone

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_signals_reach_the_program(place: Place, number: signal.Signals) -> None:
    name = number.name.removeprefix("SIG")
    started = begin(place, "--", "sh", "-c", f"trap 'echo got {name}; exit 5' {name}; {READY}")
    started.send_signal(number)
    assert end(started) == (5, f"got {name}\n")


def test_a_program_that_is_killed(place: Place) -> None:
    started = begin(place, "--", "sh", "-c", READY)
    (record,) = place.containers()
    assert (record.status, record.image, record.owner) == ("running", "app:1", started.pid)
    os.kill(record.pid, signal.SIGKILL)
    assert end(started) == (137, "")


def test_the_third_signal_kills(place: Place) -> None:
    script = f"trap 'echo one' TERM; {READY}"
    started = begin(place, "--", "sh", "-c", script)
    assert started.stdout is not None
    for _ in range(2):
        started.send_signal(signal.SIGTERM)
        assert started.stdout.readline() == "one\n"
    started.send_signal(signal.SIGTERM)
    assert end(started)[0] == 137


def test_processes_of_the_program_end_with_it(place: Place, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        # Whoever is left of the container has the pipe open, which therefore has no end.
        done = place.run("-v", f"{pipe}:/pipe", "--", "sh", "-c", "sleep 1000 3> /pipe & echo begun > /pipe; exit 4")
        assert done.returncode == 4
        os.set_blocking(reading, True)
        assert os.read(reading, 100) == b"begun\n"
        assert os.read(reading, 100) == b""
    finally:
        os.close(reading)


def test_when_pagepool_is_killed_nothing_stays(place: Place) -> None:
    started = begin(place, "--memory", "100m", "--", "sh", "-c", READY)
    (before,) = place.containers()
    started.kill()
    started.wait()
    (found,) = place.containers()
    assert found.status == "dead"
    listed = place.call(*place.command("ps", "--all", "--quiet"))
    assert listed.stdout == f"{before.id}\n"
    assert place.call(*place.command("ps", "--quiet")).stdout == ""
    assert [record.id for record in cleanup_stale(place.directory)] == [before.id]
    wait_until_gone(before.pid)
    assert cleanup_stale(place.directory) == []
    assert started.stdout is not None
    assert started.stdout.read() == ""
    started.stdout.close()


def test_the_next_run_cleans_up(place: Place) -> None:
    started = begin(place, "--", "sh", "-c", READY)
    (before,) = place.containers()
    started.kill()
    started.wait()
    assert place.run("--", "true").returncode == 0
    wait_until_gone(before.pid)


def test_the_next_run_with_the_same_upper_ends_the_one_that_has_it(place: Place, tmp_path: Path) -> None:
    started = begin(place, "--upper", str(tmp_path / "work"), "--", "sh", "-c", READY)
    (before,) = place.containers()
    started.kill()
    started.wait()
    done = place.run("--upper", str(tmp_path / "work"), "--", "true")
    assert (done.returncode, done.stderr) == (0, "")
    wait_until_gone(before.pid)


@pytest.mark.parametrize("place", ["own"], indirect=True)  # runc's is not there any more when the program runs
def test_our_own_init_cannot_be_looked_into(place: Place) -> None:
    script = "cat /proc/1/environ; readlink /proc/1/exe /proc/1/root /proc/1/fd/0; kill -9 1; kill -STOP 1; echo on"
    done = place.run("--", "sh", "-c", script)
    assert (done.returncode, done.stdout) == (0, "on\n")


@pytest.mark.parametrize("place", ["own"], indirect=True)  # with runc the program is process 1, as with docker
def test_orphans_are_reaped(place: Place) -> None:
    program = """
import os
if not os.fork():
    os.fork()
    os._exit(0)
os.wait()
def is_left(pid):
    try:
        return ' Z 1 ' in open(f'/proc/{pid}/stat').read()
    except OSError:
        return False
while any(is_left(pid) for pid in os.listdir('/proc') if pid.isdigit()):
    pass
print('reaped')
"""
    assert place.run("--", "python3", "-c", program).stdout == "reaped\n"


def test_names(place: Place) -> None:
    started = begin(place, "--name", "web", "--", "sh", "-c", READY)
    done = place.run("--name", "web", "--", "true")
    assert done.returncode == 125
    assert "there is a container web already" in done.stderr
    assert place.containers()[0].name == "web"
    started.kill()
    started.wait()
    cleanup_stale(place.directory)
    assert place.run("--name", "web", "--", "true").returncode == 0


def test_in_the_background(place: Place, tmp_path: Path) -> None:
    place.config["StopSignal"] = "SIGUSR2"
    log = tmp_path / "log"
    script = f"trap 'echo bye; exit 0' USR2; {READY}"
    done = place.run("--detach", "--log", log, "--name", "job", "--", "sh", "-c", script)
    assert done.returncode == 0, done.stderr
    (record,) = place.containers()
    assert done.stdout == f"{record.id}\n"
    assert (record.status, record.name, record.runtime) == ("running", "job", place.runtime)
    shown = place.call(*place.command("ps")).stdout.splitlines()
    assert shown[0].split() == ["CONTAINER", "ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PID", "PORTS", "NAME"]
    assert {record.id[:12], "app:1", "running", str(record.pid), "job"} <= set(shown[1].split())
    # The trap is set before the program says that it is ready, and that is read in the log.
    with log.open() as file:
        while not file.readline():
            pass
    os.kill(record.owner, signal.SIGTERM)
    wait_until_gone(record.owner)
    assert log.read_text() == "ready\nbye\n"


def test_in_the_background_what_cannot_start_is_told(place: Place) -> None:
    done = place.run("--detach", "--", "nope")
    assert done.returncode == 127
    assert "nope" in done.stderr
    assert done.stdout == ""


def _in_terminal(place: Place, typed: bytes, *arguments: str) -> tuple[int, bytes]:
    at = arguments.index("--")
    return in_terminal(place, place.argv(*arguments[:at], "app:1", *arguments[at:]), typed)


def test_a_terminal(place: Place) -> None:
    script = "tty; stty size; echo term $TERM; echo ready; read line; echo got $line; exit 6"
    code, shown = _in_terminal(place, b"hello\r", "-it", "--", "sh", "-c", script)
    assert code == 6
    lines = shown.decode().split("\r\n")
    assert lines[:4] == ["/dev/pts/0", "33 77", "term xterm", "ready"]
    assert "got hello" in lines


@pytest.mark.parametrize("options", ["-it", "-t"])
def test_a_terminal_has_its_size_before_the_program_asks(place: Place, options: str) -> None:
    place.resizes = False
    code, shown = _in_terminal(place, b"", options, "--", "sh", "-c", "stty size; echo ready")
    assert (code, shown.replace(b"\r", b"")) == (0, b"33 77\nready\n")


def test_keys_go_to_the_program(place: Place) -> None:
    script = "trap 'echo interrupted; exit 9' INT; echo ready; while :; do sleep 0.05; done"
    code, shown = _in_terminal(place, b"\x03", "-it", "--", "sh", "-c", script)
    assert (code, b"interrupted" in shown) == (9, True)


def test_a_terminal_that_is_hung_up(place: Place, tmp_path: Path) -> None:
    """The program hears of it, and may write and take its time to end. Nobody is shown a traceback."""
    script = """
trap 'echo bye; touch /told; while ! test -e /go; do sleep 0.05; done; echo bye; exit 7' HUP
echo ready; while :; do sleep 0.05; done
"""
    words = place.argv("-it", "app:1", "--", "sh", "-c", script)
    master, slave = pty.openpty()
    with (tmp_path / "said").open("wb") as said:
        started = subprocess.Popen(
            ["setsid", "--ctty", *words],
            stdin=slave,
            stdout=slave,
            stderr=said,
            text=True,
            env=place.environment(),
            cwd=Path(__file__).parents[2],
        )
    place.started.append(started)
    os.close(slave)
    shown = b""
    while b"ready" not in shown:
        shown += os.read(master, 4096)
    os.close(master)
    while not (place.root / "told").exists():
        assert started.poll() is None
        time.sleep(0.02)
    (place.root / "go").touch()
    assert started.wait(TIMEOUT_S) == 7
    assert (tmp_path / "said").read_text() == ""


def test_a_terminal_that_nobody_types_at(place: Place) -> None:
    done = place.run("-t", "--", "sh", "-c", "tty; echo to both >&2; exit 3")
    assert (done.returncode, done.stdout) == (3, "/dev/pts/0\nto both\n")


def test_input_that_is_no_terminal(place: Place) -> None:
    done = place.run("-it", "--", "true", given="")
    assert done.returncode == 125
    assert "standard input is no terminal" in done.stderr


def test_what_is_left_of_a_removal_that_was_cut_off_goes(place: Place) -> None:
    """And so does what somebody had begun to make; a container that runs stays."""
    started = begin(place, "--", "sh", "-c", READY)
    (record,) = place.containers()
    runs = place.directory / record.id
    for name, parts in (("removed", ("bundle/config.json", "record")), ("made", ("bundle/x",))):
        (place.directory / name).mkdir()
        for part in parts:
            (place.directory / name / part).parent.mkdir(exist_ok=True)
            (place.directory / name / part).write_text((runs / "record").read_text())
    assert [one.id for one in place.containers()] == [record.id]
    assert cleanup_stale(place.directory) == []
    assert [path.parent.name for path in place.directory.glob("*/bundle")] == [record.id]
    started.send_signal(signal.SIGKILL)
    started.wait()
    assert [one.id for one in cleanup_stale(place.directory)] == [record.id]


def test_what_another_version_notes_is_passed_over(place: Place) -> None:
    started = begin(place, "--", "sh", "-c", f"trap 'exit 3' TERM; {READY}")
    (record,) = place.containers()
    noted = place.directory / record.id / "record"
    noted.write_text(json.dumps({**json.loads(noted.read_text()), "of_tomorrow": 1}))
    assert place.containers() == [record]
    started.send_signal(signal.SIGTERM)
    assert end(started)[0] == 3


def test_others_are_told_that_they_cannot_see_containers(tmp_path: Path) -> None:
    """Not that there are none."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        directory = Path(name) / "containers"
        directory.mkdir(mode=0o700)
        assert list_containers(directory) == list_containers(tmp_path / "none") == []
        os.seteuid(65534)
        try:
            with pytest.raises(DeniedError, match=f"the containers in {directory} are root's"):
                list_containers(directory)
            with pytest.raises(DeniedError):
                find_containers(["web"], directory)
            with pytest.raises(DeniedError, match=f"what {directory} has of containers that have ended is root's"):
                list_ended(directory)
            assert list_containers(Path(name) / "none") == list_ended(Path(name) / "none") == []
        finally:
            os.seteuid(0)
