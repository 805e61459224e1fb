"""Programs in containers of a real image, the same by runc and by our own runtime."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path

import pytest

from pagepool.container.defaults import CAPABILITIES, CAPABILITY_NUMBERS
from tests.container.conftest import Place

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def _sh(script: str) -> tuple[str, ...]:
    return ("--", "sh", "-c", script)


@pytest.mark.parametrize("code", [0, 1, 3, 125, 255])
def test_exit_code_is_the_programs(place: Place, code: int) -> None:
    assert place.run(*_sh(f"exit {code}")).returncode == code


def test_output_and_errors_pass_through(place: Place) -> None:
    done = place.run(*_sh("echo out; echo err >&2"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "out\n", "err\n")


def test_an_image_of_another_platform_is_told(place: Place) -> None:
    """It is no index, out of which another could have been chosen: what was asked for is not what runs."""
    done = place.run("--platform", "linux/s390x", "--", "true")
    assert done.returncode == 0
    assert "warning: app:1 is for linux/" in done.stderr
    assert done.stderr.endswith(", not for linux/s390x\n")
    assert place.run("--platform", "local", "--", "true").stderr == ""


def test_input_passes_through_if_it_is_wanted(place: Place) -> None:
    assert place.run("-i", "--", "cat", given="a\nb").stdout == "a\nb"
    assert place.run("--", "cat", given="a\nb").stdout == ""


def test_python(place: Place) -> None:
    done = place.run("--", "python3", "-c", "import sys, json; print(json.dumps(sys.version_info[0]))")
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr


def test_the_images_command(place: Place) -> None:
    place.config |= {"Entrypoint": ["/bin/echo", "entry"], "Cmd": ["cmd"]}
    assert place.run().stdout == "entry cmd\n"
    assert place.run("--", "given", "-x").stdout == "entry given -x\n"
    assert place.run("--entrypoint", "id", "--", "-u").stdout == "0\n"
    assert place.run("--entrypoint", "", "--", "id", "-u").stdout == "0\n"
    place.config = {}
    done = place.run()
    assert done.returncode == 125
    assert "no command of its own" in done.stderr


@pytest.mark.parametrize(
    ("command", "code"), [("nope", 127), ("/nope", 127), ("/etc/passwd", 126), ("/etc", 126), ("./nope", 127)]
)
def test_a_command_that_cannot_be_run(place: Place, command: str, code: int) -> None:
    done = place.run("--", command)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert done.stderr.startswith(f"pagepool: error: {command}: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("place", ["runc"], indirect=True)
def test_what_runc_has_said_is_not_said_again(place: Place) -> None:
    """It says so itself on the same standard error; in JSON it is said all the same."""
    done = place.run("--", "/proc/nope")
    assert (done.returncode, done.stdout) == (127, "")
    assert 'exec: "/proc/nope": ' in done.stderr
    assert done.stderr.count("\n") == 1
    done = place.run("--json", "--", "/dev/null")
    assert done.returncode == 126
    assert json.loads(done.stderr.splitlines()[-1])["error"]["exit_code"] == 126


def test_an_option_behind_the_image_is_named(place: Place) -> None:
    done = place.call(*place.argv("app:1", "--rm", "true"))
    assert (done.returncode, "--rm: not found" in done.stderr) == (127, True)
    assert "options stand before the image" in done.stderr


def test_commands_that_only_the_container_has(place: Place, tmp_path: Path) -> None:
    """What cannot be seen before it is made is no reason to refuse anything."""
    for name in ("tool", "script"):
        (tmp_path / name).write_text("#!/bin/sh\necho found\n")
        (tmp_path / name).chmod(0o755)
    (place.root / "usr" / "bin" / "linked").symlink_to("/opt/tools/tool")
    volume = ("-v", f"{tmp_path}:/opt/tools")
    for words in (("/opt/tools/tool",), ("linked",), ("-w", "/opt/tools", "--", "./script")):
        words = words if "--" in words else ("--", *words)
        assert place.run(*volume, *words).stdout == "found\n"
    assert place.run("-w", "/usr/bin", "--", "./true").returncode == 0
    (place.root / "own").symlink_to("/proc/self/root/usr/bin/true")
    assert place.run("--", "/own").returncode == place.run("--", "/proc/self/root/bin/true").returncode == 0


@pytest.mark.parametrize(
    ("user", "found"),
    [
        ("nobody", "65534 65534 65534"),
        ("nobody:daemon", "65534 1 1"),
        ("1234", "1234 0 0"),
        ("1234:5", "1234 5 5"),
        ("daemon:7", "1 7 7"),
        ("", "0 0 0"),
    ],
)
def test_users(place: Place, user: str, found: str) -> None:
    place.config["User"] = user
    assert place.run(*_sh("echo $(id -u) $(id -g) $(id -G)")).stdout == f"{found}\n"
    assert place.run("--user", user or "0", *_sh("echo $(id -u) $(id -g) $(id -G)")).stdout == f"{found}\n"


def test_supplementary_groups(place: Place) -> None:
    with (place.root / "etc" / "group").open("a") as file:
        file.write("one:x:4001:daemon,nobody\ntwo:x:4002:nobody\n")
    assert place.run("-u", "nobody", "--", "id", "-G").stdout == "65534 4001 4002\n"
    assert place.run("-u", "nobody:two", "--", "id", "-G").stdout == "4002\n"


def test_an_unknown_user(place: Place) -> None:
    done = place.run("--user", "ghost", "--", "id")
    assert done.returncode == 125
    assert done.stderr == "pagepool: error: invalid user 'ghost': /etc/passwd of the image has no 'ghost'\n"


def test_a_pipe_with_a_name_stays_its_owners(place: Place, tmp_path: Path) -> None:
    """A pipe of ours is given to the program's user, who opens it again by /dev/stdout; this is somebody's file."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    ours = os.open(pipe, os.O_RDWR)
    words = place.argv("-u", "nobody", "app:1", *_sh("echo written"))
    try:
        subprocess.run(words, env=place.environment(), stdin=subprocess.DEVNULL, stdout=ours, check=True, timeout=60)
        assert os.read(ours, 100) == b"written\n"
    finally:
        os.close(ours)
    assert pipe.stat().st_uid == os.geteuid()


def test_a_user_has_no_capabilities_and_can_write_to_its_output(place: Place) -> None:
    done = place.run("-u", "nobody", *_sh("grep -E 'Cap(Prm|Eff|Amb|Inh)' /proc/self/status; echo x > /dev/stdout"))
    assert done.stdout.split() == [word for cap in _CAPS for word in (f"Cap{cap}:", "0" * 16)] + ["x"]


_CAPS = ("Inh", "Prm", "Eff", "Amb")


def test_capabilities_are_dockers(place: Place) -> None:
    numbers = {CAPABILITY_NUMBERS[name] for name in CAPABILITIES}
    if place.runtime == "own":
        numbers.remove(CAPABILITY_NUMBERS["CAP_MKNOD"])
    mask = sum(1 << number for number in numbers)
    shown = place.run("--", "grep", "Cap", "/proc/self/status").stdout.split()
    found = dict(zip(shown[::2], (int(word, 16) for word in shown[1::2]), strict=True))
    assert found == {"CapInh:": 0, "CapPrm:": mask, "CapEff:": mask, "CapBnd:": mask, "CapAmb:": 0}


def test_environment(place: Place, tmp_path: Path) -> None:
    (tmp_path / "env").write_text("# comment\n\nFILE=1\nBOTH=file\nTAKEN\n")
    place.config["Env"] = ["LANG=C.UTF-8", "BOTH=image", "GONE=1", "KEPT=a b=c"]
    arguments = ("-e", "BOTH=option", "-e", "GONE", "-e", "HERE", "--env-file", tmp_path / "env", "--", "/usr/bin/env")
    done = place.run(*arguments, HERE="here", TAKEN="taken")
    found = dict(line.split("=", 1) for line in done.stdout.splitlines())
    expected = {"LANG": "C.UTF-8", "BOTH": "option", "KEPT": "a b=c", "FILE": "1", "TAKEN": "taken", "HERE": "here"}
    defaults = {"PATH": PATH_VALUE, "HOME": "/root", "HOSTNAME": os.uname().nodename}
    assert found == expected | defaults


def test_bytes_that_are_no_text(place: Place) -> None:
    """They reach the program, or it does not run: the JSON of runc has no place for them."""
    for arguments in (("--", "printf", "%s|", "\udcff"), ("-e", "A=\udcff", "--", "sh", "-c", 'printf "%s|" "$A"')):
        done = place.run("--entrypoint", "", *arguments)
        if place.runtime == "own":
            assert (done.returncode, done.stdout) == (0, "\udcff|"), done.stderr
        else:
            assert (done.returncode, done.stdout) == (125, "")
            assert "\\udcff': runc takes only UTF-8; --runtime own takes any bytes" in done.stderr


PATH_VALUE = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def test_home_is_the_users(place: Place) -> None:
    assert place.run("-u", "daemon", *_sh("echo $HOME")).stdout == "/usr/sbin\n"
    assert place.run("-u", "4444", *_sh("echo $HOME")).stdout == "/\n"
    assert place.run("-e", "HOME=/x", *_sh("echo $HOME")).stdout == "/x\n"


def test_working_directory_is_made(place: Place) -> None:
    place.config["WorkingDir"] = "/srv/made/here"
    assert place.run("--", "pwd").stdout == "/srv/made/here\n"
    assert place.run("--workdir", "/tmp", "--", "pwd").stdout == "/tmp\n"
    assert (place.root / "srv/made/here").is_dir()
    place.config["WorkingDir"] = "/opt/made/../also/."
    assert place.run("--", "pwd").stdout == "/opt/also\n"


def test_volumes_of_the_image(place: Place, tmp_path: Path) -> None:
    """Where the image says that data are, there is a directory; what is there already stays as it is."""
    said = ("/data/deep", "srv/./x/", "/etc/passwd", "/etc/passwd/x", "/opt/in/it", "/", "", "/../up")
    place.config["Volumes"] = {path: {} for path in said}
    (tmp_path / "given").mkdir()
    script = "stat -c '%F %a %u' /data/deep /srv/x /etc/passwd /up; touch /data/deep/x && ls -A /data/deep /opt"
    done = place.run("-v", f"{tmp_path}/given:/opt", *_sh(script))
    directory = "directory 755 0"
    assert done.stdout.splitlines() == [
        *(directory, directory, "regular file 644 0", directory, "/data/deep:", "x", "", "/opt:"),
    ]
    assert (done.returncode, done.stderr) == (0, "")


def test_volumes(place: Place, tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "below").mkdir(parents=True)
    (data / "file").write_text("from the host")
    single = tmp_path / "single"
    single.write_text("one file")
    arguments = ("-v", f"{data}:/new/rw", "-v", f"{data}:/ro:ro", "-v", f"{single}:/etc/single")
    done = place.run(*arguments, *_sh("cat /new/rw/file /etc/single; echo made > /new/rw/made; touch /ro/x || exit 9"))
    assert (done.returncode, done.stdout) == (9, "from the hostone file")
    assert (data / "made").read_text() == "made\n"
    assert not (data / "x").exists()


def test_nothing_is_made_in_a_volume_that_is_dev(place: Place, tmp_path: Path) -> None:
    os.mknod(tmp_path / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    place.run("-v", f"{tmp_path}:/dev", "--", "true")
    made = [path.name for path in tmp_path.iterdir() if path.is_symlink() or path.is_char_device()]
    assert made == ["null"]


@pytest.mark.parametrize("place", ["own"], indirect=True)  # runc says that it needs /dev/null there
def test_a_volume_that_is_dev_without_devices(place: Place, tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir()
    done = place.run("-v", f"{tmp_path / 'volume'}:/dev", *_sh("ls /dev; echo ran"))
    assert (done.returncode, done.stdout) == (0, "ran\n"), done.stderr


def test_a_file_as_a_volume_where_the_image_has_a_directory(place: Place, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = place.run("-v", f"{tmp_path / 'file'}:/usr/bin", "--", "true")
    assert done.returncode == 125
    assert "/usr/bin" in done.stderr.splitlines()[-1]


def test_a_read_only_volume_is_so_all_the_way_down(place: Place, tmp_path: Path) -> None:
    below = tmp_path / "data" / "below"
    below.mkdir(parents=True)
    place.call("mount", "-t", "tmpfs", "tmpfs", str(below))
    try:
        done = place.run("-v", f"{tmp_path / 'data'}:/data:ro", *_sh("touch /data/below/x && echo written"))
    finally:
        place.call("umount", str(below))
    assert (done.stdout, done.returncode) == ("", 1)


@pytest.mark.parametrize("options", [(), ("-w", "/" + "x" * 100_000)])
def test_a_command_with_a_very_long_name(place: Place, options: tuple[str, ...]) -> None:
    done = place.run(*options, "--", "x" * 100_000)
    assert done.returncode == (125 if options else 127)
    assert "Traceback" not in done.stderr


def test_a_volume_that_is_not_there(place: Place, tmp_path: Path) -> None:
    done = place.run("-v", f"{tmp_path / 'absent'}:/data", "--", "true")
    assert done.returncode == 125
    assert "is not on this machine" in done.stderr
    assert not (tmp_path / "absent").exists()


def test_read_only(place: Place) -> None:
    done = place.run("--read-only", *_sh("touch /x 2>&1; touch /etc/x 2>&1; touch /dev/shm/x && echo shm"))
    assert done.stdout.count("Read-only file system") == 2
    assert done.stdout.endswith("shm\n")


def test_files_of_the_host(place: Place) -> None:
    script = "cat /etc/hostname; hostname; cat /etc/hosts /etc/resolv.conf"
    done = place.run("--hostname", "box", *_sh(script))
    assert done.stdout.startswith("box\nbox\n")
    assert "\tbox\n" in done.stdout
    assert Path("/etc/resolv.conf").read_text() in done.stdout


def test_files_of_the_host_are_seen_in_a_volume(place: Place, tmp_path: Path) -> None:
    """As with docker; a volume that cannot be written, and has no such files, stays as it is."""
    volumes = [tmp_path / "written", tmp_path / "shut"]
    for volume in volumes:
        volume.mkdir()
        (volume / "mine").touch()
    script = "cat /etc/hostname; grep -c box /etc/hosts; ls -x /etc"
    done = place.run("--hostname", "box", "-v", f"{volumes[0]}:/etc", *_sh(script))
    assert (done.stdout.split(), done.stderr) == (["box", "1", "hostname", "hosts", "mine", "resolv.conf"], "")
    for mode in ((f"--volume={volumes[1]}:/etc:ro",), ("--tmpfs", "/etc:ro")):
        done = place.run(*mode, *_sh("ls -x /etc; cat /proc/mounts"))
        assert "/etc/ho" not in done.stdout
        assert (done.returncode, done.stdout.startswith("mine\n")) == (0, "--tmpfs" not in mode)


def test_network_none_is_loopback_alone(place: Place) -> None:
    program = (
        "import os, socket; s = socket.create_server(('127.0.0.1', 0)); socket.create_connection(s.getsockname());"
        "print(*[name for _, name in socket.if_nameindex() if 'UNKNOWN' or name])"
    )
    done = place.run("--network", "none", "--", "python3", "-c", program)
    assert "lo" in done.stdout.split(), done.stderr
    ours = str(Path("/proc/self/ns/net").readlink())
    assert place.run("--network", "none", "--", "readlink", "/proc/self/ns/net").stdout.strip() != ours
    assert place.run("--", "readlink", "/proc/self/ns/net").stdout.strip() == ours


def test_other_namespaces_are_its_own(place: Place) -> None:
    names = ("pid", "ipc", "uts", "mnt")
    shown = place.run("--", "readlink", *(f"/proc/self/ns/{name}" for name in names)).stdout.split()
    assert len(shown) == len(names)
    assert not {str(Path(f"/proc/self/ns/{name}").readlink()) for name in names} & set(shown)
    assert place.run(*_sh("ls -d /proc/[0-9]* | wc -l")).stdout.strip() in ("2", "3", "4", "5")


def test_the_kernels_files_are_protected(place: Place) -> None:
    done = place.run(*_sh("echo 1 > /proc/sys/kernel/hostname; echo 1 > /sys/x; exit 0"))
    assert done.stderr.count("Read-only file system") == 2
    assert place.run(*_sh("ls /sys/firmware /proc/scsi 2>/dev/null | grep -v :")).stdout.strip() == ""


def test_what_hides_the_kernels_files_is_not_the_hosts(place: Place) -> None:
    """Else the container could give the host's /dev/null another mode, or owner: here it is but its time."""
    hidden = "for path in /proc/keys /proc/interrupts /dev/null; do touch -d 2001-02-03 $path; wc -c < $path; done"
    before = Path("/dev/null").stat()
    done = place.run(*_sh(hidden))
    after = Path("/dev/null").stat()
    assert done.stdout.split() == ["0"] * 3, done.stderr
    assert (after.st_mtime_ns, after.st_ctime_ns) == (before.st_mtime_ns, before.st_ctime_ns)


def test_an_images_device_nodes_are_no_devices(place: Place) -> None:
    disk = Path("/proc/partitions").read_text().splitlines()[2].split()
    os.mknod(place.root / "disk", 0o666 | stat.S_IFBLK, os.makedev(int(disk[0]), int(disk[1])))
    done = place.run(*_sh("head -c1 /disk; mknod /dev/disk b $0 $1 && head -c1 /dev/disk; true"), disk[0], disk[1])
    assert done.stdout == ""
    assert "Permission denied" in done.stderr or "Operation not permitted" in done.stderr


def test_devices(place: Place) -> None:
    script = "head -c2 /dev/zero | wc -c; head -c2 /dev/urandom | wc -c; echo > /dev/null; readlink /dev/fd /dev/ptmx"
    assert place.run(*_sh(script)).stdout.split() == ["2", "2", "/proc/self/fd", "pts/ptmx"]


def test_symlinks_of_the_image_lead_nowhere_outside(place: Place, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    data = tmp_path / "data"
    data.mkdir()
    (data / "file").write_text("x")
    (place.root / "etc" / "resolv.conf").unlink()
    (place.root / "etc" / "resolv.conf").symlink_to(f"../../../../../..{outside}/resolv.conf")
    (place.root / "escape").symlink_to(outside)
    arguments = ("-v", f"{data}:/escape/data", "-w", "/escape/work")
    done = place.run(*arguments, "--", "cat", "/escape/data/file")
    assert (done.stdout, done.stderr) == ("x", "")
    assert list(outside.iterdir()) == []


def test_memory_limit(place: Place) -> None:
    done = place.run("--memory", "40m", "--", "python3", "-c", "bytearray(200 << 20); print('took it')")
    assert (done.returncode, done.stdout) == (137, "")


def test_pids_limit(place: Place) -> None:
    program = "import subprocess as s; [s.Popen(['sleep', '9']) for _ in range(20)]"
    done = place.run("--pids-limit", "8", "--", "python3", "-c", program)
    assert done.returncode == 1
    assert "BlockingIOError" in done.stderr


def test_runc_is_used_where_it_is_installed(place: Place, tmp_path: Path) -> None:
    """And without it, everything goes on."""
    (tmp_path / "bin").mkdir()
    variables = {"PATH": str(tmp_path / "bin")} if place.runtime == "own" else {}
    place.runtime, expected = "auto", place.runtime
    done = place.run(*_sh("tr '\\0' ' ' < /proc/1/cmdline"), **variables)
    assert ("pagepool.container" in done.stdout) == (expected == "own"), done.stderr


def test_runc_that_is_not_there(place: Place, tmp_path: Path) -> None:
    place.runtime = "runc"
    done = place.run("--", "true", PATH=str(tmp_path))
    assert done.returncode == 125
    assert "runc is not installed" in done.stderr
