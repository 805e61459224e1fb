"""Overlays of the kernel: the metadata of a tree, the data layers that its files take their contents from, an upper.

Three ways lead there, by what the kernel has; `mount_overlay` takes the first that works:

- layers by descriptor (Linux 6.13), so that no path is too long, and no other directory can get in between;
- layers by name, one by one (6.8);
- mount(2), with all of them in one string of less than a page (6.5). There is no detached mount this way.

What is asked for, and why: ``metacopy=on``, or the files of the metadata layer have no content; ``redirect_dir=on``,
or directories cannot be renamed, and nothing leads from metadata to data; ``xino=auto`` for one st_dev and stable inode
numbers; ``index=off`` and ``nfs_export=off``, because an index belongs to one set of layers, and the data layers of an
upper may be at another place next time; ``uuid`` is left as it is (auto), so that each overlay has an f_fsid of its
own, for which the kernel leaves one mark in an upper. Never ``volatile``: what a container synced is on the disk.
"""

from __future__ import annotations

import enum
import errno
import os
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pagepool.errors import LimitError, UnsupportedError
from pagepool.linux import mounts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

KIND: Final = "overlay"
PREFIX: Final = "pagepool:"
"""What the source of every overlay of ours begins with."""

_PAGE: Final = 4096
_OPTIONS: Final = (("metacopy", "on"), ("xino", "auto"), ("index", "off"), ("nfs_export", "off"))
_UNKNOWN: Final = ("nknown parameter", "ad value for")
"""How the kernel says that it does not know a parameter, or its being given in this way."""
_SPECIAL: Final = frozenset(b":,\\")


class Way(enum.Enum):
    """How layers are given to the kernel."""

    DESCRIPTORS = "descriptors"
    NAMES = "names"
    MOUNT = "mount(2)"


@dataclass(frozen=True, slots=True)
class Layers:
    """What an overlay is made of. All are existing directories.

    Args:
        meta: the metadata of the tree; the one lower layer that is seen.
        data: where contents are looked for, in this order.
        upper: what is written; None: nothing can be.
        work: beside the upper, on the same file system, and used for nothing else.
    """

    meta: Path
    data: Sequence[Path]
    upper: Path | None = None
    work: Path | None = None

    def named(self) -> list[tuple[str, Path]]:
        """The parameters that name them, in order."""
        found = [("lowerdir+", self.meta), *(("datadir+", path) for path in self.data)]
        if self.upper is not None and self.work is not None:
            found += [("upperdir", self.upper), ("workdir", self.work)]
        return found


class _WayError(Exception):
    """This kernel does not have this way.

    Args:
        error: what it said.
    """

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


def open_overlay(
    layers: Layers,
    *,
    source: str,
    read_only: bool = False,
    nosuid: bool = False,
    nodev: bool = True,
    way: Way | None = None,
) -> int:
    """Make an overlay that is mounted nowhere yet; see `attach`.

    Args:
        layers: of what.
        source: what it is said to be of; `PREFIX` is put before it, and it is cut where it is longer than can be.
        read_only: whether nothing can be written though there is an upper.
        nosuid: whether setuid, setgid and file capabilities do not count.
        nodev: whether device nodes are no devices.
        way: how; None: the first that works.

    Returns:
        the descriptor of the mount, which is gone with it, unless it was attached.

    Raises:
        UnsupportedError: this kernel has mount(2) only.
        OSError: it cannot be mounted; the text says what the kernel said.
    """
    attributes = mounts.ATTR_RDONLY if read_only or layers.upper is None else 0
    attributes |= (mounts.ATTR_NOSUID if nosuid else 0) | (mounts.ATTR_NODEV if nodev else 0)
    refused: OSError | None = None
    for tried in (way,) if way else (Way.DESCRIPTORS, Way.NAMES):
        if tried is Way.MOUNT:
            break
        try:
            return _open(layers, source, attributes, tried)
        except _WayError as error:
            refused = error.error
    raise UnsupportedError(f"this kernel cannot make an overlay before it is mounted: {refused}")


def attach(mount: int, at: Path) -> None:
    """Mount what `open_overlay` made, in this process's mount namespace. Its descriptor can be closed then.

    Raises:
        OSError: `at` is no directory, or it is attached already.
    """
    try:
        mounts.move_mount(mount, at)
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno or 0), str(at)) from None


def mount_overlay(
    layers: Layers,
    at: Path,
    *,
    source: str,
    read_only: bool = False,
    nosuid: bool = False,
    nodev: bool = True,
    way: Way | None = None,
) -> Way:
    """Mount an overlay.

    Args:
        at: an existing directory; else as `open_overlay` has them.

    Returns:
        which way it was done.

    Raises:
        LimitError: by mount(2), with names that are longer than a page together.
        OSError: it cannot be mounted; the text says what the kernel said. Nothing is left.
    """
    for tried in (way,) if way else Way:
        if tried is Way.MOUNT:
            _mount(layers, at, source, read_only=read_only, nosuid=nosuid, nodev=nodev)
            return tried
        try:
            mount = open_overlay(layers, source=source, read_only=read_only, nosuid=nosuid, nodev=nodev, way=tried)
        except UnsupportedError:
            if way is not None:
                raise
            continue
        try:
            attach(mount, at)
        finally:
            os.close(mount)
        return tried
    raise AssertionError("the last way always ends")


def _open(layers: Layers, source: str, attributes: int, way: Way) -> int:
    try:
        context = mounts.FileSystemContext(KIND)
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EPERM):
            raise _WayError(error) from error
        raise
    with context:
        context.set_string("source", shown_source(source))
        with _layers_of(context, way) as given:
            for key, path in layers.named():
                try:
                    given(key, path)
                except OSError as error:
                    if _is_unknown(error, way):
                        raise _WayError(error) from error
                    raise
            for key, value in _options(layers):
                context.set_string(key, value)
            context.create()
        return context.mount(attributes)


@contextmanager
def _layers_of(context: mounts.FileSystemContext, way: Way) -> Iterator[Callable[[str, Path], None]]:
    """What gives a layer to the kernel. Directories stay open until the overlay is made."""
    with ExitStack() as stack:

        def give(key: str, path: Path) -> None:
            if way is Way.NAMES and len(os.fsencode(path)) <= mounts.MAX_STRING:
                context.set_string(key, path)
                return
            # Not opened for reading: nobody need answer that for a FUSE mount.
            descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            if way is Way.NAMES:
                context.set_string(key, f"/proc/self/fd/{descriptor}")
            else:
                context.set_descriptor(key, descriptor)

        yield give


def _is_unknown(error: OSError, way: Way) -> bool:
    if error.errno == errno.EBADF:
        return way is Way.DESCRIPTORS  # 6.13 does not take what was opened by O_PATH
    return error.errno == errno.EINVAL and any(text in str(error) for text in _UNKNOWN)


def _options(layers: Layers) -> list[tuple[str, str]]:
    # Where nothing is written no redirect is either; those that are there are followed.
    redirect = "follow" if layers.upper is None else "on"
    return [*_OPTIONS[:1], ("redirect_dir", redirect), *_OPTIONS[1:]]


def shown_source(source: str) -> str:
    """The source of an overlay, as mountinfo shows it: with our prefix, and no longer than the kernel takes it."""
    raw = os.fsencode(PREFIX + source)
    return os.fsdecode(raw if len(raw) <= mounts.MAX_STRING else raw[: mounts.MAX_STRING - 3] + b"...")


def _mount(layers: Layers, at: Path, source: str, *, read_only: bool, nosuid: bool, nodev: bool) -> None:
    flags = mounts.MS_RDONLY if read_only or layers.upper is None else 0
    flags |= (mounts.MS_NOSUID if nosuid else 0) | (mounts.MS_NODEV if nodev else 0)
    with ExitStack() as stack:
        data = _join(layers, os.fsencode)
        if len(data) >= _PAGE or any(_SPECIAL.intersection(os.fsencode(path)) for _, path in layers.named()):

            def by_number(path: Path) -> bytes:
                descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                stack.callback(os.close, descriptor)
                return b"/proc/self/fd/%d" % descriptor

            data = _join(layers, by_number)
        if len(data) >= _PAGE:
            raise LimitError(f"the options of a mount at {at}", len(data), _PAGE - 1)
        mounts.mount(shown_source(source), at, KIND, flags, data)


def _join(layers: Layers, spell: Callable[[Path], bytes]) -> bytes:
    """All options in one string."""
    words = [b"lowerdir=" + b"::".join(spell(path) for path in (layers.meta, *layers.data))]
    words += [key.encode() + b"=" + spell(path) for key, path in layers.named() if key in ("upperdir", "workdir")]
    return b",".join([*words, *(f"{key}={value}".encode() for key, value in _options(layers))])
