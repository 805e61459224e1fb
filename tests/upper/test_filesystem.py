"""Uppers as file systems and layers: what the mount showed, and what others make of the layer."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import resource
import shutil
import stat
from pathlib import Path

import pytest

from pagepool.image import Kind
from pagepool.overlay import Change, iter_layer, plan_diff
from pagepool.upper import UpperFileSystem, check_upper, make_upper
from pagepool.vfs import ROOT, FileSystem
from tests.image.umoci import read_disk, unpack
from tests.overlay.layers import rows, whole_layer
from tests.support.kernelmounts import Container, KernelImage, scratch
from tests.support.rootfs import describe as describe_system
from tests.support.trees import TreeBuilder
from tests.upper.programs import Program, random_image

SEEDS = range(12)


def open_upper(container: Container) -> contextlib.closing[UpperFileSystem]:
    """What is in a container's upper, over its image."""
    fs = container.image.fs
    root = check_upper(container.upper, fs.tree, devices=True)
    return contextlib.closing(UpperFileSystem(container.upper, root, fs))


def describe(changes: list[Change]) -> list[str]:
    """As ``docker diff`` has them, with a star where a directory is opaque."""
    return [f"{c.kind.letter} /{c.path.decode()}{'*' if c.opaque else ''}" for c in changes]


def plan(now: UpperFileSystem) -> list[Change]:
    """What the upper changed, found by looking at that alone."""
    return plan_diff(now, now.base, now)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.usefixtures("place")
@pytest.mark.skipif(shutil.which("umoci") is None, reason="needs umoci")
def test_random_programs(seed: int, tmp_path: Path) -> None:
    """Whatever programs did: the upper shows what the mount showed, and its layer makes the same of the image."""
    chance = random.Random(seed)
    with scratch() as place:
        image = KernelImage(place, random_image(chance))
        container = image.container()
        container.upper.rmdir()
        make_upper(container.upper, image.fs.tree)
        for _ in range(chance.randint(1, 3)):
            with container.mounted() as at:
                Program(at, chance).run(chance.choice((3, 10, 40)))
                shown = read_disk(at)
        with open_upper(container) as now:
            assert rows(now) == shown
            describe_system(now)  # counts links
            changes = plan(now)
            layers = [whole_layer(image.fs), b"".join(iter_layer(now, changes))]
    done = unpack(tmp_path, layers)
    assert done.returncode == 0, done.stderr
    assert read_disk(tmp_path / "bundle/rootfs") == shown, describe(changes)


def test_nothing(container: Container) -> None:
    """A mount in which nothing was changed, or changed back, has no changes."""
    container.upper.rmdir()
    make_upper(container.upper, container.image.fs.tree)
    with container.mounted() as at:
        (at / "a/g").read_bytes()
    with open_upper(container) as now:
        assert plan(now) == []
    with container.mounted() as at:
        found = (at / "a/g").stat()
        (at / "a/g").chmod(0o600)
        (at / "a/g").chmod(0o644)
        with (at / "a/g").open("r+b") as file:
            file.write(b"g")
        os.utime(at / "a/g", ns=(found.st_mtime_ns, found.st_mtime_ns))
    with open_upper(container) as now:
        assert plan(now) == []


def test_changes(container: Container) -> None:
    """Each kind of change is one line, or as many as a layer needs."""
    container.upper.rmdir()
    make_upper(container.upper, container.image.fs.tree)
    with container.mounted() as at:
        times = {path: (at / path).stat().st_mtime_ns for path in ("a", "l", "other", "")}
        (at / "a/g").chmod(0o600)
        (at / "a/b").rename(at / "a/moved")
        (at / "l/1").chmod(0o600)
        (at / "s").unlink()
        (at / "other/x").unlink()
        (at / "other").rmdir()
        (at / "other").mkdir(0o755)
        (at / "other/y").write_bytes(b"y")
        os.setxattr(at / "a/h", "user.h", b"2")
        for path, time in times.items():
            os.utime(at / path, ns=(time, time))
    with open_upper(container) as now:
        assert describe(plan(now)) == [
            "D /a/b",
            "C /a/g",
            "C /a/h",
            "A /a/moved",
            "A /a/moved/f",
            "C /l/1",
            "C /other*",
            "D /other/x",
            "A /other/y",
            "D /s",
        ]


def test_what_is_written_while_it_is_open(container: Container) -> None:
    """Is noticed, whatever it is; reading is not."""
    with container.mounted() as at:
        (at / "a/new").write_bytes(b"n")

        def overwrite() -> None:
            before = (at / "a/new").stat().st_ctime_ns
            while (at / "a/new").stat().st_ctime_ns == before:  # the kernel's clock for files is a coarse one
                (at / "a/new").write_bytes(b"m")

        for change in (
            (at / "a/b/f").touch,
            (at / "a/g").unlink,
            (at / "l/3").mkdir,
            overwrite,
            lambda: os.setxattr(at / "a/new", "user.a", b"b"),
            lambda: (at / "a/new").rename(at / "a/newer"),
            lambda: (at / "l/3").rmdir(),
        ):
            with open_upper(container) as now:
                assert (at / "a/b/f").read_bytes() == b"f" * 5000
                assert [path.name for path in (at / "l").iterdir()]
                plan(now)
                assert now.is_current()
                change()
                assert not now.is_current()
    with open_upper(container) as now:
        shutil.rmtree(container.upper)
        assert not now.is_current()


def test_contents_that_are_not_asked_for(container: Container) -> None:
    """Listing changes reads no content of the image where only metadata changed."""
    with container.mounted() as at:
        (at / "big").chmod(0o600)
        (at / "big").rename(at / "big2")
        (at / "a/g").chmod(0o600)
    for path in container.image.objects.rglob("*"):
        if path.is_file():
            path.unlink()
    container.image.fs.content = None  # type: ignore[assignment]
    with open_upper(container) as now:
        assert "C /a/g" in describe(plan(now))
        with pytest.raises(AttributeError):
            now.read(now.lookup(ROOT, b"big2"), 0, 10)


def test_as_a_file_system(container: Container) -> None:
    """Errors are those of Linux; numbers stay where the inode is the image's."""
    with container.mounted() as at:
        (at / "a").rename(at / "c")
        (at / "c/g").chmod(0o600)
        with (at / "c/new").open("wb") as file:
            file.truncate(1 << 20)
            file.write(b"start")
        (at / "c/link").symlink_to("new")
    with open_upper(container) as now:
        assert isinstance(now, FileSystem)
        base = now.base
        moved = now.lookup(ROOT, b"c")
        assert moved == base.lookup(ROOT, b"a")
        assert now.parent(moved) == ROOT
        assert now.lookup(moved, b"b") == base.lookup(moved, b"b")
        assert now.parent(now.lookup(moved, b"b")) == moved
        changed = now.lookup(moved, b"g")
        assert changed == base.lookup(moved, b"g")
        assert now.attributes(changed).mode == 0o600
        assert bytes(now.read(changed, 98, 10)) == b"gg"
        new, link = now.lookup(moved, b"new"), now.lookup(moved, b"link")
        assert new > base.tree.node_count
        assert bytes(now.read(new, 0, 7)) == b"start\0\0"
        assert bytes(now.read(new, (1 << 20) - 2, 7)) == b"\0\0"
        assert now.seek(new, 0, os.SEEK_HOLE) == 4096
        assert now.seek(changed, 0, os.SEEK_HOLE) == 100
        assert now.readlink(link) == b"new"
        assert now.attributes(link).kind is Kind.SYMLINK
        for number, ask in (
            (errno.ENOENT, lambda: now.lookup(ROOT, b"a")),
            (errno.ENOENT, lambda: now.lookup(moved, b"none")),
            (errno.ENOTDIR, lambda: now.lookup(new, b"x")),
            (errno.ENOTDIR, lambda: now.entries(new)),
            (errno.ENOTDIR, lambda: now.parent(link)),
            (errno.EISDIR, lambda: now.read(moved, 0, 1)),
            (errno.EINVAL, lambda: now.read(link, 0, 1)),
            (errno.EINVAL, lambda: now.readlink(new)),
            (errno.EINVAL, lambda: now.read(new, -1, 1)),
        ):
            with pytest.raises(OSError, match=os.strerror(number)):
                ask()


def test_a_file_that_was_exchanged(container: Container) -> None:
    """What changed after the upper was read is not taken for what was there."""
    with container.mounted() as at:
        (at / "new").write_bytes(b"one")
    with open_upper(container) as now:
        new = now.lookup(ROOT, b"new")
        (container.upper / "other").write_bytes(b"two")
        (container.upper / "other").rename(container.upper / "new")
        with pytest.raises(OSError, match="new") as caught:
            now.read(new, 0, 3)
        assert caught.value.errno == errno.ESTALE


@pytest.mark.parametrize("through", ["itself", "a link on the way"])
def test_a_device_put_in_place_of_a_file_is_not_opened(container: Container, place: Path, through: str) -> None:
    """As root in a container that runs can do meanwhile. Opened, this one would be ENXIO: there is no such device."""
    with container.mounted() as at:
        (at / "new").mkdir()
        (at / "new/one").write_bytes(b"one")
    with open_upper(container) as now:
        new = now.lookup(now.lookup(ROOT, b"new"), b"one")
        (container.upper / "new").rename(place / "moved")
        directory = container.upper / "new" if through == "itself" else place / "outside"
        directory.mkdir()
        os.mknod(directory / "one", 0o600 | stat.S_IFCHR, os.makedev(4000, 0))
        if through != "itself":
            (container.upper / "new").symlink_to(directory)
        with pytest.raises(OSError, match="new/one") as caught:
            now.read(new, 0, 3)
        assert caught.value.errno == errno.ESTALE


def test_whiteouts_by_attribute(container: Container) -> None:
    """They remove what the image has, as devices do."""
    (container.upper / "a").mkdir()
    os.setxattr(container.upper / "a", "trusted.overlay.opaque", b"x")
    (container.upper / "a/g").touch()
    os.setxattr(container.upper / "a/g", "trusted.overlay.whiteout", b"")
    with open_upper(container) as now:
        assert [entry.name for entry in now.entries(now.lookup(ROOT, b"a"))] == [b"b", b"h"]
        assert "D /a/g" in describe(plan(now))
    with container.mounted() as at:
        assert sorted(path.name for path in (at / "a").iterdir()) == ["b", "h"]


def test_deep_directories(place: Path) -> None:
    """Deeper than Python's stack, and than files may be open: a node has them for all containers."""

    container = KernelImage(place, TreeBuilder()).container()
    with container.mounted() as at:
        descriptor = os.open(at, os.O_RDONLY)
        for _ in range(400):
            os.mkdir("d", dir_fd=descriptor)
            os.mkdir("e", dir_fd=descriptor)
            below = os.open("d", os.O_RDONLY, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
        os.close(descriptor)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 100, limits[1]))  # noqa: PTH208
    try:
        now = open_upper(container)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    with now as opened:
        assert len(plan(opened)) == 801
        assert opened.is_current()
