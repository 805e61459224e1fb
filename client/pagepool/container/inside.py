"""Makes the inside of a container out of ``config.json``: mounts, devices, a new root. For our own runtime only.

Runs in the container's first process, in namespaces of its own that nobody else uses yet, as root with all that
root may do. Every place in the root is opened with `open_in_root`, and mounted on by its descriptor: whatever names the
image has, no mount lands outside. Nothing is undone when a step fails: the namespaces end with the process.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
import termios
from typing import TYPE_CHECKING, Any, Final

from pagepool.container import linux
from pagepool.container.rootfiles import make_directory, make_file
from pagepool.linux import mounts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_FLAGS: Final = {
    "ro": mounts.MS_RDONLY,
    "nosuid": mounts.MS_NOSUID,
    "nodev": mounts.MS_NODEV,
    "noexec": mounts.MS_NOEXEC,
    "relatime": mounts.MS_RELATIME,
    "strictatime": mounts.MS_STRICTATIME,
}
_ATTRIBUTES: Final = {
    "ro": mounts.ATTR_RDONLY,
    "rro": mounts.ATTR_RDONLY,
    "nosuid": mounts.ATTR_NOSUID,
    "nodev": mounts.ATTR_NODEV,
    "noexec": mounts.ATTR_NOEXEC,
}
_NODES: Final = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}
_LINKS: Final = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}
NAMESPACES: Final = {
    "mount": linux.CLONE_NEWNS,
    "uts": linux.CLONE_NEWUTS,
    "ipc": linux.CLONE_NEWIPC,
    "network": linux.CLONE_NEWNET,
    "cgroup": linux.CLONE_NEWCGROUP,
}
"""By their names in runtime-spec; that of processes is entered by being born in it."""


def enter_namespaces(config: Mapping[str, Any]) -> None:
    """Leave the host's namespaces; that of processes was left by being the first one in a new one."""
    flags = 0
    for namespace in config["linux"]["namespaces"]:
        if "path" in namespace:
            _enter(namespace["path"], NAMESPACES[namespace["type"]])
        else:
            flags |= NAMESPACES.get(namespace["type"], 0)
    linux.unshare(flags)
    mounts.make_private()
    linux.sethostname(config["hostname"])
    if flags & linux.CLONE_NEWNET:
        linux.raise_loopback()


def _enter(path: str, kind: int) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    linux.setns(descriptor, kind)
    os.close(descriptor)


def make_root(config: Mapping[str, Any]) -> int | None:
    """Mount everything, and make the container's root this process's own.

    Returns:
        the side of its terminal that is not one, if it is to have a terminal.
    """
    path = config["root"]["path"]
    mounts.mount(path, path, flags=mounts.MS_BIND | mounts.MS_REC)
    root = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    # Nothing else keeps an image's device nodes from being the host's devices: there is no device controller here.
    mounts.restrict_mount(root, mounts.ATTR_NODEV, recursive=True)
    for mount in config["mounts"]:
        _mount(root, mount)
    if not any(mount["type"] == "bind" and mount["destination"].rstrip("/") == "/dev" for mount in config["mounts"]):
        _make_devices(root, config["linux"]["devices"])  # not in a directory of the host's
    master = _make_terminal(root, config["process"]) if config["process"]["terminal"] else None
    os.close(make_directory(root, config["process"]["cwd"]))
    for path in config["linux"]["readonlyPaths"]:
        _restrict(root, path, mask=False)
    for path in config["linux"]["maskedPaths"]:
        _restrict(root, path, mask=True)
    if config["root"]["readonly"]:
        mounts.restrict_mount(root, mounts.ATTR_RDONLY)
    _change_root(root)
    return master


def _change_root(root: int) -> None:
    os.fchdir(root)
    os.close(root)
    try:
        linux.pivot_root()
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # The host's own root is an initramfs, which cannot be left so.
        mounts.mount(".", "/", flags=mounts.MS_MOVE)
        os.chroot(".")
        os.chdir("/")


def _mount(root: int, mount: Mapping[str, Any]) -> None:
    options: Sequence[str] = mount.get("options", ())
    if mount["type"] == "bind":
        _bind(root, mount["source"], mount["destination"], options)
        return
    if mount["type"] == "cgroup":
        _mount_cgroups(root, mount["destination"])
        return
    flags = sum(_FLAGS.get(option, 0) for option in options)
    data = ",".join(option for option in options if option not in _FLAGS)
    place = make_directory(root, mount["destination"])
    try:
        mounts.mount(mount["source"], _proc(place), mount["type"], flags, data)
    except OSError as error:
        raise OSError(error.errno, f"mounting {mount['type']}: {error.strerror}", mount["destination"]) from error
    finally:
        os.close(place)


def _mount_cgroups(root: int, destination: str) -> None:
    """Show the host's control groups, where they are all of version 2; those of version 1 are left out."""
    if os.path.exists("/sys/fs/cgroup/cgroup.controllers"):  # noqa: PTH110 - pathlib is not loaded for this alone
        flags = mounts.MS_RDONLY | mounts.MS_NOSUID | mounts.MS_NODEV | mounts.MS_NOEXEC
        place = make_directory(root, destination)
        mounts.mount("cgroup", _proc(place), "cgroup2", flags)
        os.close(place)


def _bind(root: int, source: str, destination: str, options: Sequence[str]) -> None:
    make = make_directory if os.path.isdir(source) else make_file  # noqa: PTH112
    place = make(root, destination)
    try:
        mounts.mount(source, _proc(place), flags=mounts.MS_BIND | mounts.MS_REC)
    except OSError as error:
        raise OSError(error.errno, f"mounting {source}: {error.strerror}", destination) from error
    finally:
        os.close(place)
    mounted = linux.open_in_root(root, destination, os.O_PATH)
    mounts.restrict_mount(mounted, mounts.ATTR_NODEV, recursive=True)
    if attributes := sum({_ATTRIBUTES.get(option, 0) for option in options}):
        mounts.restrict_mount(mounted, attributes, recursive="rro" in options)
    os.close(mounted)


def _make_devices(root: int, more: Sequence[Mapping[str, Any]]) -> None:
    devices = make_directory(root, "/dev")
    before = os.umask(0)
    for device in more:
        _make_device(root, device)
    for name, (major, minor) in _NODES.items():
        with contextlib.suppress(FileExistsError):
            os.mknod(name, 0o666 | stat.S_IFCHR, os.makedev(major, minor), dir_fd=devices)
    os.umask(before)
    for name, target in _LINKS.items():
        with contextlib.suppress(FileExistsError):
            os.symlink(target, name, dir_fd=devices)
    os.close(devices)


def _make_device(root: int, device: Mapping[str, Any]) -> None:
    above, _, name = device["path"].rpartition("/")
    directory = make_directory(root, above)
    kind = stat.S_IFCHR if device["type"] == "c" else stat.S_IFBLK
    try:
        os.mknod(name, device["fileMode"] | kind, os.makedev(device["major"], device["minor"]), dir_fd=directory)
        os.chown(name, device["uid"], device["gid"], dir_fd=directory, follow_symlinks=False)
    except OSError as error:
        raise OSError(error.errno, f"making the device: {error.strerror}", device["path"]) from error
    finally:
        os.close(directory)


def _make_terminal(root: int, process: Mapping[str, Any]) -> int:
    """A terminal of the container's own /dev/pts, on /dev/console too; its other side is returned.

    The terminal itself is opened by who needs it.
    """
    master = linux.open_in_root(root, "/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY)
    fcntl.ioctl(master, 0x40045431, struct.pack("i", 0))  # TIOCSPTLCK: it may be opened
    (number,) = struct.unpack("i", fcntl.ioctl(master, 0x80045430, bytes(4)))  # TIOCGPTN: which one it is
    if size := process.get("consoleSize"):
        termios.tcsetwinsize(master, (size["height"], size["width"]))
    terminal = linux.open_in_root(root, f"/dev/pts/{number}", os.O_PATH)
    console = make_file(root, "/dev/console")
    mounts.mount(_proc(terminal), _proc(console), flags=mounts.MS_BIND)
    os.close(terminal)
    os.close(console)
    return master


def _restrict(root: int, path: str, *, mask: bool) -> None:
    """Make a path read-only, or show nothing of it; nothing where it is not there."""
    try:
        place = linux.open_in_root(root, path, os.O_PATH)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return
        raise
    if not mask:
        mounts.mount(_proc(place), _proc(place), flags=mounts.MS_BIND | mounts.MS_REC)
        mounted = linux.open_in_root(root, path, os.O_PATH)
        mounts.restrict_mount(mounted, mounts.ATTR_RDONLY, recursive=True)
        os.close(mounted)
    elif stat.S_ISDIR(os.fstat(place).st_mode):
        mounts.mount("tmpfs", _proc(place), "tmpfs", mounts.MS_RDONLY, "size=0,nr_inodes=1")
    else:
        mounts.mount("/dev/null", _proc(place), flags=mounts.MS_BIND)
        mounted = linux.open_in_root(root, path, os.O_PATH)
        # It is the host's: whoever could write to the mount could give it another mode or owner, for all of the host.
        mounts.restrict_mount(mounted, mounts.ATTR_RDONLY | mounts.ATTR_NOSUID | mounts.ATTR_NOEXEC)
        os.close(mounted)
    os.close(place)


def _proc(descriptor: int) -> str:
    return f"/proc/self/fd/{descriptor}"
