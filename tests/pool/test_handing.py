"""Descriptors for others: over a socket, through a read-only mount, and a bounded number of open objects."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pagepool.errors import CorruptError, InvalidError
from pagepool.pool import OpenObjects, Pool, ReadOnlyMount, receive_objects, send_objects
from pagepool.pool.openobjects import default_most
from tests.faults import needs_mounts
from tests.pool.helpers import PAGE, object_path, thing
from tests.support.descriptors import count_open

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.pool.helpers import Thing

# These tests fork where no other thread runs but faulthandler's, which holds no lock.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


def put(pool: Pool, *things: Thing) -> None:
    """Put objects and let go of them."""
    for one in things:
        with pool.put(one.digest, one.data) or pytest.fail("not kept"):
            pass


def mounts() -> list[str]:
    """Where file systems are mounted that have to do with these tests."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [point for point in points if ".readonly." in point]


@pytest.fixture
def mount_dir(tmp_path: Path) -> Iterator[Path]:
    """A directory for mount points; nothing is mounted there afterwards."""
    needs_mounts("ext4")
    path = tmp_path / "mounts"
    yield path
    for point in mounts():
        if point.startswith(str(path)):
            subprocess.run(["umount", "--lazy", point], check=True)
            pytest.fail(f"{point} was left mounted")


def test_objects_over_a_socket(pool: Pool) -> None:
    """What arrives is the object, open for reading, and held until the receiver lets go of it.

    No program that the receiver starts has it: it would go on holding it.
    """
    things = [thing(number, 1000 * number + 1) for number in range(5)]
    put(pool, *things)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        files = [pool.get(one.digest) or pytest.fail("not there") for one in things]
        send_objects(ours, files)
        for file in files:
            file.close()
        received = receive_objects(theirs, [one.digest for one in things], verify=True)
        assert not any(os.get_inheritable(file.fd) for file in received)
        assert [bytes(file.view) for file in received] == [one.data for one in things]
        assert pool.stats(inspect=True).held_bytes == sum(-(-one.size // PAGE) * PAGE for one in things)
        for file in received:
            file.close()
        received.clear()
        del file
        assert pool.stats(inspect=True).held_bytes == 0


def test_what_is_received_is_compared(pool: Pool) -> None:
    """Another object, another number of them, a sender that has gone: errors, and nothing stays open."""
    one, two = thing(1), thing(2)
    put(pool, one, two)
    ours, theirs = socket.socketpair()
    with ours, theirs, pool.get(one.digest) or pytest.fail("not there") as file:
        before = count_open()
        send_objects(ours, [file])
        with pytest.raises(CorruptError, match=two.digest.hex()):
            receive_objects(theirs, [two.digest], verify=True)
        send_objects(ours, [file])
        with pytest.raises(InvalidError):
            receive_objects(theirs, [one.digest, two.digest])
        for said, digests in ((2, [one.digest, two.digest]), (2, [one.digest]), (0, [one.digest])):
            socket.send_fds(ours, [bytes((said,))], [file.fd])
            with pytest.raises(InvalidError):
                receive_objects(theirs, digests)
        with pytest.raises(InvalidError):
            send_objects(ours, [])
        assert count_open() == before
        ours.close()
        with pytest.raises(EOFError):
            receive_objects(theirs, [one.digest])


def test_root_cannot_write_through_what_it_was_handed(pool: Pool, mount_dir: Path) -> None:
    """A plain read-only descriptor can be opened again for writing by root; one through the mount cannot."""
    one = thing(1)
    put(pool, one)
    with pool.get(one.digest) or pytest.fail("not there") as file:
        again = os.open(f"/proc/self/fd/{file.fd}", os.O_RDWR)
        os.close(again)
    with ReadOnlyMount(pool, mount_dir) as mounted:
        assert mounted.get(bytes(32)) is None
        file = mounted.get(one.digest) or pytest.fail("not there")
        ours, theirs = socket.socketpair()
        with ours, theirs:
            send_objects(ours, [file])
            (received,) = receive_objects(theirs, [one.digest])
        check_no_way_to_write(received.fd, one)
    # The mount is gone from the tree; the descriptor goes on, still read-only.
    assert not [point for point in mounts() if point.startswith(str(mount_dir))]
    check_no_way_to_write(received.fd, one)
    assert bytes(received.view) == one.data
    assert pool.stats(inspect=True).held_bytes == PAGE
    received.close()
    file.close()
    assert object_path(pool.path, one.digest).read_bytes() == one.data


def check_no_way_to_write(descriptor: int, one: Thing) -> None:
    """Nor to change anything else about the file."""
    name = f"/proc/self/fd/{descriptor}"
    for flags in (os.O_RDWR, os.O_WRONLY, os.O_WRONLY | os.O_TRUNC):
        with pytest.raises(OSError, match="Read-only file system"):
            os.open(name, flags)
    with pytest.raises(OSError, match="Read-only file system"):
        os.truncate(name, 0)
    with pytest.raises(OSError, match="Read-only file system"):
        os.fchmod(descriptor, 0o777)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(descriptor, b"x")
    assert os.pread(descriptor, one.size, 0) == one.data


def test_mounting_needs_root(memory_dir: Path) -> None:
    """Others get an error, and nothing is left."""
    if os.geteuid() != 0:
        pytest.skip("becoming another user needs root")
    os.chown(memory_dir, 65534, 65534)
    child = os.fork()
    if not child:
        try:
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            with Pool.open(memory_dir / "pool", budget=1 << 20) as pool:
                with pytest.raises(PermissionError):
                    ReadOnlyMount(pool, memory_dir / "mounts")
                assert list((memory_dir / "mounts").iterdir()) == []
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


def test_what_a_killed_owner_left_is_unmounted(pool: Pool, mount_dir: Path) -> None:
    """By the next one to mount there; a mount whose owner lives stays."""
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom pagepool.pool import Pool, ReadOnlyMount\n"
        "pool = Pool.open(Path(sys.argv[1]), budget=1 << 20)\n"
        "mounted = ReadOnlyMount(pool, Path(sys.argv[2]))\n"
        "print(mounted.path, flush=True)\nsys.stdin.read()\n"
    )
    arguments = [sys.executable, "-c", program, str(pool.path), str(mount_dir)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        left = process.stdout.readline().strip()
        assert left in mounts()
        with ReadOnlyMount(pool, mount_dir):
            assert left in mounts()
        process.send_signal(signal.SIGKILL)
    assert left in mounts()
    with ReadOnlyMount(pool, mount_dir) as mounted:
        assert left not in mounts()
        assert not Path(left).exists()
        assert str(mounted.path) in mounts()
    assert list(mount_dir.iterdir()) == []


def test_a_bounded_number_stays_open(pool: Pool) -> None:
    """The least recently used is closed; its views stay."""
    things = [thing(number) for number in range(6)]
    put(pool, *things)
    with OpenObjects(pool, 3) as opened:
        views = [opened.view(one.digest) for one in things]
        assert len(opened) == 3
        assert [bytes(view or b"") for view in views] == [one.data for one in things]
        assert opened.view(bytes(32)) is None
        views.clear()
        assert pool.stats(inspect=True).held_bytes == 3 * PAGE
        opened.view(things[3].digest)
        opened.view(things[0].digest)
        assert not pool.remove(bytes(32))
        for one in things:
            pool.remove(one.digest)
        # 3 was used again before 0 came, so 4 had to go.
        assert [opened.view(one.digest) is not None for one in things] == [True, False, False, True, False, True]
        again = pool.put(things[0].digest, things[0].data) or pytest.fail("not kept")
        opened.add(again)
        with pytest.raises(ValueError, match="closed"):
            _ = again.view
    assert pool.stats().retired_bytes == 0


def test_how_many_stay_open() -> None:
    """Half of what the process may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
        assert default_most() == 256
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
