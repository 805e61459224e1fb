"""A pool handed out as a read-only mount: nobody can write through it, and nothing is left of it."""

from __future__ import annotations

import errno
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import closing
from pathlib import Path

import pytest

from pagepool.digest import blake3_raw
from pagepool.errors import DeniedError
from pagepool.pool import Pool
from pagepool.pool.door import Door, door_path, knock
from tests.support.descriptors import count_open

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: cloning a mount")

DATA = b"an object" * 1000
NAME = blake3_raw(DATA)


@pytest.fixture
def pool_path(tmp_path: Path) -> Path:
    with Pool.open(tmp_path / "pool", budget=1 << 20) as pool:
        file = pool.put(NAME, DATA)
        assert file is not None
        file.close()
    return tmp_path / "pool"


def test_root_cannot_write_through_it(pool_path: Path) -> None:
    with closing(Door(pool_path)) as door:
        threading.Thread(target=door.serve, daemon=True).start()
        descriptor = knock(pool_path)
        assert not os.get_inheritable(descriptor)
        try:
            with Pool.open(pool_path, budget=1 << 20) as owner:
                attached = Pool.attach(Path(f"/proc/self/fd/{descriptor}"), owner.id)
            with attached, closing(attached.get(NAME) or pytest.fail("it is there")) as file:
                for path in (f"/proc/self/fd/{file.fd}", f"/proc/self/fd/{descriptor}/objects/{NAME.hex()[:2]}/x"):
                    with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno says it
                        os.open(path, os.O_RDWR | os.O_CREAT)
                    assert caught.value.errno == errno.EROFS
                assert file.view == DATA
        finally:
            os.close(descriptor)
    assert not door_path(pool_path).exists()


def test_a_door_that_somebody_else_made_is_not_trusted(pool_path: Path) -> None:
    """In a directory that all may write to, anybody can make a socket of that name where there is none."""
    with socket.socket(socket.AF_UNIX) as listener:
        os.seteuid(65534)  # the kernel notes who begins to listen
        try:
            with tempfile.TemporaryDirectory() as elsewhere:
                listener.bind(f"{elsewhere}/door")
                listener.listen()
                os.seteuid(0)
                Path(elsewhere, "door").rename(door_path(pool_path))
                with pytest.raises(DeniedError, match="whose pool it is"):
                    knock(pool_path)
        finally:
            os.seteuid(0)


@pytest.mark.parametrize("what", ["a file", "nothing"])
def test_a_door_that_hands_out_no_directory_is_not_taken(pool_path: Path, what: str) -> None:
    """And what came is closed."""
    with socket.socket(socket.AF_UNIX) as listener, (pool_path / "file").open("wb") as file:
        listener.bind(os.fsencode(door_path(pool_path)))
        listener.listen()
        before = count_open()

        def answer() -> None:
            with listener.accept()[0] as connection:
                socket.send_fds(connection, [b"."], [file.fileno()] if what == "a file" else [])

        server = threading.Thread(target=answer)
        server.start()
        with pytest.raises(DeniedError, match="no directory"):
            knock(pool_path)
        server.join()
        assert count_open() == before


def test_what_was_handed_out_outlives_its_owner(pool_path: Path) -> None:
    """The owner is killed: no mount is left, what was opened goes on, and the next owner opens the door again."""
    program = (
        "import sys; from pathlib import Path; from pagepool.pool.door import Door\n"
        "door = Door(Path(sys.argv[1])); print('open', flush=True); door.serve()"
    )
    command = [sys.executable, "-c", program, str(pool_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "open\n"
        descriptor = knock(pool_path)
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    try:
        # Not the whole of it: other mounts of the machine come and go meanwhile.
        assert "/".join(pool_path.parts[-3:]) not in Path("/proc/self/mountinfo").read_text()
        with pytest.raises(ConnectionRefusedError):
            knock(pool_path)
        name = NAME.hex()
        assert Path(f"/proc/self/fd/{descriptor}/objects/{name[:2]}/{name[2:]}").read_bytes() == DATA
        with closing(Door(pool_path)) as door:
            threading.Thread(target=door.serve, daemon=True).start()
            os.close(knock(pool_path))
    finally:
        os.close(descriptor)


def test_a_door_stays_open_though_no_file_may_be(pool_path: Path) -> None:
    """Whoever knocks meanwhile waits until its owner may open files again."""
    program = (
        "import sys; from pathlib import Path; from pagepool.pool.door import Door\n"
        "door = Door(Path(sys.argv[1])); print('open', flush=True); door.serve()"
    )
    command = [sys.executable, "-c", program, str(pool_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stderr is not None
        assert owner.stdout.readline() == "open\n"
        _, most = limits = resource.prlimit(owner.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(owner.pid, resource.RLIMIT_NOFILE, (0, most))
        with socket.socket(socket.AF_UNIX) as knocking:
            knocking.connect(os.fsencode(door_path(pool_path)))
            assert "has to wait: [Errno 24]" in owner.stderr.readline()
            resource.prlimit(owner.pid, resource.RLIMIT_NOFILE, limits)
            os.close(knock(pool_path))
        owner.kill()


def test_there_is_no_door(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        knock(tmp_path / "pool")
