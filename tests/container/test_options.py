"""Options as they are written, and files of a root that is not to be trusted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pagepool.container import OptionInvalidError, RunOptions, Volume
from pagepool.container.options import (
    Port,
    Tmpfs,
    check_options,
    parse_env,
    parse_env_file,
    parse_memory,
    parse_size,
    parse_volume,
)
from pagepool.container.rootfiles import make_directory, make_file, open_root, read_file
from pagepool.errors import ImageInvalidError


def test_volumes() -> None:
    assert parse_volume("/a:/b") == Volume(Path("/a"), "/b")
    assert parse_volume("/a:/b/:ro") == Volume(Path("/a"), "/b", True)
    assert parse_volume("./a:/b:rw") == Volume(Path.cwd() / "a", "/b")
    assert parse_volume("/a:/b:z") == parse_volume("/a:/b:Z,rw,rprivate,cached") == Volume(Path("/a"), "/b")
    assert parse_volume("/a:/b:z,ro") == Volume(Path("/a"), "/b", True)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "data:/b",
        "/a",
        "/a:b",
        "/a:/",
        "/a:/b:x",
        "/a://",
        "/a:/.",
        "/a:/b/../c",
        ":/b",
        "/a:",
        "/a:/b:ro,rw",
        "/a:/b:rshared",
    ],
)
def test_volumes_that_are_none(text: str) -> None:
    with pytest.raises(OptionInvalidError):
        parse_volume(text)


def test_sizes() -> None:
    assert [parse_memory(text) for text in ("6291456", "10m", "1.5g", "64MB")] == [6 << 20, 10 << 20, 3 << 29, 64 << 20]
    assert [parse_size(text) for text in ("1", "2b", "3k", "4KB", "1t")] == [1, 2, 3 << 10, 4 << 10, 1 << 40]


@pytest.mark.parametrize(
    "text", ["", "x", "-1m", "5m", "1e9", "10 m", "10mm", "٣٣m", pytest.param("9" * 400, id="long")]
)
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(OptionInvalidError):
        parse_memory(text)


def test_variables() -> None:
    assert parse_env("A=b=c", {}) == "A=b=c"
    assert parse_env("A", {"A": "x"}) == "A=x"
    assert parse_env("A", {}) == "A"
    assert parse_env_file("\ufeffA=1\n # c\n\nB='q' \nC\n", {"C": "x"}) == ("A=1", "B='q' ", "C=x")
    for text in ("=x", ""):
        with pytest.raises(OptionInvalidError):
            parse_env(text, {})
    with pytest.raises(OptionInvalidError):
        parse_env_file("A B=1", {})


@pytest.mark.parametrize(
    "options",
    [
        RunOptions(name="a/b"),
        RunOptions(name="a" * 129),
        RunOptions(name=".a"),
        RunOptions(hostname="-x"),
        RunOptions(hostname="a" * 64),
        RunOptions(hostname=f"{'a' * 32}.{'b' * 32}"),
        RunOptions(network="a/b"),
        RunOptions(ports=(Port(80, 80),)),
        RunOptions(ports=(Port(80, 80),), network="none"),
        RunOptions(ports=(Port(80, 80), Port(80, 81)), network="bridge"),
        RunOptions(workdir="relative"),
        RunOptions(pids_limit=0),
        RunOptions(volumes=(Volume(Path("/"), "/a"), Volume(Path("/"), "/a/"))),
        RunOptions(volumes=(Volume(Path("/"), "/a"),), tmpfs=(Tmpfs("/a/"),)),
        RunOptions(volumes=(Volume(Path("/not/there"), "/a"),)),
    ],
)
def test_options_that_cannot_be_used(options: RunOptions) -> None:
    with pytest.raises(OptionInvalidError):
        check_options(options)


def test_options_that_can_be_used() -> None:
    """One port of this machine may be two: by another protocol, or of another address."""
    ports = (Port(80, 80), Port(80, 80, "udp"), Port(80, 80, address="127.0.0.1"), Port(81, 80))
    check_options(RunOptions(ports=ports, network="bridge", pids_limit=1, tmpfs=(Tmpfs("/a"), Tmpfs("/b"))))
    check_options(RunOptions(name="a" * 128, workdir="/srv", hostname="box"))


@pytest.mark.parametrize("hostname", ["a_b", "_a", "a-b_c.d_e", "a" * 63, f"{'a' * 32}.{'b' * 31}"])
def test_names_of_hosts(hostname: str) -> None:
    check_options(RunOptions(hostname=hostname, workdir="", user=""))


def test_files_are_read_inside_of_the_root(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("outside")
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc" / "plain").write_text("inside")
    (root / "etc" / "absolute").symlink_to("/etc/plain")
    (root / "etc" / "up").symlink_to("../../../secret")
    (root / "etc" / "proc").symlink_to("/proc/self/environ")
    (root / "etc" / "loop").symlink_to("loop")
    os.mkfifo(root / "etc" / "fifo")
    (root / "etc" / "directory").mkdir()
    with open_root(root) as opened:
        assert read_file(opened, "/etc/plain") == read_file(opened, "/etc/absolute") == b"inside"
        for name in ("up", "proc", "loop", "fifo", "directory", "absent", "plain/below"):
            assert read_file(opened, f"/etc/{name}") == b""
        with pytest.raises(ImageInvalidError):
            read_file(opened, "/etc/plain", limit=3)
    with open_root(Path("/")) as machine:
        assert read_file(machine, "/proc/sys/kernel/ostype") == b""


def test_places_are_made_inside_of_the_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "out").symlink_to("../../outside")
    (root / "dangling").symlink_to("/run/deep/file")
    (root / "file").write_text("x")
    with open_root(root) as opened:
        for path in ("/out/a/b", "/x/y"):
            os.close(make_directory(opened, path))
        os.close(make_file(opened, "/dangling"))
        with pytest.raises(NotADirectoryError):
            make_directory(opened, "/file/below")
        with pytest.raises(NotADirectoryError):
            make_directory(opened, "/file")
    assert (root / "outside" / "a" / "b").is_dir()
    assert (root / "x" / "y").is_dir()
    assert (root / "run" / "deep" / "file").read_bytes() == b""
    assert not (tmp_path / "outside").exists()
