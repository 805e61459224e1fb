"""`pagepool exec`: programs in containers that run, the same by runc and by our own runtime."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pagepool.container import ContainerUnknownError, ExecOptions, Record, exec_in_container, executing
from pagepool.container.own import OwnExec
from pagepool.container.process import Task
from pagepool.container.records import stale
from pagepool.errors import ContainerError
from tests.container.conftest import READY, TIMEOUT_S, begin, end, in_terminal, wait_until_gone

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.container.conftest import Place

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

_NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "uts")


@pytest.fixture
def web(place: Place) -> Iterator[Place]:
    """A place where a container `web` runs."""
    place.config |= {"Env": [*place.config["Env"], "IMAGE=its"], "WorkingDir": "/srv"}
    started = begin(place, "--name", "web", "--memory", "200m", "-e", "GIVEN=1", "--", "sh", "-c", READY)
    yield place
    place.call(*place.command("stop", "--time", "0", "web"))
    assert end(started)[0] == 137


def _exec(
    place: Place, *arguments: str, given: str | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    return place.call(*place.command("exec", *arguments), given=given, **variables)


def _namespace(pid: int, name: str) -> str:
    return str(Path(f"/proc/{pid}/ns/{name}").readlink())


def test_exit_codes_and_output(web: Place) -> None:
    done = _exec(web, "web", "--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")
    assert _exec(web, "web", "sh", "-c", "kill -9 $$").returncode == 137
    assert _exec(web, web.containers()[0].id[:20], "true").returncode == 0
    # Nothing of it is left beside the container.
    assert list((web.directory / web.containers()[0].id).glob("exec-*")) == []


def test_it_is_in_the_container(web: Place) -> None:
    """Its namespaces and control groups, root and mounts are those of the container's own program."""
    (record,) = web.containers()
    script = (
        f"for n in {' '.join(_NAMESPACES)}; do readlink /proc/self/ns/$n; done; cat /proc/self/cgroup; stat -c %d:%i /"
    )
    shown = _exec(web, "web", "sh", "-c", script).stdout.splitlines()
    assert shown[: len(_NAMESPACES)] == [_namespace(record.pid, name) for name in _NAMESPACES]
    # By runc that of /sys/fs/cgroup/unified is another: nothing is limited there.
    groups = Path(f"/proc/{record.pid}/cgroup").read_text().splitlines()
    assert [line for line in shown if f"pagepool-{record.id}" in line] == [
        line for line in groups if f"pagepool-{record.id}" in line
    ]
    assert any(f"pagepool-{record.id}" in line for line in groups)
    root = Path(f"/proc/{record.pid}/root/.").stat()
    assert shown[-1] == f"{root.st_dev}:{root.st_ino}"


def test_it_sees_the_containers_processes_and_is_seen(web: Place) -> None:
    script = "tr '\\0' ' ' < /proc/1/cmdline; echo; touch /tmp/made; ls /proc | grep -cx '[0-9]*'"
    assert _exec(web, "web", "sh", "-c", script).returncode == 0
    assert (web.root / "tmp" / "made").exists()


def test_it_may_do_no_more_than_the_containers_program(web: Place) -> None:
    """What it may do, what of /proc is hidden, and what cannot be written, is as for the first program."""
    script = (
        "grep -E 'Cap|NoNewPrivs|Seccomp:|Groups' /proc/self/status; wc -c < /proc/keys; umask;"
        " echo x > /proc/sys/kernel/core_pattern; echo x > /sys/x;"
        " mknod /tmp/n b 7 0 && head -c 1 /tmp/n; ls /sys/firmware"
    )
    inside = _exec(web, "web", "sh", "-c", script)
    first = web.run("--memory", "200m", "--", "sh", "-c", script)
    assert (inside.stdout, inside.returncode) == (first.stdout, first.returncode)
    assert len(inside.stdout.splitlines()) == 10


def test_environment_and_directory(web: Place, tmp_path: Path) -> None:
    (tmp_path / "env").write_text("FILE=1\n")
    base = {"IMAGE": "its", "GIVEN": "1", "HOME": "/root", "LANG": "C.UTF-8", "HOSTNAME": os.uname().nodename}
    shown = _exec(web, "web", "/usr/bin/env").stdout.splitlines()
    found = dict(line.split("=", 1) for line in shown)
    assert found == base | {"PATH": found["PATH"]}
    options = ("-e", "GIVEN=2", "-e", "IMAGE", "-e", "HERE", "--env-file", str(tmp_path / "env"), "-u", "daemon")
    shown = _exec(web, *options, "-w", "/usr", "web", "sh", "-c", "pwd; env", HERE="here").stdout.splitlines()
    assert shown[0] == "/usr"
    found = dict(line.split("=", 1) for line in shown[1:])
    assert {name: found.get(name) for name in ("GIVEN", "IMAGE", "HERE", "FILE", "HOME")} == {
        "GIVEN": "2",
        "IMAGE": None,
        "HERE": "here",
        "FILE": "1",
        "HOME": "/usr/sbin",
    }
    assert _exec(web, "web", "pwd").stdout == "/srv\n"


def test_users_are_the_containers(web: Place) -> None:
    """Looked up in the tables that the container has now, not in those that it began with."""
    with (web.root / "etc" / "passwd").open("a") as file:
        file.write("later:x:4321:4322::/later:/bin/sh\n")
    with (web.root / "etc" / "group").open("a") as file:
        file.write("one:x:4001:later\n")
    script = (
        "echo $(id -u) $(id -g) $(id -G) $HOME;"
        " grep -E 'Cap(Prm|Eff|Amb|Inh)' /proc/self/status | grep -c 0000000000000000"
    )
    assert _exec(web, "-u", "later", "web", "sh", "-c", script).stdout == "4321 4322 4322 4001 /later\n4\n"
    assert _exec(web, "-u", "later:daemon", "web", "id", "-G").stdout == "1\n"
    assert _exec(web, "-u", "77", "web", "id", "-u").stdout == "77\n"
    done = _exec(web, "-u", "ghost", "web", "id")
    assert (done.returncode, "has no 'ghost'" in done.stderr) == (125, True)


@pytest.mark.parametrize("place", ["own"], indirect=True)  # runc reads them itself, whatever they are
def test_tables_that_the_container_has_replaced(web: Place) -> None:
    """Nobody reads them but for --user, and what the kernel makes is none: to read it may wait for ever (kmsg)."""
    (web.root / "etc" / "passwd").rename(web.root / "etc" / "was")
    (web.root / "etc" / "passwd").symlink_to("/proc/kmsg")
    assert _exec(web, "-u", "77", "web", "id", "-u").stdout == "77\n"
    (web.root / "etc" / "passwd").unlink()
    with (web.root / "etc" / "passwd").open("wb") as file:
        file.truncate(1 << 40)
    assert _exec(web, "web", "pwd").stdout == "/srv\n"
    done = _exec(web, "-u", "77", "web", "true")
    assert (done.returncode, "larger than" in done.stderr) == (125, True)


@pytest.mark.parametrize("place", ["own"], indirect=True)  # whose first process cannot be looked into
def test_without_the_right_to_look_into_it(web: Place) -> None:
    words = ("setpriv", "--bounding-set", "-sys_ptrace", "--inh-caps", "-sys_ptrace")
    done = web.call(*words, *web.command("exec", "web", "true"))
    assert (done.returncode, "container web takes CAP_SYS_PTRACE" in done.stderr) == (125, True), done.stderr


def test_input(web: Place) -> None:
    assert _exec(web, "-i", "web", "cat", given="a\nb").stdout == "a\nb"
    assert _exec(web, "web", "cat", given="a\nb").stdout == ""
    done = _exec(web, "-it", "web", "cat", given="")
    assert (done.returncode, "standard input is no terminal" in done.stderr) == (125, True)


def test_a_command_that_cannot_be_run(web: Place) -> None:
    for command, code in (("nope", 127), ("/nope", 127), ("/etc/passwd", 126), ("/etc", 126), ("./nope", 127)):
        done = _exec(web, "web", "--", command)
        assert (done.returncode, done.stdout) == (code, ""), done.stderr
        assert done.stderr.startswith(f"pagepool: error: {command}: ")
        assert done.stderr.count("\n") == 1


def test_what_cannot_be_run(web: Place) -> None:
    for words, reason in (
        (("gone", "true"), "container gone is unknown"),
        (("web",), "Say what is to be run"),
        (("-di", "web", "true"), "exclude each other"),
        (("-w", "srv", "web", "true"), "has to be absolute"),
        (("-w", "/not/there", "web", "true"), "/not/there"),
        (("--privileged", "web", "true"), "No such option"),
    ):
        done = _exec(web, *words)
        assert done.returncode == 125, done.stderr
        assert reason in done.stderr


def test_signals_reach_the_program(web: Place) -> None:
    for name in ("TERM", "INT", "USR1"):
        started = web.start_command("exec", "web", "--", "sh", "-c", f"trap 'echo got {name}; exit 5' {name}; {READY}")
        assert started.stdout is not None
        assert started.stdout.readline() == "ready\n"
        started.send_signal(getattr(signal, f"SIG{name}"))
        assert end(started) == (5, f"got {name}\n")


def test_the_third_signal_kills_the_program_alone(web: Place) -> None:
    started = web.start_command("exec", "web", "--", "sh", "-c", f"trap 'echo one' TERM; {READY}")
    assert started.stdout is not None
    assert started.stdout.readline() == "ready\n"
    for _ in range(2):
        started.send_signal(signal.SIGTERM)
        assert started.stdout.readline() == "one\n"
    started.send_signal(signal.SIGTERM)
    assert end(started)[0] == 137
    assert [record.status for record in web.containers()] == ["running"]


def test_it_ends_with_the_container(place: Place) -> None:
    first = begin(place, "--name", "web", "--", "sh", "-c", READY)
    started = place.start_command("exec", "web", "--", "sh", "-c", f"trap '' TERM; {READY}")
    assert started.stdout is not None
    assert started.stdout.readline() == "ready\n"
    assert place.call(*place.command("stop", "--time", "0", "web")).returncode == 0
    assert end(started) == (137, "")
    assert end(first)[0] == 137


def test_in_the_background(web: Place) -> None:
    script = "echo $$ > /tmp/pid; echo begun; exec sleep 1000"
    done = _exec(web, "--detach", "--json", "web", "sh", "-c", script)
    (record,) = web.containers()
    answer = json.loads(done.stdout)
    assert answer == {"id": record.id, "name": "web", "pid": answer["pid"]}
    assert _namespace(answer["pid"], "pid") == _namespace(record.pid, "pid")
    killing = "while ! kill -9 $(cat /tmp/pid); do sleep 0.05; done"
    assert _exec(web, "web", "sh", "-c", killing).returncode == 0
    wait_until_gone(answer["pid"])
    done = _exec(web, "--detach", "web", "nope")
    assert (done.returncode, done.stdout) == (127, "")
    assert (_exec(web, "-d", "web", "true").stdout, _exec(web, "-d", "web", "true").returncode) == ("", 0)


def test_a_terminal(web: Place) -> None:
    script = (
        "tty; stty size; echo term $TERM; ls -l $(tty) | cut -d' ' -f3; echo ready; read line; echo got $line; exit 6"
    )
    code, shown = in_terminal(web, web.command("exec", "-it", "-u", "daemon", "web", "sh", "-c", script), b"hello\r")
    assert code == 6
    lines = shown.decode().split("\r\n")
    assert lines[:5] == ["/dev/pts/0", "33 77", "term xterm", "daemon", "ready"]
    assert "got hello" in lines


def test_keys_go_to_the_program(web: Place) -> None:
    script = "trap 'echo interrupted; exit 9' INT; echo ready; while :; do sleep 0.05; done"
    code, shown = in_terminal(web, web.command("exec", "-it", "web", "sh", "-c", script), b"\x03")
    assert (code, b"interrupted" in shown) == (9, True)


@pytest.mark.parametrize("options", ["-it", "-t"])
def test_a_terminal_has_its_size_before_the_program_asks(web: Place, options: str) -> None:
    web.resizes = False
    code, shown = in_terminal(web, web.command("exec", options, "web", "sh", "-c", "stty size; echo ready"), b"")
    assert (code, shown.replace(b"\r", b"")) == (0, b"33 77\nready\n")


def test_a_terminal_that_nobody_types_at(web: Place) -> None:
    done = _exec(web, "-t", "web", "sh", "-c", "test -t 0 && echo one; echo to both >&2; exit 3")
    assert (done.returncode, done.stdout) == (3, "one\nto both\n")


def test_it_inherits_nothing(web: Place, tmp_path: Path) -> None:
    """No descriptor of ours, no variable, no directory: what the program holds is its input and output."""
    (tmp_path / "open").write_text("")
    script = "import os; print(sorted(os.listdir('/proc/self/fd')), os.environ.get('SECRET'), os.getcwd())"
    words = web.command("exec", "web", "python3", "-c", script)
    with (tmp_path / "open").open() as file:
        done = subprocess.run(
            words,
            env=web.environment() | {"SECRET": "x"},
            cwd=Path(__file__).parents[2],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
            pass_fds=(file.fileno(),),
            timeout=TIMEOUT_S,
        )
    # The fourth is that of the directory which is listed.
    assert done.stdout == "['0', '1', '2', '3'] None /srv\n"


def test_a_directory_outside_of_the_root_is_none_to_start_in(tmp_path: Path) -> None:
    """As one that a descriptor leads to; our own processes have none when they ask."""
    script = (
        "import os, sys; from pagepool.container import linux, program; linux.load(); "
        "outside = os.open('/', os.O_PATH); os.chroot(sys.argv[1]); os.chdir('/'); "
        "program.check_directory('/'); os.fchdir(outside); program.check_directory('/proc/self/fd/3')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=False, timeout=TIMEOUT_S
    )
    assert done.stderr.splitlines()[-1] == (
        "PermissionError: [Errno 13] the working directory is not in the container: '/proc/self/fd/3'"
    )


def test_what_the_container_shows_as_proc_is_not_read(place: Place) -> None:
    """An image may have /proc somewhere else; runc does not take it. Nobody would ever write to this FIFO."""
    (place.root / "proc").rmdir()
    (place.root / "proc").symlink_to("/elsewhere")
    script = "rm /proc; mkdir -p /proc/thread-self; mkfifo /proc/thread-self/status; echo ready; exec sleep 1000"
    if place.runtime == "runc":
        assert place.run("--", "true").returncode == 125
        return
    started = begin(place, "--name", "web", "--", "sh", "-c", script)
    done = place.call(*place.command("exec", "web", "grep", "CapPrm", "/elsewhere/self/status"))
    assert (done.returncode, done.stdout) == (0, "CapPrm:\t00000000a00425fb\n"), done.stderr
    started.terminate()
    end(started)


def test_keys_of_the_session_are_not_the_containers(web: Place) -> None:
    """Whoever starts it may have keys in its session, of Kerberos or a file system, which root could read there."""
    number = {"x86_64": (248, 250), "aarch64": (217, 219)}.get(os.uname().machine)
    if number is None:
        pytest.skip("the numbers of add_key and keyctl are not known here")
    add, control = number
    have = (
        "import ctypes, os, sys; call = ctypes.CDLL(None).syscall;"
        f" call({control}, 1, None) >= 0 or sys.exit(77);"
        f" call({add}, b'user', b'pagepool-test', b'secret', 6, -3) >= 0 or sys.exit(78);"
        " os.execvp(sys.argv[1], sys.argv[1:])"
    )
    look = (
        "import ctypes; call = ctypes.CDLL(None).syscall;"
        f" print(call({control}, 10, -3, b'user', b'pagepool-test', 0) >= 0)"
    )
    for words in (("exec", "web"), ("run", "--runtime", web.runtime, "app:1", "--")):
        done = web.call(sys.executable, "-c", have, *web.command(*words, "python3", "-c", look))
        if done.returncode == 77:
            pytest.skip("there are no keys here")
        assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr


@pytest.mark.parametrize("place", ["own"], indirect=True)  # runc has its own tests of what it is like
def test_what_joins_cannot_be_looked_into(web: Place) -> None:
    """A program of the container that waits for whoever comes in, and tries all that leads out of them."""
    spy = """
import os
seen = set(os.listdir('/proc'))
print('ready', flush=True)
found = 0
while not os.path.exists('/tmp/done'):
    for pid in set(os.listdir('/proc')) - seen:
        if not pid.isdigit():
            continue
        try:
            name = os.readlink(f'/proc/{pid}/exe')
            if name.rpartition('/')[2] not in ('dash', 'sleep', 'touch', 'true'):
                print('leak', name, flush=True)
            seen.add(pid)
        except PermissionError:
            found += 1
            open('/tmp/found', 'w').close()
        except OSError:
            pass
print('found', found > 0, flush=True)
"""
    started = web.start_command("exec", "web", "python3", "-c", spy)
    assert started.stdout is not None
    assert started.stdout.readline() == "ready\n"
    while not (web.root / "tmp" / "found").exists():
        assert _exec(web, "web", "true").returncode == 0
    assert _exec(web, "web", "touch", "/tmp/done").returncode == 0
    assert end(started) == (0, "found True\n")


@pytest.mark.parametrize("place", ["own"], indirect=True)  # runc copies itself into memory
def test_our_python_cannot_be_written_to_by_a_container(web: Place) -> None:
    """A command that is a link to /proc/self/exe is this Python, with the image's libraries: it may not write to it."""
    answer = json.loads(_exec(web, "--detach", "--json", "web", "sleep", "1000").stdout)
    keeper = next(
        int(line.split()[1])
        for line in Path(f"/proc/{answer['pid']}/status").read_text().splitlines()
        if line.startswith("PPid:")
    )
    (record,) = web.containers()
    for pid in (record.pid, keeper):
        program = Path(f"/proc/{pid}/exe")
        assert program.samefile(sys.executable)
        assert os.statvfs(program).f_flag & os.ST_RDONLY


@pytest.mark.parametrize("place", ["own"], indirect=True)
def test_a_container_that_ends_meanwhile(place: Place, tmp_path: Path) -> None:
    started = begin(place, "--name", "web", "--", "sh", "-c", READY)
    (record,) = place.containers()
    config = json.loads((place.directory / record.id / "bundle" / "config.json").read_text())
    first = os.pidfd_open(record.pid)
    root = os.open(f"/proc/{record.pid}/root", os.O_PATH)
    try:
        assert place.call(*place.command("stop", "--time", "0", "web")).returncode == 0
        assert end(started)[0] == 137
        (tmp_path / "config.json").write_text(json.dumps(config))
        running = OwnExec(Task(record.id, tmp_path, config, False, False, False), first, root)
        with pytest.raises(ContainerError, match="the container has ended"):
            running.finish()
        running.close()
        with pytest.raises(ContainerUnknownError):
            exec_in_container(record, ExecOptions(("true",)), directory=place.directory)
    finally:
        os.close(first)
        os.close(root)


def test_what_is_left_beside_a_container_that_has_ended_goes(tmp_path: Path) -> None:
    """Its owner cannot remove what a program beside it uses; whoever runs that may be killed at any moment."""
    for name in ("0" * 32, "killed/exec-1/terminal", "used", "runc/state", "logs"):
        (tmp_path / name).mkdir(parents=True)
    used = Record("used", "", "", (), "", 0.0, 0)
    with executing._work(used, tmp_path) as work:
        assert list(stale(tmp_path)) == []
        assert work.is_dir()
        assert {path.name for path in tmp_path.glob("[!.]*")} == {"runc", "logs", "used"}
    (tmp_path / "used/exec-2").mkdir(parents=True, exist_ok=True)
    assert list(stale(tmp_path)) == []
    assert {path.name for path in tmp_path.glob("[!.]*")} == {"runc", "logs"}


@pytest.mark.parametrize("place", ["own"], indirect=True)
def test_when_pagepool_exec_is_killed_so_is_the_program(web: Place) -> None:
    for user in ("root", "nobody"):
        started = web.start_command("exec", "-u", user, "web", "sh", "-c", READY)
        assert started.stdout is not None
        assert started.stdout.readline() == "ready\n"
        started.kill()
        # Whoever is left of it has the pipe open.
        assert started.stdout.read() == ""
        started.wait()
        started.stdout.close()
