"""EROFS and overlays by every way that the kernel has, and what it says when they fail."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import struct
import subprocess
from pathlib import Path

import pytest

from pagepool.errors import BusyError, LimitError, UnsupportedError
from pagepool.linux import TMPFS, file_system, mounts
from pagepool.linux.superblocks import mounted_device
from pagepool.mount import MountUnknownError
from pagepool.mount.kernel import (
    ErofsWay,
    Layers,
    Way,
    attach,
    list_kernel_mounts,
    mount_erofs,
    mount_overlay,
    open_overlay,
    probe,
    unmount_kernel,
)
from pagepool.mount.kernel import stack as stacks
from pagepool.mount.kernel.loop import loop_files
from pagepool.mount.mountinfo import mounted_at
from tests.mount.kernel.conftest import BIG
from tests.support.kernelmounts import KernelImage
from tests.support.trees import TreeBuilder
from tests.support.unmounters import unmount_at_once

_WAYS = list(Way)


def _options(path: Path) -> str:
    """The line of /proc/self/mountinfo for a mount."""
    return next(line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f" {path} " in line)


@pytest.mark.parametrize("way", _WAYS, ids=lambda way: way.name)
def test_an_overlay(image: KernelImage, way: Way) -> None:
    """Contents, metadata and attributes are the image's; what is written goes into the upper alone."""
    container = image.container()
    with container.mounted(way) as at:
        assert (at / "bin/tool").read_bytes() == BIG
        assert (at / "etc/passwd").read_bytes() == b"root\n"
        assert os.getxattr(at / "etc/passwd", "user.a") == b"1"
        assert os.getxattr(at / "d", "trusted.overlay.opaque") == b"y"
        found = (at / "etc/passwd").stat()
        assert (found.st_uid, found.st_gid, found.st_mtime_ns) == (1, 2, 1_600_000_000_123_456_789)
        assert (at / "bin/tool").stat().st_ino == (at / "bin/other").stat().st_ino
        assert (at / "etc").stat().st_dev != image.meta.stat().st_dev
        assert {path.stat().st_dev for path in at.rglob("*")} == {at.stat().st_dev}
        (at / "etc/passwd").chmod(0o600)
        assert (container.upper / "etc/passwd").stat().st_blocks <= 8, "only its metadata was copied"
        (at / "new").write_bytes(b"new")
        (at / "d").rename(at / "moved")
        assert (at / "moved/e/deep").read_bytes() == b"deep"
        line = _options(at)
        for option in ("metacopy=on", "redirect_dir=on", "index=off", "nfs_export=off", "xino=auto"):
            # The kernel leaves out what is its default.
            name = option.partition("=")[0]
            assert option in line or f"{name}=" not in line
        assert "volatile" not in line
        assert " pagepool:test:1 " in line
    assert (container.upper / "new").read_bytes() == b"new"
    with container.mounted(way) as at:
        assert (at / "new").read_bytes() == b"new"
        assert (at / "moved/e/deep").read_bytes() == b"deep"


@pytest.mark.parametrize("way", _WAYS, ids=lambda way: way.name)
def test_without_an_upper(image: KernelImage, way: Way) -> None:
    """Nothing can be written; the contents are there."""
    with image.container().mounted(way, read_only=True) as at:
        assert (at / "bin/tool").read_bytes() == BIG
        with pytest.raises(OSError, match="Read-only") as caught:
            (at / "new").touch()
        assert caught.value.errno == errno.EROFS


def test_read_only_with_an_upper(image: KernelImage) -> None:
    """What was written before is seen, and nothing can be written."""
    container = image.container()
    with container.mounted() as at:
        (at / "new").touch()
    mount_overlay(container.layers(), container.at, source="x", read_only=True)
    assert (container.at / "new").exists()
    with pytest.raises(OSError, match="Read-only"):
        (container.at / "new").unlink()


@pytest.mark.parametrize("way", _WAYS, ids=lambda way: way.name)
@pytest.mark.parametrize("name", ["a:b,c\\d e", "n" * 200 + "/" + "m" * 200], ids=["special", "long"])
def test_names_of_layers(image: KernelImage, way: Way, name: str) -> None:
    """No spelling of a directory, and no length, is in the way."""
    objects = image.root / name
    objects.parent.mkdir(exist_ok=True)
    image.objects.rename(objects)
    image.objects = objects
    place = image.root / "up:per, x"
    place.mkdir()
    container = image.container(place=place)
    with container.mounted(way) as at:
        assert (at / "bin/tool").read_bytes() == BIG
        (at / "new").touch()
    assert (container.upper / "new").exists()


@pytest.mark.parametrize("way", [Way.DESCRIPTORS, Way.NAMES], ids=lambda way: way.name)
def test_hundreds_of_layers_need_no_page(image: KernelImage, way: Way) -> None:
    """The options of mount(2) are limited, those of descriptors are not."""
    container = image.container()
    data = [image.root / f"data{number}" for number in range(300)]
    for path in data:
        path.mkdir()
    layers = Layers(image.meta, [*data, image.objects], container.upper, container.work)
    mount_overlay(layers, container.at, source="many", way=way)
    assert (container.at / "bin/tool").read_bytes() == BIG
    mounts.unmount(container.at)
    with pytest.raises(LimitError, match="options"):
        mount_overlay(layers, container.at, source="many", way=Way.MOUNT)
    assert mounted_at(container.at) is None


def test_a_detached_overlay(image: KernelImage) -> None:
    """It can be attached once, wherever; without that it is gone with its descriptor."""
    container = image.container()
    mount = open_overlay(container.layers(), source="x")
    try:
        assert mounted_at(container.at) is None
        attach(mount, container.at)
    finally:
        os.close(mount)
    assert (container.at / "bin/tool").read_bytes() == BIG
    mounts.unmount(container.at)
    os.close(open_overlay(container.layers(), source="x"))
    with container.mounted():
        pass
    mount = open_overlay(container.layers(), source="x")
    with pytest.raises(OSError, match=r"tree\.erofs"):
        attach(mount, image.root / "tree.erofs")
    os.close(mount)


def test_old_kernels(image: KernelImage, monkeypatch: pytest.MonkeyPatch) -> None:
    """What this kernel has and others do not is gone round."""
    container = image.container()
    refused: list[str] = []

    def refuse(name: str) -> None:
        def fail(_: object, key: str, value: object) -> None:
            if key in ("lowerdir+", "datadir+"):
                refused.append(name)
                raise OSError(errno.EINVAL, f"Invalid argument (overlay: Unknown parameter '{key}')", f"{key}={value}")
            original(_, key, value)

        original = getattr(mounts.FileSystemContext, name)
        monkeypatch.setattr(mounts.FileSystemContext, name, fail)

    def mount() -> Way:
        way = mount_overlay(container.layers(), container.at, source="x")
        assert (container.at / "bin/tool").read_bytes() == BIG
        mounts.unmount(container.at)
        return way

    assert mount() is Way.DESCRIPTORS
    refuse("set_descriptor")
    assert mount() is Way.NAMES
    refuse("set_string")
    assert mount() is Way.MOUNT
    assert refused == ["set_descriptor", "set_descriptor", "set_string"]
    with pytest.raises(UnsupportedError, match="before it is mounted"):
        open_overlay(container.layers(), source="x")

    def forbid(_: object, kind: str) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted", kind)

    monkeypatch.setattr(mounts.FileSystemContext, "__init__", forbid)
    assert mount() is Way.MOUNT


def test_the_kernels_reason(image: KernelImage) -> None:
    """An error has what the kernel said, and leaves nothing."""
    container = image.container()
    wrong = Layers(image.meta, [image.objects], container.upper, container.upper / "work")
    wrong.work.mkdir()  # type: ignore[union-attr]
    with pytest.raises(OSError, match=r"dmesg may say why.*overlay"):
        mount_overlay(wrong, container.at, source="x")
    with pytest.raises(OSError, match="No such file"):
        mount_overlay(Layers(image.meta, [image.root / "nowhere"]), container.at, source="x")
    file = image.root / "tree.erofs"
    with pytest.raises(OSError, match=rf"\(overlay: {file} is not a directory\): 'datadir\+={file}'"):
        mount_overlay(Layers(image.meta, [file]), container.at, source="x", way=Way.NAMES)
    assert mounted_at(container.at) is None
    (image.root / "broken").write_bytes(bytes(8192))
    with pytest.raises(OSError, match=r"dmesg may say why.*erofs") as caught:
        mount_erofs(image.root / "broken", container.at)
    assert caught.value.errno == errno.EINVAL
    assert mounted_at(container.at) is None
    assert not [file for file in loop_files().values() if file.is_relative_to(image.root)]


def test_flags(image: KernelImage) -> None:
    """A mount is nodev unless somebody wants devices, and nosuid if somebody wants that."""
    container = image.container()
    for way in _WAYS:
        mount_overlay(container.layers(), container.at, source="x", nosuid=True, way=way)
        assert {"nodev", "nosuid"} <= set(_options(container.at).split(" ")[5].split(","))
        mounts.unmount(container.at)
        mount_overlay(container.layers(), container.at, source="x", nodev=False, way=way)
        assert not {"nodev", "nosuid"} & set(_options(container.at).split(" ")[5].split(","))
        mounts.unmount(container.at)


def test_programs_run(place: Path) -> None:
    """The layers' own nosuid and noexec do not count: setuid programs and capabilities have their effect."""

    builder = TreeBuilder()
    program = Path(shutil.which("id") or "/usr/bin/id")
    builder.file("id", program.read_bytes(), 0o4755, uid=4711)
    reader = Path(shutil.which("cat") or "/usr/bin/cat")
    # struct vfs_cap_data, version 2, with the effective flag: CAP_NET_RAW
    capability = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)
    builder.file("cat", reader.read_bytes(), 0o755, xattrs={b"security.capability": capability})
    image = KernelImage(place, builder)
    container = image.container()
    with container.mounted() as at:
        command = ["setpriv", "--reuid=65534", "--clear-groups", str(at / "id"), "-u"]
        assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "4711\n"
        reading = ["setpriv", "--reuid=65534", "--clear-groups", str(at / "cat"), "/proc/self/status"]
        shown = subprocess.run(reading, check=True, capture_output=True, text=True).stdout
        assert "CapEff:\t0000000000002000\n" in shown
        (at / "id").chmod(0o4711)
        assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "4711\n"


def test_a_long_source(image: KernelImage) -> None:
    """It is cut to what the kernel takes."""
    container = image.container()
    mount_overlay(container.layers(), container.at, source="r" * 400)
    (found,) = [mount for mount in list_kernel_mounts() if mount.path == container.at]
    assert found.source == "r" * (252 - len(stacks.PREFIX)) + "..."


@pytest.mark.parametrize("way", [None, ErofsWay.LOOP], ids=["default", "loop"])
def test_erofs(image: KernelImage, way: ErofsWay | None) -> None:
    """Both ways show the same; the image's file may go, and the loop device goes with the mount."""
    at, copy = image.root / "other", image.root / "copy.erofs"
    at.mkdir()
    shutil.copy(image.root / "tree.erofs", copy)
    used = mount_erofs(copy, at, way=way)
    assert used is (way or ErofsWay.FILE)
    assert [file for file in loop_files().values() if file == copy] == [copy] * (used is ErofsWay.LOOP)
    copy.unlink()
    assert stat.S_IMODE((at / "bin/tool").stat().st_mode) == 0o4755
    assert {"ro", "nosuid", "nodev", "noexec"} <= set(_options(at).split(" ")[5].split(","))
    mounts.unmount(at)
    assert not [file for file in loop_files().values() if file.name.startswith("copy.erofs")]


def test_erofs_on_tmpfs(image: KernelImage) -> None:
    """Where the kernel does not mount the file, a loop device serves."""
    memory, at = image.root / "memory", image.root / "other"
    memory.mkdir()
    at.mkdir()
    mounts.mount("tmpfs", memory, "tmpfs", 0)
    assert file_system(memory) == TMPFS
    shutil.copy(image.root / "tree.erofs", memory)
    assert mount_erofs(memory / "tree.erofs", at) is ErofsWay.LOOP
    assert (at / "etc/link").readlink() == Path("passwd")
    mounts.unmount(at)
    mounts.unmount(memory)


def test_listing_and_unmounting(image: KernelImage) -> None:
    """Only what is ours is listed, and only that is unmounted."""
    container = image.container()
    with pytest.raises(MountUnknownError):
        unmount_kernel(container.at)
    mount_overlay(container.layers(), container.at, source="app:1")
    found = {mount.path: mount for mount in list_kernel_mounts(image.root)}
    assert set(found) >= {container.at, image.meta}
    assert (found[container.at].kind, found[container.at].source, found[container.at].read_only) == (
        "overlay",
        "app:1",
        False,
    )
    assert image.meta not in {mount.path for mount in list_kernel_mounts()}
    with (container.at / "bin/tool").open("rb") as file:
        with pytest.raises(BusyError, match=rf"in use by .*\({os.getpid()}\)"):
            unmount_kernel(container.at)
        unmount_kernel(container.at, force=True)
        assert file.read() == BIG
    assert mounted_at(container.at) is None
    foreign = image.root / "foreign"
    foreign.mkdir()
    mounts.mount("tmpfs", foreign, "tmpfs", 0)
    with pytest.raises(MountUnknownError):
        unmount_kernel(foreign, force=True)
    mounts.unmount(foreign)


@pytest.mark.parametrize("force", [False, True])
def test_two_who_unmount(image: KernelImage, monkeypatch: pytest.MonkeyPatch, *, force: bool) -> None:
    """The second one does not take what is below, which is somebody else's."""
    container = image.container()
    mounts.mount("below", container.at, "tmpfs")
    mount_overlay(container.layers(), container.at, source="app:1")
    (failed,) = unmount_at_once(monkeypatch, lambda: unmount_kernel(container.at, force=force))
    assert isinstance(failed, MountUnknownError)
    point = mounted_at(container.at)
    assert point is not None
    assert point.source == "below"
    mounts.unmount(container.at)


def test_another_mount_with_the_number_of_one_of_ours(image: KernelImage) -> None:
    """The kernel gives numbers again: one that is noted of a mount may be that of somebody else's by now."""
    at = image.root / "foreign"
    at.mkdir()
    mounts.mount("foreign", at, "tmpfs")
    device = mounted_device(at)
    assert device is not None
    with pytest.raises(MountUnknownError):
        unmount_kernel(at, known={device})
    mounts.unmount(at)


def test_probe(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says why not, or what there is; nothing is left, and what is not there yet is not made."""
    found = probe(place / "not" / "there")
    assert found.kernel
    assert "EROFS" in found.reason
    assert list(place.iterdir()) == []
    assert not probe(Path("/proc/1")).kernel
    for name, value, reason in (
        ("geteuid", 1000, "root"),
        ("uname", os.uname_result(("Linux", "n", "6.1.0-9", "v", "x86_64")), "6.5"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(os, name, lambda value=value: value)
            refused = probe(place)
            assert not refused.kernel
            assert reason in refused.reason
            assert "\n" not in refused.reason
