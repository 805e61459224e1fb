"""Damage at rest is found, loses its name, is reported and repaired; what is cold stays cold."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pagepool import linux
from pagepool.errors import BusyError
from pagepool.pool import Pool, Scrubber, residency, resident, verity
from tests.faults import needs_mounts, small_file_system
from tests.pool.helpers import PAGE, check_account, object_path, thing

if TYPE_CHECKING:
    from tests.pool.helpers import Thing


def put(pool: Pool, *things: Thing) -> None:
    """Put objects and let go of them."""
    for one in things:
        with pool.put(one.digest, one.data) or pytest.fail("not kept"):
            pass


def flip(path: Path, at: int) -> None:
    """Change one byte of a read-only file."""
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes((byte ^ 1,)))
    path.chmod(0o444)


def test_damage_is_found_and_repaired(pool: Pool) -> None:
    """The damaged object loses its name before the repair, which brings it back."""
    things = {one.digest: one for one in (thing(number, 5000 + number) for number in range(20))}
    put(pool, *things.values())
    bad = sorted(things)[7]
    flip(object_path(pool.path, bad), 4999)
    asked: list[tuple[bytes, object]] = []

    def repair(digest: bytes) -> bool:
        asked.append((digest, pool.get(digest)))
        put(pool, things[digest])
        return True

    report = Scrubber(pool, repair).run()
    assert asked == [(bad, None)]
    assert (report.objects, report.finished) == (20, True)
    assert report.bytes == sum(one.size for one in things.values())
    ((digest, reason, repaired),) = [(d.digest, d.reason, d.repaired) for d in report.damaged]
    assert (digest, repaired) == (bad, True)
    assert "its bytes are" in reason
    with pool.get(bad) or pytest.fail("not repaired") as file:
        assert bytes(file.view) == things[bad].data
    assert Scrubber(pool).run().damaged == ()
    flip(object_path(pool.path, bad), 0)
    assert [damage.repaired for damage in Scrubber(pool).run().damaged] == [False]
    assert pool.get(bad) is None
    check_account(pool.path, pool.stats())


def test_a_run_goes_on_where_the_last_one_stopped(pool: Pool) -> None:
    """Another process may do it; at the end it begins anew."""
    things = [thing(number) for number in range(10)]
    put(pool, *things)
    counts = []
    for _ in range(4):
        with Pool.open(pool.path, budget=pool.budget) as other:
            report = Scrubber(other).run(3)
            counts.append((report.objects, report.finished))
    assert counts == [(3, False), (3, False), (3, False), (1, True)]
    flip(object_path(pool.path, max(one.digest for one in things)), 0)
    assert Scrubber(pool).run(9).damaged == ()
    assert len(Scrubber(pool).run(9).damaged) == 1


def test_the_rate_is_bounded_and_a_run_can_be_stopped(pool: Pool) -> None:
    """It asks to wait for what it is ahead of its rate; being told to stop, it remembers where it was."""
    put(pool, *(thing(number, 1 << 20) for number in range(3)))
    waits: list[float] = []

    def note(seconds: float) -> bool:
        waits.append(seconds)
        return False

    report = Scrubber(pool, rate=1000, wait=note).run()
    assert report.finished
    assert waits[-1] > 0.9 * (3 << 20) / 1000
    stopped = Scrubber(pool, wait=lambda _: True).run()
    assert (stopped.objects, stopped.finished, stopped.damaged) == (0, False, ())


def test_one_process_at_a_time(pool: Pool) -> None:
    """A second one is told so."""
    with (pool.path / "scrub.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(BusyError, match="scrubbed"):
            Scrubber(pool).run()
    assert Scrubber(pool).run().finished


def test_cold_pages_stay_cold() -> None:
    """What was not in memory is not afterwards; what was, is."""
    cold, warm = thing(1, 3 << 20), thing(2, 3 << 20)
    with (
        tempfile.TemporaryDirectory(dir="/var/tmp") as place,  # on a disk, where /tmp may be in memory
        Pool.open(Path(place) / "pool", budget=16 << 20, durable=True) as pool,
    ):
        put(pool, cold, warm)
        pool.sync()
        files = [pool.get(one.digest) or pytest.fail("not there") for one in (cold, warm)]
        os.posix_fadvise(files[0].fd, 0, 0, os.POSIX_FADV_DONTNEED)
        before = [resident(file.fd) for file in files]
        assert before[0] == 0
        assert 3 << 20 <= before[1] < 4 << 20  # some kernels have pages behind the end, too
        assert Scrubber(pool).run().bytes == 6 << 20
        after = [resident(file.fd) for file in files]
        assert after[0] == 0
        assert 3 << 20 <= after[1] < 4 << 20
        assert pool.stats(inspect=True).resident_bytes == after[1]
        for file in files:
            file.close()


def test_residency_by_either_call(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """cachestat and mincore agree, of a whole file and of a part."""
    one = thing(1, 10 * PAGE + 1)
    with pool.put(one.digest, one.data) or pytest.fail("not kept") as file:
        answers = []
        for new in (residency.has_cachestat(), False):
            monkeypatch.setattr(residency, "has_cachestat", lambda new=new: new)
            answers.append([resident(file.fd), resident(file.fd, 4 * PAGE, 2 * PAGE), resident(file.fd, 11 * PAGE)])
        assert answers[0] == answers[1] == [11 * PAGE, 2 * PAGE, 0]


def test_residency_on_an_overlay(memory_dir: Path) -> None:
    """As in most containers: the pages are those of the file below."""
    needs_mounts("ext4")
    lower, upper, work, merged = (memory_dir / name for name in ("lower", "upper", "work", "merged"))
    for directory in (lower, upper, work, merged):
        directory.mkdir()
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    made = subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", str(merged)], check=False)
    if made.returncode:
        pytest.skip("overlays cannot be mounted here")
    try:
        one = thing(1, 10 * PAGE)
        with Pool.open(merged / "pool", budget=1 << 20) as pool:
            with pool.put(one.digest, one.data) or pytest.fail("not kept") as file:
                assert resident(file.fd) == 10 * PAGE
            assert pool.stats(inspect=True).resident_bytes == 10 * PAGE
            assert pool.stats(inspect=True).held_bytes == 0
    finally:
        subprocess.run(["umount", str(merged)], check=True)


def test_a_pool_says_what_protects_it(memory_dir: Path, tmp_path: Path) -> None:
    """In memory nothing has to; a plain file system has only the scrub."""
    with Pool.open(memory_dir / "pool", budget=1 << 20) as pool:
        assert pool.stats().protection == "memory"
    with small_file_system(tmp_path, 16 << 20) as target, Pool.open(target / "pool", budget=1 << 20) as pool:
        assert pool.protection == "scrub"
        one = thing(1)
        with pool.put(one.digest, one.data) or pytest.fail("not kept") as file:
            assert not verity.seal(file.fd)
            assert not verity.is_sealed(file.fd)


def test_sealed_objects(tmp_path: Path) -> None:
    """With fs-verity an object cannot be changed, and wrong bytes on the disk are an error."""
    needs_mounts("ext4")
    if not Path("/sys/fs/ext4/features/verity").exists():
        pytest.skip("this kernel has no fs-verity")
    image = tmp_path / "verity.img"
    image.write_bytes(b"")
    os.truncate(image, 32 << 20)
    mkfs = shutil.which("mkfs.ext4", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin") or "mkfs.ext4"
    subprocess.run([mkfs, "-q", "-F", "-O", "verity", "-b", "4096", str(image)], check=True)
    one = thing(1, 100_000)
    with small_file_system(tmp_path, 0, image=image) as target, Pool.open(target / "pool", budget=1 << 20) as pool:
        assert pool.protection == "fs-verity"
        with pool.put(one.digest, one.data) or pytest.fail("not kept") as file:
            assert verity.is_sealed(file.fd)
            assert bytes(file.view) == one.data
        path = object_path(pool.path, one.digest)
        path.chmod(0o644)
        with pytest.raises(PermissionError):
            path.open("r+b")
        check_account(pool.path, pool.stats())


def test_the_boot_has_an_id() -> None:
    """Sixteen bytes, the same ones each time."""
    assert len(linux.boot_id()) == 16
    assert linux.boot_id() == linux.boot_id()
