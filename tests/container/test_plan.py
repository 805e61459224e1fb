"""What a runtime is told, from image and options alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pagepool.container import Container, Facts, OptionInvalidError, RunOptions, UserInvalidError, Volume, plan_runtime
from pagepool.container.attending import parse_signal
from pagepool.container.defaults import CAPABILITIES
from pagepool.container.syscalls import default_profile
from tests.container.driver import make_config

_PASSWD = b"root:x:0:0:root:/root:/bin/sh\nwww:x:33:34::/var/www:/bin/false\n"
_GROUP = b"root:x:0:\nwww:x:34:\nlog:x:4:www,other\n"
_GOLDEN = Path(__file__).parents[1] / "golden" / "container-config.json"


def _plan(run: dict[str, Any], facts: Facts | None = None, **options: Any) -> dict[str, Any]:
    container = Container("0123456789abcdef", "app:1", Path("/roots/1"), make_config(run), RunOptions(**options))
    return plan_runtime(container, facts or Facts(_PASSWD, _GROUP, "host"))


def test_golden() -> None:
    """All of it. After a wanted change: write what this compares into the file, and read the difference."""
    run = {"Cmd": ["serve"], "Entrypoint": ["/init"], "Env": ["A=1"], "User": "www", "WorkingDir": "/srv"}
    facts = Facts(_PASSWD, _GROUP, "host", files={"/etc/hosts": "/run/x/hosts"})
    volume = Volume(Path("/data"), "/data", read_only=True)
    found = _plan(run | {"StopSignal": "SIGQUIT"}, facts, volumes=(volume,), memory=64 << 20, pids_limit=9)
    assert found["linux"].pop("seccomp") == default_profile(CAPABILITIES, "x86_64")
    assert found == json.loads(_GOLDEN.read_text())


@pytest.mark.parametrize(
    ("run", "options", "expected"),
    [
        ({"Cmd": ["a", "b"]}, {}, ["a", "b"]),
        ({"Cmd": ["a", "b"]}, {"command": ("c",)}, ["c"]),
        ({"Entrypoint": ["e"], "Cmd": ["a"]}, {}, ["e", "a"]),
        ({"Entrypoint": ["e"], "Cmd": ["a"]}, {"command": ("c", "d")}, ["e", "c", "d"]),
        ({"Entrypoint": ["e"], "Cmd": ["a"]}, {"entrypoint": "x"}, ["x"]),
        ({"Entrypoint": ["e"], "Cmd": ["a"]}, {"entrypoint": "x", "command": ("c",)}, ["x", "c"]),
        ({"Entrypoint": ["e"], "Cmd": ["a"]}, {"entrypoint": "", "command": ("c",)}, ["c"]),
        ({"Entrypoint": ["e"]}, {}, ["e"]),
        ({"Entrypoint": [""], "Cmd": ["a", "b"]}, {}, ["a", "b"]),
        ({"Entrypoint": [""], "Cmd": ["a"]}, {"command": ("c",)}, ["c"]),
    ],
)
def test_arguments(run: dict[str, Any], options: dict[str, Any], expected: list[str]) -> None:
    assert _plan(run, **options)["process"]["args"] == expected


@pytest.mark.parametrize("options", [{}, {"entrypoint": ""}])
def test_no_command(options: dict[str, Any]) -> None:
    with pytest.raises(OptionInvalidError, match="no command of its own"):
        _plan({"Cmd": ["a"]} if options else {}, **options)


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("", "/"),
        ("srv", "/srv"),
        ("/a/./b", "/a/b"),
        ("/a/../b", "/b"),
        ("../x/", "/x"),
        ("/x/.", "/x"),
        ("//a/", "/a"),
    ],
)
def test_working_directory(said: str, found: str) -> None:
    """What is missing of it is made name by name, and a dot is there before it can be made."""
    assert _plan({"Cmd": ["a"], "WorkingDir": said})["process"]["cwd"] == found
    if said.startswith("/"):
        assert _plan({"Cmd": ["a"]}, workdir=said)["process"]["cwd"] == found


def test_environment() -> None:
    run = {"Cmd": ["a"], "Env": ["PATH=/bin", "A=1", "B=2", "C="]}
    found = _plan(run, env=("B=3", "A"), tty=True)["process"]["env"]
    assert found == ["PATH=/bin", "HOSTNAME=host", "TERM=xterm", "B=3", "C=", "HOME=/root"]


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("", (0, 0, [0])),
        ("www", (33, 34, [34, 4])),
        ("33", (33, 34, [34, 4])),
        ("www:log", (33, 4, [4])),
        ("www:77", (33, 77, [77])),
        ("1000", (1000, 0, [0])),
        ("1000:log", (1000, 4, [4])),
        (":log", (0, 4, [4])),
        ("2147483647:2147483647", (2147483647, 2147483647, [2147483647])),
    ],
)
def test_users(user: str, expected: tuple[int, int, list[int]]) -> None:
    found = _plan({"Cmd": ["a"], "User": user})["process"]
    assert (found["user"]["uid"], found["user"]["gid"], found["user"]["additionalGids"]) == expected
    assert ("effective" in found["capabilities"]) == (expected[0] == 0)
    assert _plan({"Cmd": ["a"], "User": "www"}, user=user or "0")["process"]["user"] == found["user"]


@pytest.mark.parametrize("user", ["ghost", "www:ghost", "4294967296", "2147483648", "-1", "www:2147483648"])
def test_users_that_are_none(user: str) -> None:
    with pytest.raises(UserInvalidError, match=user.rpartition(":")[0] or user):
        _plan({"Cmd": ["a"]}, user=user)


def test_more_groups() -> None:
    """By name or number, each once; a number need not be in the image's table."""
    found = _plan({"Cmd": ["a"], "User": "www"}, group_add=("log", "77", "34", "2147483647"))["process"]["user"]
    assert (found["gid"], found["additionalGids"]) == (34, [34, 4, 77, 2147483647])
    for name in ("ghosts", "2147483648", "-1", ""):
        with pytest.raises(UserInvalidError, match=f"'{name}'"):
            _plan({"Cmd": ["a"]}, group_add=(name,))


def test_tables_that_are_damaged() -> None:
    facts = Facts(b"\xff\n#c\n\nbad\nx:y\nlate:x:5:6\n:::\nn:x:n:n\n", b"g:x\n\xff:x:9:late\n")
    found = _plan({"Cmd": ["a"], "User": "late"}, facts)["process"]
    assert (found["user"]["uid"], found["user"]["additionalGids"]) == (5, [6, 9])
    assert "HOME=/" in found["env"]


def test_network_and_names() -> None:
    kinds = {one["type"] for one in _plan({"Cmd": ["a"]})["linux"]["namespaces"]}
    assert kinds == {"pid", "ipc", "uts", "mount"}
    alone = _plan({"Cmd": ["a"]}, network="none")
    assert {"type": "network"} in alone["linux"]["namespaces"]
    assert alone["hostname"] == "0123456789ab"
    assert _plan({"Cmd": ["a"]})["hostname"] == "host"
    said = {"Cmd": ["a"], "User": "www", "WorkingDir": "/srv"}
    assert _plan(said, user="", workdir="", hostname="") == _plan(said)  # a script's variables that are empty
    assert _plan({"Cmd": ["a"]}, hostname="box")["hostname"] == "box"


def test_volumes_replace_ours_and_come_from_above() -> None:
    facts = Facts(_PASSWD, _GROUP, files={"/etc/hosts": "/x/hosts", "/etc/hostname": "/x/hostname"}, cgroup=False)
    wanted = ("/a/b", "/a/", "/etc/hosts", "/dev/shm", "/etc")
    volumes = tuple(Volume(Path(f"/v{at}"), path) for at, path in enumerate(wanted))
    mounts = _plan({"Cmd": ["a"]}, facts, volumes=volumes)["mounts"]
    places = [mount["destination"] for mount in mounts]
    assert places[-6:] == ["/a/", "/etc", "/etc/hostname", "/a/b", "/etc/hosts", "/dev/shm"]
    assert places.count("/dev/shm") == places.count("/etc/hosts") == 1
    assert "/sys/fs/cgroup" not in places


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *(("SIGTERM", 15), ("quit", 3), ("9", 9), ("SIGRTMIN", 34), ("SIGRTMIN+3", 37), ("rtmax-1", 63), ("64", 64)),
        # What is no signal is SIGTERM.
        *((text, 15) for text in ("", "SIG_DFL", "0", "65", "RTMIN-1", "RTMIN+31", "RTMIN+", "\xb2", "1" * 5000)),
    ],
)
def test_stop_signals(text: str, number: int) -> None:
    assert parse_signal(text) == number
