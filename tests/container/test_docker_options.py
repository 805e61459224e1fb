"""What docker's options do to containers of a real image, the same by runc and by our own runtime."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pagepool.container.defaults import CAPABILITIES, CAPABILITY_NUMBERS
from tests.container.conftest import READY, begin, end

if TYPE_CHECKING:
    import subprocess

    from tests.container.conftest import Place

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def _sh(script: str) -> tuple[str, ...]:
    return ("--", "sh", "-c", script)


def test_mounts_in_memory(place: Place, tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    options = (
        *("--tmpfs", "/srv/cache:size=1m,mode=0711,exec", "--mount", "type=tmpfs,target=/scratch,tmpfs-size=2m"),
        *("--mount", f"type=bind,source={tmp_path}/given,target=/given,readonly", "--shm-size", "3m", "--read-only"),
    )
    script = (
        "df -k --output=size,target /srv/cache /scratch /dev/shm | tail -n +2; stat -c %a /srv/cache /scratch;"
        " touch /given/x; printf '#!/bin/sh\\necho ran\\n' > /srv/cache/x; chmod 755 /srv/cache/x;"
        " /srv/cache/x; cp /srv/cache/x /scratch/x && /scratch/x"
    )
    done = place.run(*options, *_sh(script))
    assert done.returncode == 126, done.stderr
    assert done.stdout.split() == ["1024", "/srv/cache", "2048", "/scratch", "3072", "/dev/shm", "711", "1777", "ran"]
    assert "/given/x" in done.stderr
    assert list((tmp_path / "given").iterdir()) == []


def test_a_pool_is_no_mount_to_write_to(place: Place, tmp_path: Path) -> None:
    (tmp_path / "format").write_text("pagepool pool\n")
    done = place.run("--mount", f"type=bind,source={tmp_path},target=/pool", "--", "true")
    assert (done.returncode, "it is a pool's" in done.stderr) == (125, True)
    assert place.run("--mount", f"type=bind,source={tmp_path},target=/pool,ro", "--", "true").returncode == 0


def _soft(place: Place, *more: str) -> list[list[str]]:
    """What limits there may be of 77 and 99 open files. Go, and so runc before 1.1.13, raises the soft one as it
    begins, now and then after it was set."""
    raised = [["99", "99", *more]] if place.runtime == "runc" else []
    return [["77", "99", *more], *raised]


def test_limits(place: Place) -> None:
    options = ("--ulimit", "nofile=77:99", "--ulimit", "core=0", "--ulimit", "memlock=4096", "--cpus", "0.5")
    script = "ulimit -Sn; ulimit -Hn; ulimit -c; ulimit -l; cat /proc/self/cgroup"
    for user in ("root", "nobody"):
        done = place.run(*options, "--name", "limited", "-u", user, *_sh(script))
        assert done.stdout.split()[:4] in _soft(place, "0", "4"), done.stderr
    started = begin(place, *options, "--name", "limited", *_sh(READY))
    quota = [
        path.read_text().split()
        for path in Path("/sys/fs/cgroup").glob(f"**/pagepool-{place.containers()[0].id}/cpu.*")
        if path.name in ("cpu.max", "cpu.cfs_quota_us")
    ]
    assert quota in ([["50000"]], [["50000", "100000"]])
    done = place.call(*place.command("exec", "limited", "sh", "-c", "ulimit -Sn; ulimit -Hn"))
    assert done.stdout.split() in _soft(place)
    assert place.call(*place.command("stop", "--time", "0", "limited")).returncode == 0
    assert end(started)[0] == 137


def _mask(*names: str) -> str:
    return f"{sum(1 << CAPABILITY_NUMBERS[name] for name in names):016x}"


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (("--cap-drop", "ALL"), ()),
        (("--cap-drop", "all", "--cap-add", "chown"), ("CAP_CHOWN",)),
        (("--cap-drop", "CHOWN", "--cap-add", "SYS_NICE"), (*CAPABILITIES[1:], "CAP_SYS_NICE")),
    ],
)
def test_capabilities(place: Place, options: tuple[str, ...], names: tuple[str, ...]) -> None:
    expected = _mask(*(name for name in names if place.runtime == "runc" or name != "CAP_MKNOD"))
    done = place.run(*options, *_sh("grep -E 'Cap(Prm|Eff|Bnd)' /proc/self/status"))
    assert done.stdout.split()[1::2] == [expected] * 3, done.stderr
    # Starting as a user, and signals to it, need none of the container's.
    started = begin(place, *options, "--name", "web", "-u", "nobody", *_sh(f"trap 'exit 5' TERM; {READY}"))
    script = "grep -E 'CapBnd' /proc/self/status; id -u"
    done = place.call(*place.command("exec", "-u", "daemon", "web", "sh", "-c", script))
    assert done.stdout.split() == ["CapBnd:", expected, "1"], done.stderr
    started.terminate()
    assert end(started)[0] == 5


def test_what_would_let_a_container_look_at_our_init_needs_runc(place: Place) -> None:
    done = place.run("--cap-add", "SYS_PTRACE", *_sh("grep CapEff /proc/self/status"))
    if place.runtime == "runc":
        assert done.stdout.split()[1] == _mask(*CAPABILITIES, "CAP_SYS_PTRACE")
    else:
        assert (done.returncode, done.stderr) == (125, "pagepool: error: CAP_SYS_PTRACE needs runc\n")
    assert place.run("--cap-add", "SYS_ADMIN", "--", "true").returncode == 125


_TRY = 'for way in "<" "<>"; do test -c $0 && eval "(exec 3$way$0)" 2>/dev/null && echo "yes" || echo "no"; done'


@pytest.mark.parametrize(
    ("options", "path", "expected"),
    [
        ((), "/dev/fuse", ["no", "no"]),
        (("--device", "/dev/fuse"), "/dev/fuse", ["yes", "yes"]),
        (("--device", "/dev/fuse:/dev/of/mine:rw"), "/dev/of/mine", ["yes", "yes"]),
        (("--device", "/dev/fuse:r"), "/dev/fuse", ["yes", "no"]),
    ],
)
def test_devices(place: Place, options: tuple[str, ...], path: str, expected: list[str]) -> None:
    """One of the machine's can be opened as it is said, and no other, whoever makes a node of it."""
    script = f"test -e {path} || mknod {path} c 10 229 2>/dev/null; {_TRY}"
    done = place.run(*options, "--", "sh", "-c", script, path)
    if place.runtime == "own" and options[-1:] == ("/dev/fuse:r",):
        assert (done.returncode, "needs runc" in done.stderr) == (125, True)
        return
    assert (done.returncode, done.stdout.split()) == (0, expected), done.stderr


def test_whose_a_device_is(place: Place, tmp_path: Path) -> None:
    """It has the owner and the permissions that it has here; the last of a name counts."""
    os.mknod(tmp_path / "one", 0o604 | stat.S_IFCHR, os.makedev(10, 229))
    os.chmod(tmp_path / "one", 0o604)  # noqa: PTH101
    os.chown(tmp_path / "one", 7, 8)
    options = ("--device", "/dev/fuse:/dev/one", "--device", f"{tmp_path}/one:/dev/one")
    done = place.run(*options, *_sh("stat -c '%a %u %g %t:%T' /dev/one"))
    assert (done.returncode, done.stdout) == (0, "604 7 8 a:e5\n"), done.stderr


def test_no_new_privileges(place: Place) -> None:
    done = place.run("--security-opt", "no-new-privileges", "--", "grep", "NoNewPrivs", "/proc/self/status")
    assert done.stdout.split()[1] == "1"
    done = place.run("--security-opt", "seccomp=unconfined", "--", "grep", "NoNewPrivs", "/proc/self/status")
    assert done.stdout.split()[1] == "0"


def test_the_host_has_a_name_and_help_is_another_option(place: Place) -> None:
    done = place.run("-h", "box", "--", "cat", "/proc/sys/kernel/hostname")
    assert (done.returncode, done.stdout) == (0, "box\n"), done.stderr
    done = place.call(*place.command("run", "-h"))
    assert (done.returncode, done.stdout.startswith("Usage: pagepool run")) == (0, True)


@pytest.mark.parametrize("network", ["host", "none"])
def test_hosts_and_groups(place: Place, network: str) -> None:
    options = ("--network", network, "--add-host", "db:10.1.2.3", "--add-host", "six:::1")
    script = "tail -n 2 /etc/hosts; id -G"
    done = place.run(*options, "-u", "nobody", "--group-add", "daemon", "--group-add", "77", *_sh(script))
    assert done.stdout == "10.1.2.3\tdb\n::1\tsix\n65534 1 77\n"
    assert place.run("--group-add", "ghosts", "--", "true").returncode == 125


def test_hosts_need_not_be_utf_8(place: Place) -> None:
    """Nor need this machine's, which are handed on as they are."""
    done = place.run("--add-host", "caf\udce9:10.1.2.3", *_sh("tail -n 1 /etc/hosts"))
    assert (done.returncode, done.stdout) == (0, "10.1.2.3\tcaf\udce9\n"), done.stderr


def test_labels_and_the_file_of_the_id(place: Place, tmp_path: Path) -> None:
    place.config["Labels"] = {"image": "its", "both": "image"}
    cidfile = tmp_path / "cid"
    options = ("--cidfile", str(cidfile), "-l", "both=given", "--label", "job")
    started = begin(place, *options, "--name", "one", *_sh(READY))
    other = _begin_other(place)
    (record, _) = place.containers()
    assert cidfile.read_text() == record.id
    found = json.loads(place.call(*place.command("ps", "--json")).stdout)["containers"]
    assert [one["labels"] for one in found] == [
        {"image": "its", "both": "given", "job": ""},
        {"image": "its", "both": "image"},
    ]
    for filters, names in (
        (("label=job",), ["one"]),
        (("label=image=its",), ["one", "two"]),
        (("label=both=image", "label=image"), ["two"]),
        (("label=job=x",), []),
        (("name=wo",), ["two"]),
        ((f"id={record.id[:24]}",), ["one"]),
    ):
        words = [word for one in filters for word in ("--filter", one)]
        shown = json.loads(place.call(*place.command("ps", "--json", *words)).stdout)["containers"]
        assert [one["name"] for one in shown] == names, filters
    assert place.call(*place.command("ps", "--filter", "colour=red")).returncode == 2
    assert place.run("--cidfile", cidfile, "--", "true").returncode == 125
    assert place.call(*place.command("stop", "--time", "0", "one", "two")).returncode == 0
    assert {end(started)[0], end(other)[0]} == {137}


def _begin_other(place: Place) -> subprocess.Popen[str]:
    started = place.start("--name", "two", *_sh(READY))
    assert started.stdout is not None
    assert started.stdout.readline() == "ready\n"
    while "created" in [record.status for record in place.containers()]:
        pass
    return started


def test_how_it_is_stopped(place: Place) -> None:
    """By its own signal, and killed after its own time, whoever stops it."""
    place.config["StopSignal"] = "SIGUSR2"
    traps = "".join(f"trap 'echo {name}; exit 0' {name}; " for name in ("TERM", "USR1", "USR2"))
    started = begin(place, "--stop-signal", "USR1", "--name", "web", *_sh(f"{traps}{READY}"))
    assert place.call(*place.command("stop", "web")).returncode == 0
    assert end(started) == (0, "USR1\n")
    ignoring = _sh(f"trap '' TERM USR2; {READY}")
    started = begin(place, "--stop-timeout", "0", "--name", "web", *ignoring)
    done = place.call(*place.command("stop", "--json", "web"))
    assert [one["killed"] for one in json.loads(done.stdout)["stopped"]] == [True]
    assert end(started)[0] == 137


def test_an_init(place: Place) -> None:
    if place.runtime == "runc":
        done = place.run("--init", "--", "true")
        assert (done.returncode, "--runtime own" in done.stderr) == (125, True)
        words = place.command("run", "--init", "app:1", "--", "sh", "-c", "echo $$")
        assert int(place.call(*words).stdout) > 1
    else:
        assert int(place.run("--init", *_sh("echo $$")).stdout) > 1
