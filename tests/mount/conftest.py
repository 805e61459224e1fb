"""Mount points that are free again afterwards, and what a machine needs for them."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pagepool.mount import Mount, MountOptions, MountRecord, mount_fuse
from pagepool.mount.device import DEVICE, unmount_device
from pagepool.mount.mountinfo import mounted_at
from pagepool.vfs import FileSystem

Mounting = Callable[..., Mount]


@pytest.fixture(scope="session")
def needs_fuse() -> None:
    """Skip where nothing can be mounted by this process itself."""
    if os.geteuid():
        pytest.skip("mounting needs root")
    try:
        os.close(os.open(DEVICE, os.O_RDWR))
    except OSError as error:
        pytest.skip(f"mounting needs {DEVICE}: {error.strerror}")


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory where other users may go, too. Its path is short, as those of sockets must be."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory)
        path.chmod(0o755)
        yield path


@pytest.fixture
def point(request: pytest.FixtureRequest, public: Path) -> Iterator[Path]:
    """A directory to mount upon. Whatever is left there is unmounted."""
    request.getfixturevalue("needs_fuse")
    path = public / "m"
    path.mkdir(mode=0o755)
    yield path
    while mounted_at(path) is not None:
        unmount_device(path, detach=True, abort=True)


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """Where records of mounts are kept."""
    return tmp_path / "records"


@pytest.fixture
def mounting(point: Path, records: Path) -> Iterator[Mounting]:
    """Mounts a file system for the time of a test, served by this process."""
    with ExitStack() as stack:

        def mount(filesystem: FileSystem, *, read_only: bool = False) -> Mount:
            stack.enter_context(contextlib.closing(filesystem))
            options = MountOptions(read_only=read_only, dev=True)
            return stack.enter_context(mount_fuse(filesystem, point, options=options, directory=records))

        yield mount


def kill(record: MountRecord) -> None:
    """Kill the process that serves a mount, and wait until it is gone."""
    descriptor = os.pidfd_open(record.pid)
    try:
        os.kill(record.pid, signal.SIGKILL)
        assert select.select([descriptor], [], [], 60.0)[0]
    finally:
        os.close(descriptor)
