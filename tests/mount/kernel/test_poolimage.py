"""A file system in a file, with reflinks and quotas; copy-up on it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pagepool.errors import BusyError, InvalidError, StoreFullError, UnsupportedError
from pagepool.linux import can_reflink, mounts, quota
from pagepool.linux.quota import project_of, quota_usage, set_quota
from pagepool.mount.kernel import PoolImage, poolimage, probe
from pagepool.mount.kernel.loop import loop_files
from pagepool.mount.mountinfo import mounted_at
from tests.support.kernelmounts import KernelImage, wait_detached
from tests.support.trees import TreeBuilder

SIZE = 1 << 30
_LARGE = 256 << 20


@pytest.fixture
def pool(place: Path) -> Path:
    """An XFS of ours, mounted."""
    if shutil.which("mkfs.xfs") is None:
        pytest.skip("mkfs.xfs (xfsprogs) is not installed")
    at = place / "pool"
    at.mkdir()
    PoolImage.create(place / "pool.img", SIZE, sparse=True).mount(at)
    return at


def _used(path: Path) -> int:
    """Bytes in use on a file system."""
    os.sync()
    found = os.statvfs(path)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def test_a_pool_image(place: Path, pool: Path) -> None:
    """It has reflinks and quotas, its loop device does direct I/O, and goes with the mount."""
    image = PoolImage(place / "pool.img")
    found = probe(pool)
    assert (found.kernel, found.reflink) == (True, True)
    assert can_reflink(pool)
    (device,) = (device for device, file in loop_files().items() if file == image.file)
    assert Path(f"/sys/block/{device.name}/loop/dio").read_text().strip() == "1"
    assert image.is_mounted(pool)
    image.mount(pool)
    other = place / "other"
    other.mkdir()
    with pytest.raises(BusyError, match="in use"):
        image.mount(other)
    (pool / "file").write_bytes(b"kept")
    image.unmount(pool)
    assert not image.is_mounted(pool)
    wait_detached(image.file)
    image.mount(pool)
    assert (pool / "file").read_bytes() == b"kept"


def test_making_one(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be made leaves nothing; what is there is not replaced."""
    file = place / "pool.img"
    with pytest.raises(InvalidError, match="at least"):
        PoolImage.create(file, 1 << 20)
    with pytest.raises(StoreFullError):
        PoolImage.create(file, 1 << 43)
    with monkeypatch.context() as patched:
        patched.setattr(poolimage, "_PATH", "/nowhere")
        with pytest.raises(UnsupportedError, match="xfsprogs"):
            PoolImage.create(file, SIZE)
    with monkeypatch.context() as patched:
        patched.setattr(poolimage, "_MKFS", "false")
        with pytest.raises(OSError, match="false"):
            PoolImage.create(file, SIZE, sparse=True)
    assert list(place.iterdir()) == []
    file.write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        PoolImage.create(file, SIZE, sparse=True)
    assert file.read_bytes() == b"mine"
    at = place / "at"
    at.mkdir()
    with pytest.raises(OSError, match="xfs"):
        PoolImage(file).mount(at)
    assert mounted_at(at) is None
    assert file not in loop_files().values()


def test_copy_up_copies_nothing(place: Path, pool: Path) -> None:
    """A page written into a large file of the image takes a few blocks, not the file."""
    builder = TreeBuilder()
    builder.file("large", os.urandom(1 << 20) * (_LARGE >> 20))
    image = KernelImage(place, builder, pool)
    container = image.container(place=pool)
    with container.mounted() as at:
        before = _used(pool)
        with (at / "large").open("r+b") as file:
            file.seek(128 << 20)
            file.write(b"x" * 4096)
        grown = _used(pool) - before
        assert grown < 2 << 20, f"{grown} bytes"
        assert (at / "large").read_bytes() == _changed(builder)
    assert (container.upper / "large").stat().st_size == _LARGE
    assert _used(pool) - before < 2 << 20


def _changed(builder: TreeBuilder) -> bytes:
    (data,) = builder.objects.values()
    return data[: 128 << 20] + b"x" * 4096 + data[(128 << 20) + 4096 :]


def _skip_without_quota(place: Path) -> None:
    if not probe(place).quota:
        pytest.skip("this kernel has no project quotas (CONFIG_XFS_QUOTA, CONFIG_QFMT_V2)")


def test_a_quota_without_a_kernel_for_it(pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked of the kernel, and that files get their project, where this one has no quotas."""
    asked: list[tuple[int, int, int, int]] = []

    def answer(descriptor: int, command: int, project: int, found: Any) -> None:
        asked.append((os.fstat(descriptor).st_ino, command, project, found.block_hard))
        if command == 0x800007:
            found.block_hard, found.space, found.inodes = 9, 4096, 2

    monkeypatch.setattr(quota, "_control", answer)
    directory = pool / "container"
    (directory / "upper" / "deep").mkdir(parents=True)
    (directory / "upper" / "deep" / "file").touch()
    (directory / "upper" / "link").symlink_to("deep")
    os.mkfifo(directory / "upper" / "fifo")
    set_quota(directory, (8 << 10) + 1, 70_000)
    assert quota_usage(directory, 70_000) == (4096, 9 << 10, 2)
    ino = directory.stat().st_ino
    assert asked == [(ino, 0x800008, 70_000, 9), (ino, 0x800007, 70_000, 0)]
    assert {project_of(path) for path in (directory, directory / "upper", directory / "upper/deep")} == {70_000}
    (directory / "work").mkdir()
    assert project_of(directory / "work") == 70_000
    (directory / "upper/deep/file").rename(directory / "work/file")
    assert project_of(pool) == 0


def _write_unprivileged(path: Path, megabytes: int) -> str:
    """Write a file without CAP_SYS_RESOURCE, as containers have none: ext4 holds nobody to a quota who has it."""
    command = ["setpriv", "--bounding-set", "-sys_resource", "--inh-caps", "-sys_resource"]
    command += ["dd", "if=/dev/zero", f"of={path}", "bs=1M", f"count={megabytes}"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=os.environ | {"LC_ALL": "C"})
    return done.stderr if done.returncode else ""


def _check_quota(place: Path) -> None:
    """Whether a container's files are limited, those of others not."""
    _skip_without_quota(place)
    directory = place / "container"
    (directory / "upper").mkdir(parents=True)
    (directory / "upper" / "old").write_bytes(bytes(100_000))
    set_quota(directory, 4 << 20, 17)
    assert project_of(directory) == project_of(directory / "upper") == 17
    (directory / "work").mkdir()
    assert project_of(directory / "work") == 17
    os.sync()
    found = quota_usage(directory, 17)
    assert found.limit == 4 << 20
    assert 100_000 <= found.used < 200_000
    assert found.files == 4
    (directory / "upper" / "new").write_bytes(bytes(1 << 20))
    assert re.search(r"[Qq]uota|space", _write_unprivileged(directory / "work" / "new", 8))
    (directory / "work" / "new").rename(directory / "upper" / "moved")
    (place / "other").write_bytes(bytes(8 << 20))
    set_quota(directory, 0, 17)
    assert quota_usage(directory, 17).limit == 0
    (directory / "upper" / "moved").write_bytes(bytes(8 << 20))


@pytest.mark.usefixtures("place")
def test_quota_on_xfs(pool: Path) -> None:
    """A pool image has it."""
    _check_quota(pool)


def test_quota_on_ext4(place: Path) -> None:
    """So has an ext4 that was made for it."""
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("mkfs.ext4 (e2fsprogs) is not installed")
    file, at = place / "ext4.img", place / "ext4"
    at.mkdir()
    with file.open("wb") as new:
        new.truncate(128 << 20)
    command = ["mkfs.ext4", "-q", "-O", "quota,project", "-E", "quotatype=prjquota", str(file)]
    subprocess.run(command, check=True, capture_output=True)
    if subprocess.run(["mount", "-o", "loop,prjquota", str(file), str(at)], check=False).returncode:
        pytest.skip("this kernel has no project quotas (CONFIG_QFMT_V2)")
    _check_quota(at)


def test_no_quota(place: Path) -> None:
    """Where there is none, that is said, and nothing is changed."""
    memory = place / "memory"
    memory.mkdir()
    mounts.mount("tmpfs", memory, "tmpfs", 0)
    with pytest.raises(UnsupportedError, match="no project quotas"):
        set_quota(memory, 1 << 20, 17)
    with pytest.raises(UnsupportedError, match="no project quotas"):
        quota_usage(memory, 17)
    assert project_of(memory) == 0


def test_a_quota_of_a_container(place: Path, pool: Path) -> None:
    """Programs in the container are told that the disk is full; copy-up and renames work within it."""
    builder = TreeBuilder()
    builder.file("d/file", bytes(range(256)) * 1024)
    _skip_without_quota(pool)
    image = KernelImage(place, builder)
    container = image.container(place=pool)
    set_quota(container.directory, 4 << 20, 5)
    with container.mounted() as at:
        with (at / "d/file").open("r+b") as file:
            file.write(b"x")
        (at / "d").rename(at / "e")
        (at / "e/file").rename(at / "file")
        with pytest.raises(OSError, match=r"quota|space"):
            (at / "new").write_bytes(bytes(8 << 20))
        assert quota_usage(container.directory, 5).used <= 4 << 20
