"""The kernel mounts of a node: made, written down, listed, and cleaned up after.

A mount is an overlay of a tree's metadata image, the layers of data, and a directory of its own for what is written.
The node makes it detached and hands it to whoever asked, who puts it into its place in his own mount namespace. So a
mount that fails anywhere is gone by itself. The metadata image of a tree is mounted once, below RUN, for all of them.

A mount is gone when no mount namespace of the machine has it any more, however it was unmounted: `prune` finds that
out, and removes what belonged to it. What a command was about to do when it died (a record that is not attached, its
conversation ended) goes at once.

Thread-safe.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from pagepool.digest import Digest
from pagepool.errors import BusyError, InvalidError, NotFoundError, UnsupportedError
from pagepool.linux import quota
from pagepool.linux.directories import remove_tree
from pagepool.linux.mounts import clone_mount
from pagepool.linux.superblocks import is_gone
from pagepool.mount import kernel
from pagepool.mount.mountinfo import mounted_at, resolve
from pagepool.node.alive import mounts_alive
from pagepool.node.records import MountRecord, read_records, uptime_s, write_record
from pagepool.upper import UpperInfo, check_upper, find_upper, make_upper, make_work, read_upper_info
from pagepool.upper.info import NAME, PART, UPPER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pagepool.node.places import NodePlaces
    from pagepool.node.source import Source

_ID_BYTES: Final = 6
_FIRST_PROJECT: Final = 1 << 30
_TEMPORARY: Final = "temporary"
"""Marks a directory that goes with its mount."""

log = logging.getLogger("pagepool.node")


@dataclass(frozen=True, slots=True)
class MountWish:
    """What is to be mounted how.

    Args:
        path: where it will be; for the record.
        image: its name, for people.
        upper: directory that holds, or is to hold, `upper` and `work`; None: see `temporary`.
        temporary: without `upper`: whether something can be written, and goes with the mount.
        read_only: nothing can be written, though there is an upper.
        nosuid: setuid, setgid and file capabilities do not count.
        nodev: device nodes are none.
        quota: most bytes that may be written; 0 for no limit.
        owner: what it belongs to.
        fill: whether the rest of the image is to be fetched when there is time; for the record.
        layers: how many layers of the image these are; None: all; for the record.
    """

    path: str
    image: str
    upper: Path | None = None
    temporary: bool = False
    read_only: bool = False
    nosuid: bool = False
    nodev: bool = True
    quota: int = 0
    owner: str = ""
    fill: bool = True
    layers: int | None = None


class _How(NamedTuple):
    source: str
    read_only: bool
    nosuid: bool
    nodev: bool


class NodeMounts:
    """The mounts of a node.

    Args:
        places: of the node.
        on_unused: told of a tree (hex) whose last mount is gone.
    """

    def __init__(self, places: NodePlaces, on_unused: Callable[[str], None]) -> None:
        self._places = places
        self._on_unused = on_unused
        self._lazy = _lazy_device(places)  # there before its workers, and after them
        self._lock = threading.RLock()
        self._trees = threading.Lock()
        self._making: set[str] = set()
        self._taken: set[tuple[int, int]] = set()  # directories of uppers that are about to be mounted: device, inode
        self._records = {record.id: record for record in read_records(places.mounts, MountRecord)}

    # -- making ------------------------------------------------------------------------------------------------

    def make(self, source: Source, metadata: Path, wish: MountWish) -> tuple[MountRecord, int]:
        """Make a mount, detached, and write it down. Follow with `attached`, or with `abandon`.

        Args:
            source: its tree.
            metadata: the tree's metadata image.

        Returns:
            the record, and a descriptor of the mount; the caller closes it.

        Raises:
            DeniedError: the upper names what it must not.
            UnsupportedError: the kernel, or the upper's file system, cannot.
            BusyError: the upper is in use.
            OSError: it cannot be mounted.
        """
        identity = secrets.token_hex(_ID_BYTES)
        with self._lock:
            self._making.add(identity)
        try:
            self._mount_tree(source.record.tree, metadata)
            with self._upper(identity, source, wish) as upper:
                fd = self._open(identity, source.record.tree, upper, wish)
                try:
                    record = self._new_record(identity, source, upper, wish, os.fstat(fd).st_dev)
                    self._write(record)
                except BaseException:
                    os.close(fd)
                    raise
        except BaseException:
            self._remove_temporary(identity)
            with self._lock:
                self._making.discard(identity)
            self._drop_unused()
            raise
        return record, fd

    def attached(self, record: MountRecord) -> MountRecord:
        """Note that a mount is in its place."""
        record = replace(record, attached=True)
        self._write(record)
        with self._lock:
            self._making.discard(record.id)
        return record

    def abandon(self, record: MountRecord) -> None:
        """Forget a mount that was not put into its place. Its descriptor is closed already."""
        with self._lock:
            self._making.discard(record.id)
        self._forget(record)
        self._drop_unused()

    @contextlib.contextmanager
    def expecting(self) -> Iterator[None]:
        """No tree is taken for unused meanwhile: one of them is about to be mounted."""
        token = f"expected {secrets.token_hex(_ID_BYTES)}"
        with self._lock:
            self._making.add(token)
        try:
            yield
        finally:
            with self._lock:
                self._making.discard(token)

    def drop(self, tree: str) -> None:
        """Tell that a tree is not used, if it is not: perhaps nothing came of its mount."""
        self._drop_unused()
        with self._lock:
            is_used = bool(self._making) or tree in self.trees_in_use()
        if not is_used:
            self._on_unused(tree)

    def _open(self, identity: str, tree: str, upper: Path | None, wish: MountWish) -> int:
        places = self._places
        data = (places.objects, places.lazy / "fetch", places.fetched, places.lazy / "fail")
        layers = kernel.Layers(
            places.tree_mounts / tree,
            data,
            None if upper is None else upper / UPPER,
            None if upper is None else upper / "work",
        )
        how = _How(f"{identity}:{wish.image}", upper is None or wish.read_only, wish.nosuid, wish.nodev)
        try:
            return kernel.open_overlay(layers, **how._asdict())
        except UnsupportedError:
            return self._open_old(layers, identity, how)

    def _open_old(self, layers: kernel.Layers, identity: str, how: _How) -> int:
        """The same on kernels that make no overlay before it is mounted: it is, for a moment."""
        at = self._places.run / f"new-{identity}"
        at.mkdir(mode=0o700)
        try:
            kernel.mount_overlay(layers, at, **how._asdict())
            try:
                return clone_mount(at)
            finally:
                kernel.unmount_kernel(at, force=True)
        finally:
            at.rmdir()

    @contextlib.contextmanager
    def _upper(self, identity: str, source: Source, wish: MountWish) -> Iterator[Path | None]:
        """The directory of an upper, ours alone until the mount is written down. If that fails nothing is left that was
        not there before."""
        if wish.upper is None and not wish.temporary:
            yield None
            return
        directory = self._places.containers / identity if wish.upper is None else wish.upper
        made = [path for path in (directory, *directory.parents) if not path.exists()]
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.stat()
        key = (status.st_dev, status.st_ino)
        was_empty = not any(directory.iterdir())
        if wish.upper is not None:
            self._take_upper(directory, key)
        try:
            self._prepare_upper(directory, source, wish)
            yield directory
        except BaseException:
            if was_empty:
                _empty(directory)
            for path in made:
                with contextlib.suppress(OSError):
                    path.rmdir()
            raise
        finally:
            with self._lock:
                self._taken.discard(key)

    def _take_upper(self, directory: Path, key: tuple[int, int]) -> None:
        with self._lock:
            if key in self._taken:
                raise BusyError(f"{directory} is in use: it is being mounted")
            self._taken.add(key)
        try:
            self._check_free(directory, key)
        except BaseException:
            with self._lock:
                self._taken.discard(key)
            raise

    def _prepare_upper(self, directory: Path, source: Source, wish: MountWish) -> None:
        self._note_image(directory, source, wish)
        if wish.quota:
            # A number that a directory has been given stays with what is in it.
            project = quota.project_of(directory) or _FIRST_PROJECT | secrets.randbits(30)
            quota.set_quota(directory, wish.quota, project)
        make_work(directory / "work")
        if (directory / UPPER).exists():
            check_upper(directory / UPPER, source.tree, devices=wish.nodev)
        else:
            make_upper(directory / UPPER, source.tree)

    def _check_free(self, upper: Path, key: tuple[int, int]) -> None:
        for pruned in (False, True):
            kept = [record for record in self.all() if record.upper and not record.temporary]
            users = [record for record in kept if record.upper == str(upper) or _key(record.upper) == key]
            if not users:
                return
            if pruned:
                raise BusyError(f"{upper} is in use: it is mounted at {users[0].path}")
            self.prune()

    def _note_image(self, directory: Path, source: Source, wish: MountWish) -> None:
        """Note of which image an upper is; that is also how one that was used before is known.

        Raises:
            InvalidError: it is of another image, or none of ours.
        """
        record = source.record
        tree = Digest("blake3", bytes.fromhex(record.tree))
        if find_upper(directory) is not None or (directory / NAME).exists():
            found = read_upper_info(directory / UPPER)
            if found.tree != tree:
                reason = f"is of another image, {found.image or found.repository}, or of another version of it"
                raise InvalidError(str(directory), reason)
            return
        if any(found.name != PART for found in directory.iterdir()):
            raise InvalidError(str(directory), "is neither empty nor what a kernel mount has written")
        if wish.upper is None:
            (directory / _TEMPORARY).touch()
        manifest = Digest.parse(record.manifest) if record.manifest else None
        # Of the first layers of an image only the tree is said: committed over the image it would be another one.
        image = "" if manifest is None else wish.image
        info = UpperInfo(record.repository, record.url, tree, image, manifest)
        info.write(directory, durable=wish.upper is not None)

    def _mount_tree(self, tree: str, metadata: Path) -> None:
        """See that a metadata image is mounted, once."""
        at = self._places.tree_mounts / tree
        with self._trees:
            at.mkdir(mode=0o700, exist_ok=True)
            if not os.path.ismount(at):
                kernel.mount_erofs(metadata, at)

    def _new_record(
        self, identity: str, source: Source, upper: Path | None, wish: MountWish, device: int
    ) -> MountRecord:
        return MountRecord(
            id=identity,
            path=wish.path,
            image=wish.image,
            tree=source.record.tree,
            upper="" if upper is None else str(upper),
            temporary=wish.upper is None and upper is not None,
            read_only=upper is None or wish.read_only,
            since=uptime_s(),
            device=f"{os.major(device)}:{os.minor(device)}",
            quota=wish.quota,
            owner=wish.owner,
            fill=wish.fill,
            lazy=self._lazy,
            layers=wish.layers,
        )

    # -- listing and removing ----------------------------------------------------------------------------------

    def all(self) -> list[MountRecord]:
        """The records, oldest first."""
        with self._lock:
            return sorted(self._records.values(), key=lambda record: record.since)

    def made(self) -> list[MountRecord]:
        """The records of those that are not just being made, oldest first."""
        with self._lock:
            return [record for record in self.all() if record.id not in self._making]

    def is_cut_off(self, record: MountRecord) -> bool:
        """Whether a mount asks a lazy mount that nobody serves any more: all of its node had ended."""
        return record.lazy not in ("", self._lazy)

    def find(self, name: str) -> MountRecord:
        """The mount at a path, or of an id.

        Raises:
            NotFoundError: there is none.
        """
        for record in reversed(self.all()):
            if name in (record.path, record.id):
                return record
        raise NotFoundError(name)

    def at(self, name: str) -> list[MountRecord]:
        """The mounts at a path, or of an id: several, if they are upon each other."""
        with self._lock:
            return [record for record in self._records.values() if name in (record.path, record.id)]

    def trees_in_use(self) -> set[str]:
        """Trees that are mounted."""
        with self._lock:
            return {record.tree for record in self._records.values()}

    def prune(self) -> list[MountRecord]:
        """Clean up after mounts that are gone from every mount namespace."""
        with self._lock:
            candidates = [one for one in self._records.values() if one.id not in self._making]
        # Looked for after that, and without the lock: what a container has written may take long to remove.
        alive = mounts_alive() if candidates else set()
        gone = [one for one in candidates if one.id not in alive]
        for record in gone:
            self._forget(record)
        self._drop_unused()
        return gone

    def prune_one(self, identity: str) -> list[MountRecord]:
        """Clean up after a mount that was just unmounted; as `prune`, but the mounts of the machine are only looked at
        if the file system is still there: some mount namespace, or some program, may have it."""
        with self._lock:
            record = None if identity in self._making else self._records.get(identity)
        if record is None or not _is_gone(record):
            return self.prune()
        self._forget(record)
        self._drop_unused()
        return [record]

    def remove_orphans(self) -> None:
        """At the start of a node: remove what mounts of an earlier one have left, after a crash or a boot."""
        self.prune()
        # In this order: one that is being made now is noted before its directory is there.
        found = list(self._places.containers.iterdir())
        with self._lock:
            known = self._records.keys() | self._making | mounts_alive()  # those of a node with another RUN, too
        for directory in found:
            if directory.name not in known and (directory / _TEMPORARY).exists():
                remove_tree(directory, last=_TEMPORARY)

    def _forget(self, record: MountRecord) -> None:
        with self._lock:
            self._records.pop(record.id, None)
            (self._places.mounts / f"{record.id}.json").unlink(missing_ok=True)
        if record.temporary:
            self._remove_temporary(record.id)

    def _remove_temporary(self, identity: str) -> None:
        remove_tree(self._places.containers / identity, last=_TEMPORARY)

    def _drop_unused(self) -> None:
        """Unmount the metadata images of trees that are mounted no more, and tell."""
        with self._trees:
            used = self.trees_in_use()  # one that goes out of use meanwhile is whoever's who has it go
            for at in list(self._places.tree_mounts.iterdir()):
                if at.name in used:
                    continue
                with self._lock:
                    if self._making or at.name in self.trees_in_use():
                        continue
                with contextlib.suppress(OSError, BusyError):
                    if os.path.ismount(at):
                        kernel.unmount_kernel(at, force=True)
                    at.rmdir()
                self._on_unused(at.name)

    def _write(self, record: MountRecord) -> None:
        write_record(self._places.mounts / f"{record.id}.json", record)
        with self._lock:
            self._records[record.id] = record


def _lazy_device(places: NodePlaces) -> str:
    """The lazy mount that is there. A dead one keeps its number for as long as an overlay has it as a layer."""
    point = mounted_at(resolve(places.lazy.parent) / places.lazy.name)
    return "" if point is None else "{}:{}".format(*point.device)


def _key(directory: str) -> tuple[int, int] | None:
    """What tells a directory from all others, whatever it is called: device, inode."""
    try:
        status = os.stat(directory)  # noqa: PTH116 - much faster, and there may be hundreds
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _is_gone(record: MountRecord) -> bool:
    major, _, minor = record.device.partition(":")
    return major.isdecimal() and minor.isdecimal() and is_gone((int(major), int(minor)))


def _empty(directory: Path) -> None:
    for path in list(directory.iterdir()):
        if path.is_dir() and not path.is_symlink():
            remove_tree(path)
        else:
            path.unlink(missing_ok=True)
