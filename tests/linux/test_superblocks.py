"""Which file system is seen at a path, and whether one is still there."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pagepool.linux import mounts
from pagepool.linux.superblocks import is_gone, mounted_device
from pagepool.node.lazy import mount_lazy
from tests.support.tools import require

_MOUNTINFO = Path("/proc/self/mountinfo")


@pytest.fixture
def at(tmp_path: Path) -> Iterator[Path]:
    """A directory with a tmpfs on it."""
    require("unshare", "mount")
    path = tmp_path / "at"
    path.mkdir()
    mounts.mount("pagepool-test", path, "tmpfs")
    try:
        yield path
    finally:
        if os.path.ismount(path):
            mounts.unmount(path, mounts.MNT_DETACH)


def listed(path: Path) -> tuple[int, int]:
    """The device of the last mount at a path, as the list of mounts has it."""
    found = [line.split(" ") for line in _MOUNTINFO.read_text().splitlines()]
    major, _, minor = next(fields[2] for fields in reversed(found) if fields[4] == str(path)).partition(":")
    return int(major), int(minor)


def test_what_is_mounted_is_known_by_its_device(at: Path) -> None:
    assert mounted_device(at) == listed(at)
    mounts.mount("pagepool-test", at, "tmpfs")
    try:
        assert mounted_device(at) == listed(at)
    finally:
        mounts.unmount(at)


def test_what_is_no_mount_point_has_none(at: Path) -> None:
    inside, link = at / "inside", at.parent / "link"
    inside.mkdir()
    link.symlink_to(at)
    assert mounted_device(inside) is None
    assert mounted_device(at.parent) is None
    assert mounted_device(link) is None
    with pytest.raises(FileNotFoundError):
        mounted_device(at / "nothing")


def test_nobody_has_to_serve_it(at: Path) -> None:
    """A file system in user space whose server has not begun answers nothing: who asks it waits."""
    fuse = at / "fuse"
    fuse.mkdir()
    descriptor = mount_lazy(fuse)
    try:
        assert mounted_device(fuse) == listed(fuse)
    finally:
        mounts.unmount(fuse, mounts.MNT_DETACH)
        os.close(descriptor)


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="needs ustat(2), which this architecture may not have")
def test_a_file_system_is_gone_with_its_last_mount(at: Path) -> None:
    device = mounted_device(at)
    assert device is not None
    assert not is_gone(device)
    mounts.unmount(at)
    assert is_gone(device)


def test_a_file_system_is_there_while_another_mount_namespace_has_it(at: Path) -> None:
    device = mounted_device(at)
    assert device is not None
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo ready; read word"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin
        assert other.stdout
        assert other.stdout.readline() == "ready\n"
        mounts.unmount(at)
        assert not is_gone(device)
        other.stdin.close()
