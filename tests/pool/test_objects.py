"""Whole objects: put, got, shared, removed. What has a name is whole, verified, and never changes."""

from __future__ import annotations

import mmap
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from pagepool.errors import CorruptError, DigestInvalidError, InvalidError, ObjectUnknownError, StoreFormatError
from pagepool.extents import EXTENT_SIZE
from pagepool.pool import Pool, ReadOnlyPool, layout
from tests.pool.helpers import PAGE, Thing, check_account, files_below, object_path, thing
from tests.support.descriptors import count_open

if TYPE_CHECKING:
    from pathlib import Path

# These tests fork where no other thread runs but faulthandler's, which holds no lock.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


def test_what_was_put_is_got(pool: Pool) -> None:
    """An object comes back, in every way of reading it; the file is read-only, at the place its digest says."""
    one = thing(1, 3 * PAGE + 17)
    assert pool.get(one.digest) is None
    with pool.put(one.digest, one.data) or pytest.fail("not kept") as file:
        assert file.read() == one.data
        assert bytes(file.view) == one.data
        assert file.size == one.size
    with pool.get(one.digest) or pytest.fail("not there") as file:
        assert file.read(5, 10) == one.data[5:15]
        assert file.read(one.size - 3, 10) == one.data[-3:]
        assert file.read(one.size + 3, 10) == b""
        assert file.view.readonly
        assert bytes(file.view[PAGE : 2 * PAGE]) == one.data[PAGE : 2 * PAGE]
        assert file.read(5, 10) == one.data[5:15]
        assert os.pread(file.fd, one.size, 0) == one.data
    path = object_path(pool.path, one.digest)
    assert path.read_bytes() == one.data
    assert stat.S_IMODE(path.stat().st_mode) == 0o444
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755
    check_account(pool.path, pool.stats())


def test_an_object_of_no_bytes(pool: Pool) -> None:
    """Nobody needs it, and it is no special case to anyone."""
    empty = Thing(b"")
    with pool.put(empty.digest, b"") or pytest.fail("not kept") as file:
        assert bytes(file.view) == b"" == file.read()
    check_account(pool.path, pool.stats())


def test_wrong_bytes_are_not_taken(pool: Pool) -> None:
    """The error names the object, and nothing is left of it."""
    one = thing(1)
    with pytest.raises(CorruptError, match=one.digest.hex()):
        pool.put(one.digest, one.data[:-1] + b"x")
    assert pool.get(one.digest) is None
    assert not files_below(pool.path / "objects")
    assert not files_below(pool.path / "tmp")
    with pytest.raises(DigestInvalidError):
        pool.get(b"")


def test_the_same_object_twice_is_one_file(pool: Pool) -> None:
    """Also when it is put again: the file stays the same one."""
    one = thing(1)
    for _ in range(2):
        with pool.put(one.digest, memoryview(one.data)) or pytest.fail("not kept"):
            inode = object_path(pool.path, one.digest).stat().st_ino
    assert object_path(pool.path, one.digest).stat().st_ino == inode
    assert pool.stats().objects == 1
    check_account(pool.path, pool.stats())


def test_views_outlive_close_and_removal(pool: Pool) -> None:
    """Unlinking an object hurts neither its openers nor their mappings."""
    one = thing(1, 1 << 20)
    file = pool.put(one.digest, one.data)
    other = pool.get(one.digest)
    assert file is not None
    assert other is not None
    view, descriptor = file.view, os.dup(other.fd)
    file.close()
    other.close()
    file.close()
    with pytest.raises(ValueError, match="closed"):
        _ = file.view
    assert pool.remove(one.digest)
    assert not pool.remove(one.digest)
    assert pool.get(one.digest) is None
    assert bytes(view) == one.data
    assert os.pread(descriptor, one.size, 0) == one.data
    os.close(descriptor)
    stats = pool.stats()
    assert (stats.objects, stats.retired_bytes, stats.used) == (0, 1 << 20, 1 << 20)
    del view
    assert pool.stats().used == 0
    assert not files_below(pool.path / "retired")


def test_a_descriptor_after_mapping(pool: Pool) -> None:
    """It is opened anew; of a removed object there is none any more."""
    one = thing(1)
    with pool.put(one.digest, one.data) or pytest.fail("not kept") as file:
        assert bytes(file.view) == one.data
        assert os.pread(file.fd, one.size, 0) == one.data
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(file.fd, b"x")
    with pool.get(one.digest) or pytest.fail("not there") as file:
        assert bytes(file.view) == one.data
        pool.remove(one.digest)
        with pytest.raises(ObjectUnknownError, match=one.digest.hex()):
            _ = file.fd


def test_an_open_object_takes_one_descriptor(pool: Pool) -> None:
    """Whether it is mapped or not."""
    one = thing(1)
    with pool.put(one.digest, one.data) or pytest.fail("not kept"):
        pass
    before = count_open()
    files = [pool.get(one.digest) or pytest.fail("not there") for _ in range(10)]
    assert count_open() == before + 10
    assert all(bytes(file.view) == one.data for file in files)
    assert count_open() == before + 10
    for file in files:
        file.close()
    files.clear()
    assert count_open() == before


def test_processes_share_pages(pool: Pool) -> None:
    """Another process that maps the object has the very same pages: the kernel says so."""
    one = thing(1, 4 << 20)
    with pool.put(one.digest, one.data) or pytest.fail("not kept"):
        pass
    program = (
        "import sys\nfrom pathlib import Path\nfrom pagepool.pool import Pool\n"
        "pool = Pool.open(Path(sys.argv[1]), budget=int(sys.argv[2]))\n"
        "file = pool.get(bytes.fromhex(sys.argv[3]))\n"
        "assert sum(file.view) == int(sys.argv[4])\n"
        "print(open('/proc/self/smaps').read(), flush=True)\nsys.stdin.read()\n"
    )
    arguments = [str(pool.path), str(pool.budget), one.digest.hex(), str(sum(one.data))]
    with pool.get(one.digest) or pytest.fail("not there") as file:
        assert sum(file.view) == sum(one.data)  # all of it is mapped here before the other one looks
        with subprocess.Popen(
            [sys.executable, "-c", program, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            output, _ = process.communicate()
    assert process.returncode == 0
    block = output[output.index(one.digest.hex()[2:]) :]
    fields = dict(line.split(":", 1) for line in block.splitlines()[1:20] if ":" in line)
    assert int(fields["Rss"].split()[0]) == 4096
    assert int(fields["Pss"].split()[0]) == 2048
    assert int(fields["Shared_Clean"].split()[0]) + int(fields["Shared_Dirty"].split()[0]) == 4096


def test_threads_put_and_get_at_once(pool: Pool) -> None:
    """The same objects, from several threads: every one is right, and the account is exact."""
    things = [thing(number, 1 + number * 777) for number in range(40)]

    def run(start: int) -> None:
        for one in things[start:] + things[:start]:
            with pool.put(one.digest, one.data) or pytest.fail("not kept") as file:
                assert bytes(file.view) == one.data

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(run, (0, 0, 10, 20)))
    assert pool.stats().objects == len(things)
    check_account(pool.path, pool.stats())


def test_a_forked_child_uses_the_pool(pool: Pool) -> None:
    """It has a lock of its own; parent and child exclude each other."""
    things = [thing(number) for number in range(200)]
    child = os.fork()
    if not child:
        try:
            for one in things:
                with pool.put(one.digest, one.data) or pytest.fail("not kept"):
                    pass
            os._exit(0)
        finally:
            os._exit(1)
    for one in reversed(things):
        with pool.put(one.digest, one.data) or pytest.fail("not kept"):
            pass
    assert os.waitpid(child, 0)[1] == 0
    check_account(pool.path, pool.stats())


def test_several_make_a_pool_at_once(place: Path) -> None:
    """Processes that find no pool and begin to make it: one pool comes of it, and all use it."""
    children = []
    for number in range(4):
        child = os.fork()
        if not child:
            try:
                with Pool.open(place, budget=1 << 20) as pool:
                    for one in (thing(number), thing(100)):
                        with pool.put(one.digest, one.data) or pytest.fail("not kept"):
                            pass
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    with Pool.open(place, budget=1 << 20) as pool:
        assert pool.stats().objects == 5
        check_account(place, pool.stats())


def test_a_pool_that_another_process_makes_meanwhile(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is made, and used, between the look for a pool and the look at what else is there."""
    original, made = layout.names_in, list[str]()

    def names_in(path: Path) -> list[str]:
        if path == place and not made:
            made.append("")
            with Pool.open(path, budget=1 << 20) as other:
                made[0] = other.id
        return original(path)

    monkeypatch.setattr(layout, "names_in", names_in)
    with Pool.open(place, budget=1 << 20) as pool:
        assert [pool.id] == made


def test_hits_and_misses_are_counted(pool: Pool) -> None:
    """For all processes together; those of others are seen when they have told them."""
    one = thing(1)
    with pool.put(one.digest, one.data) or pytest.fail("not kept"):
        pass
    with Pool.open(pool.path, budget=pool.budget) as other:
        for _ in range(100):
            with other.get(one.digest) or pytest.fail("not there"):
                pass
        assert other.get(bytes(32)) is None
    pool.get(bytes(32))
    stats = pool.stats(inspect=True)
    assert (stats.hits, stats.misses) == (100, 2)
    assert stats.resident_bytes == PAGE
    assert stats.held_bytes == 0
    with pool.get(one.digest) or pytest.fail("not there"):
        assert pool.stats(inspect=True).held_bytes == PAGE


def test_a_pool_has_an_identity(place: Path) -> None:
    """It is made once; another directory is another pool; the last budget counts for all."""
    with Pool.open(place, budget=1 << 20) as one, Pool.open(place, budget=2 << 20) as two:
        assert one.id == two.id
        assert len(one.id) == 32
        assert one.budget == two.budget == 2 << 20
    with Pool.open(place, budget=None, initial=5 << 20) as again:
        assert again.budget == 2 << 20
    with Pool.open(place.with_name("new"), budget=None, initial=5 << 20) as new:
        assert new.budget == 5 << 20
    with Pool.open(place.with_name("other"), budget=1 << 20) as other:
        assert other.id != one.id


def test_another_format_is_refused(place: Path) -> None:
    """A pool of another version, a damaged one, and a directory that is something else."""
    with Pool.open(place, budget=1 << 20):
        pass
    text = (place / "format").read_text()
    (place / "format").write_text(text.replace("version 1", "version 2"))
    with pytest.raises(StoreFormatError, match="version 2"):
        Pool.open(place, budget=1 << 20)
    (place / "format").write_text(text.replace("id ", "id x"))
    with pytest.raises(StoreFormatError, match="damaged"):
        Pool.open(place, budget=1 << 20)
    (place / "format").write_text("something else\n")
    with pytest.raises(StoreFormatError, match="not a pool"):
        Pool.open(place, budget=1 << 20)
    foreign = place.with_name("foreign")
    foreign.mkdir()
    (foreign / "letter.txt").write_text("dear")
    with pytest.raises(StoreFormatError, match=r"letter\.txt"):
        Pool.open(foreign, budget=1 << 20)
    assert [path.name for path in foreign.iterdir()] == ["letter.txt"]
    with pytest.raises(InvalidError, match="budget"):
        Pool.open(place, budget=-1)


def test_a_pool_is_emptied(pool: Pool) -> None:
    """Of whole objects, and of what nobody is filling; what is open goes on being read, and counted."""
    one, large, other = thing(1), thing(2, 300_000), thing(3, 300_000)
    with pool.put(one.digest, one.data) or pytest.fail("not kept") as file:
        with pool.partial(large.digest, large.size, large.extents) as partial:
            partial.write(0, large.parts[0])
        with pool.partial(other.digest, other.size, other.extents) as partial:
            partial.write(0, other.parts[0])
            pool.clear()
            assert not list(pool.digests())
            assert bytes(partial.view(0, 10)) == other.data[:10]
            found = pool.stats()
            assert (found.objects, found.partials, found.partial_bytes) == (0, 1, EXTENT_SIZE)
        assert bytes(file.view) == one.data
    pool.clear()
    assert pool.stats().partials == 0
    with pool.partial(large.digest, large.size, large.extents) as partial:
        assert partial.missing(0, 3) == [0, 1, 2]


def test_another_user_reads_and_nothing_else(memory_dir: Path) -> None:
    """Objects are open to all; writing, and the rest of the directory, are not."""
    if os.geteuid() != 0:
        pytest.skip("becoming another user needs root")
    one = thing(1)
    memory_dir.chmod(0o755)
    with Pool.open(memory_dir / "pool", budget=1 << 20) as pool:
        with pool.put(one.digest, one.data) or pytest.fail("not kept"):
            pass
        child = os.fork()
        if not child:
            try:
                os.setresgid(65534, 65534, 65534)
                os.setresuid(65534, 65534, 65534)
                with Pool.attach(pool.path, pool.id) as reader, reader.get(one.digest) or pytest.fail("none") as file:
                    assert bytes(file.view) == one.data
                for name in ("lock", "state", "log", "partial", "tmp", "retired"):
                    assert not os.access(pool.path / name, os.R_OK)
                assert not os.access(object_path(pool.path, one.digest), os.W_OK)
                assert not os.access(pool.path / "objects", os.W_OK)
                with pytest.raises(PermissionError):
                    Pool.open(pool.path, budget=1)
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0


def test_a_pool_that_another_user_made_is_refused(memory_dir: Path) -> None:
    """Whoever was first in a directory that all may write to could have put anything under any name."""
    if os.geteuid() != 0:
        pytest.skip("becoming another user needs root")
    memory_dir.chmod(0o1777)
    one, path = thing(1), memory_dir / "pool"
    child = os.fork()
    if not child:
        try:
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            with Pool.open(path, budget=1 << 20) as pool, pool.put(one.digest, one.data) or pytest.fail("not kept"):
                pass
            object_path(path, one.digest).chmod(0o600)
            object_path(path, one.digest).write_bytes(b"something else")
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    with pytest.raises(PermissionError, match="belongs to user 65534"):
        Pool.open(path, budget=1 << 20)


def test_readers_attach(pool: Pool) -> None:
    """Others see objects and write nothing; the pool must be the one that they were told of."""
    one = thing(1, 100_000)
    with pool.put(one.digest, one.data) or pytest.fail("not kept"):
        pass
    before = {path: path.stat().st_mtime_ns for path in files_below(pool.path)}
    with Pool.attach(pool.path, pool.id) as reader:
        assert isinstance(reader, ReadOnlyPool)
        assert (reader.id, reader.path) == (pool.id, pool.path)
        assert reader.get(bytes(32)) is None
        with reader.get(one.digest) or pytest.fail("not there") as file:
            assert bytes(file.view) == one.data
            with pytest.raises(TypeError):
                file.view[0] = 1
            with pytest.raises((PermissionError, OSError)):
                mmap.mmap(file.fd, 4096)
    assert {path: path.stat().st_mtime_ns for path in files_below(pool.path)} == before
    with pytest.raises(StoreFormatError, match="not 0000"):
        Pool.attach(pool.path, "0" * 32)
    with pytest.raises(StoreFormatError, match="not a pool"):
        Pool.attach(pool.path / "objects", pool.id)


def test_a_closed_pool_says_so(pool: Pool) -> None:
    """Every time: a use that failed must not leave a lock for the next one to wait for."""
    one = thing(1)
    pool.close()
    pool.close()
    for _ in range(2):
        with pytest.raises(ValueError, match=f"the pool at {pool.path} is closed"):
            pool.stats()
        with pytest.raises(ValueError, match=f"the pool at {pool.path} is closed"):
            pool.remove(one.digest)
