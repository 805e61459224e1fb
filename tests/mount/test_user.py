"""A user without privileges mounts by fusermount3.

In a mount namespace of its own with its own /dev/fuse, that everybody may open: some machines let only root.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pagepool.errors import UnsupportedError
from pagepool.mount import MountOptions, device
from pagepool.mount.mountinfo import mounted_at

_NOBODY = 65534
_TIMEOUT_S = 60.0
_ROOT = Path(__file__).parents[2]

_NAMESPACE = """
set -e
mkdir "$1/dev"
mount -t tmpfs none "$1/dev"
mknod "$1/dev/fuse" c 10 229
chmod 666 "$1/dev/fuse"
mount --bind "$1/dev/fuse" /dev/fuse
shift
exec "$@"
"""

_PROGRAM = f"""
import os, sys
from pathlib import Path
from pagepool.errors import BusyError
from pagepool.mount import MountOptions, list_mounts, mount_fuse, unmount
from pagepool.mount.mountinfo import mounted_at
from tests.mount.memoryfs import MemoryFileSystem
os.setgroups([]), os.setresgid(*[{_NOBODY}] * 3), os.setresuid(*[{_NOBODY}] * 3)
point, records = Path(sys.argv[1]), Path(sys.argv[2])
options = MountOptions(source="app:1,with a comma", allow_other=False)
filesystem = MemoryFileSystem()
root = filesystem.nodes[1]
root.uid = root.gid = {_NOBODY}
with mount_fuse(filesystem, point, options=options, directory=records) as mount:
    (point / "file").write_bytes(b"by nobody")
    assert (point / "file").stat().st_uid == {_NOBODY}
    (state,) = [state for state in list_mounts(records) if state.path == point]
    assert state.source == options.source, state
    with (point / "file").open("rb"):
        try:
            mount.unmount()
        except BusyError as error:
            assert str(os.getpid()) in str(error)
        else:
            raise SystemExit("it was unmounted while in use")
    unmount(point, directory=records)
    assert mounted_at(point) is None
print("done")
"""


@pytest.mark.usefixtures("needs_fuse")
def test_mounting_as_a_user(public: Path) -> None:
    """Mounted, used, and unmounted again, without a privilege."""
    if shutil.which("fusermount3") is None:
        pytest.skip("needs fusermount3 (package fuse3)")
    point, records = public / "m", public / "records"
    for path in (point, records):
        path.mkdir()
        os.chown(path, _NOBODY, _NOBODY)
    command = [sys.executable, "-c", _PROGRAM, str(point), str(records)]
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", _NAMESPACE, "sh", str(public), *command],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=_TIMEOUT_S,
    )
    assert (done.stdout, done.returncode) == ("done\n", 0), done.stderr
    assert mounted_at(point) is None


def test_without_fusermount3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the package."""
    monkeypatch.setattr(device, "is_root", lambda: False)
    monkeypatch.setattr(device, "_HELPER", "no-such-program")
    if not device.DEVICE.exists():
        pytest.skip(f"needs {device.DEVICE}")
    with pytest.raises(UnsupportedError, match="install the package fuse3"):
        device.mount_device(tmp_path, MountOptions())


def test_what_fusermount3_says_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It begins with its own name, which is a path where it was called by one."""
    helper = tmp_path / "fusermount3"
    helper.write_text('#!/bin/sh\necho "$0: no, never" >&2\nexit 1\n')
    helper.chmod(0o755)
    monkeypatch.setattr(device, "is_root", lambda: False)
    monkeypatch.setattr(device, "_HELPER_PATH", f"{tmp_path}:{device._HELPER_PATH}")
    if not device.DEVICE.exists():
        pytest.skip(f"needs {device.DEVICE}")
    with pytest.raises(OSError, match="no, never") as refused:
        device.mount_device(tmp_path, MountOptions())
    assert refused.value.strerror == "fusermount3: no, never"


def test_without_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the kernel's module."""
    monkeypatch.setattr(device, "DEVICE", tmp_path / "fuse")
    with pytest.raises(UnsupportedError, match="module fuse"):
        device.mount_device(tmp_path, MountOptions())
