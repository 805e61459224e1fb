"""Options of docker's as they are written."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pagepool.container import OptionInvalidError, Volume
from pagepool.container.options import Device, Tmpfs, Ulimit
from pagepool.container.written import (
    parse_add_host,
    parse_capability,
    parse_cpus,
    parse_device,
    parse_label,
    parse_mount,
    parse_security,
    parse_tmpfs,
    parse_ulimit,
)

if TYPE_CHECKING:
    from collections.abc import Callable

_UNLIMITED = (1 << 64) - 1


def test_what_is_written() -> None:
    assert [parse_label(text) for text in ("a=b=c", "a", "a.b/c=")] == [("a", "b=c"), ("a", ""), ("a.b/c", "")]
    assert parse_add_host("db:10.0.0.1") == parse_add_host("db=10.0.0.1") == ("db", "10.0.0.1")
    assert parse_add_host("db:::1") == parse_add_host("db:[::1]") == ("db", "::1")
    assert [parse_cpus(text) for text in ("1", "0.5", ".25", "2.0")] == [1, 0.5, 0.25, 2]
    assert parse_ulimit("nofile=10:20") == Ulimit("nofile", 10, 20)
    assert parse_ulimit("core=0") == Ulimit("core", 0, 0)
    assert parse_ulimit("memlock=-1") == parse_ulimit("memlock=unlimited:-1") == Ulimit("memlock", *[_UNLIMITED] * 2)
    assert [parse_capability(text, add=False) for text in ("all", "chown", "CAP_KILL")] == [
        "ALL",
        "CAP_CHOWN",
        "CAP_KILL",
    ]
    assert parse_capability("sys_ptrace", add=True) == "CAP_SYS_PTRACE"
    assert parse_security(("no-new-privileges", "seccomp=unconfined")) == (True, {})
    assert parse_security(("no-new-privileges:true", "seccomp=builtin")) == (True, None)
    assert parse_security(("no-new-privileges=false", "label:disable")) == (False, None)


def test_devices(tmp_path: Path) -> None:
    null = Device("/dev/null", "c", 1, 3, 0o666)
    assert parse_device("/dev/null") == parse_device("/dev/null:rwm") == (null,)
    assert parse_device("/dev/null:/dev/b/:r") == (replace(null, path="/dev/b", access="r"),)
    (tmp_path / "link").symlink_to("/dev/null")
    assert parse_device(f"{tmp_path}/link:/dev/linked") == (replace(null, path="/dev/linked"),)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_devices_below_a_directory(tmp_path: Path) -> None:
    """Links and files are left out, and what each container has of its own."""
    (tmp_path / "above" / "below").mkdir(parents=True)
    (tmp_path / "pts").mkdir()
    nodes = (("above/one", stat.S_IFCHR, 7), ("above/below/two", stat.S_IFBLK, 0), ("pts/3", stat.S_IFCHR, 0))
    for name, kind, minor in nodes:
        os.mknod(tmp_path / name, 0o640 | kind, os.makedev(7, minor))
    (tmp_path / "above" / "file").touch()
    (tmp_path / "above" / "link").symlink_to("one")
    assert parse_device(f"{tmp_path}:/dev/d:rw") == (
        Device("/dev/d/above/one", "c", 7, 7, 0o640, access="rw"),
        Device("/dev/d/above/below/two", "b", 7, 0, 0o640, access="rw"),
    )


def test_mounts() -> None:
    assert parse_tmpfs("/run") == Tmpfs("/run", ("nosuid", "nodev", "noexec", "mode=1777"))
    assert parse_tmpfs("/run/:size=1m,mode=700,uid=5,exec,ro,rw,ro") == Tmpfs(
        "/run", ("nosuid", "nodev", "ro", "size=1048576", "mode=700", "uid=5")
    )
    volume = Volume(Path("/a"), "/b")
    assert (
        parse_mount("type=bind,source=/a,target=/b") == parse_mount("type=bind,src=/a,dst=/b,readonly=false") == volume
    )
    assert parse_mount("type=bind,src=/a,destination=/b,ro") == Volume(Path("/a"), "/b", True)
    assert parse_mount('type=bind,"source=/a,b",target=/c d') == Volume(Path("/a,b"), "/c d")
    assert parse_mount("type=bind,source=/a:b,target=/c") == Volume(Path("/a:b"), "/c")
    assert parse_mount("type=tmpfs,target=/b,tmpfs-size=1m,tmpfs-mode=0755") == Tmpfs(
        "/b", ("nosuid", "nodev", "noexec", "size=1048576", "mode=0755")
    )


@pytest.mark.parametrize(
    ("parse", "texts"),
    [
        (parse_label, ("", "=x")),
        (parse_add_host, ("", "db", "db:host-gateway", "db:1.2.3", "a b:1.2.3.4", ":1.2.3.4", "db:1.2.3.4\n::1 x")),
        (parse_cpus, ("", "x", "0", "-1", "0.001", "1e3", "nan")),
        (parse_ulimit, ("", "nofile", "nofile=", "nofile=2:1", "nofile=-1:5", "ps=1", f"nofile={1 << 63}")),
        (
            parse_device,
            (
                *("", "dev/null", "/dev/null:dev/x", "/dev/null:/x", "/dev/null:/dev/../x", "/dev/null:/dev/"),
                *(
                    "/dev/null:rwx",
                    "/dev/null:rr",
                    "/dev/null:",
                    "/dev/null:/dev/x:r:w",
                    "/dev/null:/dev/x:/dev/y",
                    "/dev/nothing-of-the-kind",
                ),
                *("/etc/passwd:/dev/x", "/etc:/dev/x"),
            ),
        ),
        (parse_tmpfs, ("", "run", "/", "/run:dev", "/run:size=x", "/run:mode=9", "/a/../b", "/run:uid=x")),
        (
            parse_mount,
            (
                "",
                "type=volume,target=/b",
                "source=/a,target=/b",
                "type=bind,source=a,target=/b",
                "type=bind,target=/b",
                "type=bind,source=/a",
                "type=bind,source=/a,target=/b:ro",
                "type=bind,source=/a,target=/b,bind-propagation=shared",
                'type=bind,"source=/a,target=/b',
                "type=bind,source=/a,\ntarget=/b",
                "type=bind,source=/a,target=/b,readonly=maybe",
                "type=tmpfs,source=/a,target=/b",
                "type=tmpfs",
            ),
        ),
        (
            lambda text: parse_capability(text, add=True),
            ("", "ALL", "SYS_ADMIN", "DAC_READ_SEARCH", "NOPE"),
        ),
        (lambda text: parse_capability(text, add=False), ("", "NOPE")),
        (lambda text: parse_security((text,)), ("", "seccomp=x.json", "no-new-privileges=maybe", "apparmor=x")),
    ],
)
def test_what_is_none(parse: Callable[[str], object], texts: tuple[str, ...]) -> None:
    for text in texts:
        with pytest.raises(OptionInvalidError):
            parse(text)
