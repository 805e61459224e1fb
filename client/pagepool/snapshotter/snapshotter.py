"""What containerd asks of a snapshotter, as its package snapshots describes it.

Layers of images that a node can mount are *claimed*: nothing of them is downloaded or unpacked, and a container on the
last one gets a mount of the node's. All others are unpacked by containerd into directories, as by its own overlayfs
snapshotter, and stacked by overlayfs; also upon layers that were claimed.

    ROOT/snapshots.db          what there is (`catalogue`)
    ROOT/snapshots/ID/fs,work  of one that is unpacked, or written to: upper and work directory of an overlay
    ROOT/snapshots/ID/written  of a container on a claimed layer: what the node's mount keeps there (`upper`, `work`)
    ROOT/snapshots/ID/rootfs   where that is mounted
    ROOT/images/ID/…           where an image is mounted

A directory is there before its record, and goes after it; `cleanup` removes what a kill has left.

Thread-safe. Blocks.
"""

from __future__ import annotations

import fcntl
import logging
import os
import stat
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pagepool.errors import BusyError, InvalidError, NotFoundError, PagepoolError
from pagepool.linux.directories import remove_tree
from pagepool.mount.mountinfo import mounted_below
from pagepool.snapshotter.catalogue import TARGET, Catalogue, Kind, SnapshotExistsError, SnapshotStateError
from pagepool.snapshotter.claims import MANIFEST, REFERENCE
from pagepool.snapshotter.imagemounts import ROOT, WRITTEN
from pagepool.snapshotter.turns import Turns
from pagepool.snapshotter.usage import measure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from pagepool.snapshotter.catalogue import ImageRecord, Snapshot
    from pagepool.snapshotter.claims import Claims
    from pagepool.snapshotter.imagemounts import ImageMounts

log = logging.getLogger("pagepool.snapshotter")

_AGAIN_S: Final = 60.0
_UPPER: Final = "upper"  # as `pagepool.upper` calls it
_SPECIAL: Final = frozenset(":,\\")


class LayersGoneError(NotFoundError):
    """Layers of an image that its service does not have any more, and that are not mounted.

    Args:
        name: of the image.
        reason: what the service said.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name)
        self.args = (
            f"layers of {name} are needed, and its service has them no more: {reason}; "
            "remove that image from containerd, and pull again",
        )


@dataclass(frozen=True, slots=True)
class Mount:
    """What containerd is to mount.

    Args:
        type: of file system, or ``bind``.
        source: of what.
        options: as for mount(8).
    """

    type: str
    source: str
    options: tuple[str, ...]


class Snapshotter:
    """A snapshotter. Close it.

    Args:
        root: where it keeps everything; made if it is not there.
        claims: finds images of layers.
        make_mounts: makes what mounts images, given the directory below which they are to be.

    Raises:
        BusyError: another process has it.
        InvalidError: it cannot be such a directory, or was written by another version.
    """

    def __init__(self, root: Path, claims: Claims, make_mounts: Callable[[Path], ImageMounts]) -> None:
        if _SPECIAL & set(str(root)):
            raise InvalidError(str(root), "a comma, colon or backslash cannot be in the name of a layer")
        self._snapshots = root / "snapshots"
        for directory in (root, self._snapshots, root / "images"):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._held = _hold(root / "lock")
        database = root / "snapshots.db"
        if not database.exists() or not database.stat().st_size:
            _check_empty(root)
        self._catalogue = Catalogue(database)
        self._claims = claims
        self._mounts = make_mounts(root / "images")
        self._tidying = threading.RLock()
        """Held while records of images are made, and while mounts without one are taken away."""
        self._turns: Turns[tuple[str, str, str]] = Turns()
        """Held, of an image, while it is mounted for a claim."""
        self._failed: dict[tuple[str, str], float] = {}  # reference and manifest -> until when, by time.monotonic

    def close(self) -> None:
        """Let go of it. What is mounted stays."""
        self._catalogue.close()
        os.close(self._held)

    # -- looking ---------------------------------------------------------------------------------------------

    def stat(self, key: str) -> Snapshot:
        """A snapshot.

        Raises:
            SnapshotUnknownError: there is none.
        """
        return self._catalogue.stat(key)

    def find(self, filters: Iterable[str]) -> list[Snapshot]:
        """All snapshots that one of some filters means.

        Raises:
            FilterInvalidError: a filter cannot be understood.
        """
        return self._catalogue.find(filters)

    def usage(self, key: str) -> tuple[int, int]:
        """What a snapshot takes by itself: bytes and inodes. What is in the node's pool is nobody's alone.

        Raises:
            SnapshotUnknownError: there is none.
        """
        found = self._catalogue.stat(key)
        if found.kind is Kind.ACTIVE:
            return measure(self._upper(found))
        return found.size, found.inodes

    def mounts(self, key: str) -> list[Mount]:
        """What is to be mounted to use an active snapshot or a view.

        Raises:
            SnapshotUnknownError: there is none.
            SnapshotStateError: it is committed.
            PagepoolError, OSError: its image cannot be mounted.
        """
        found = self._catalogue.stat(key)
        if found.kind is Kind.COMMITTED:
            raise SnapshotStateError(key, "it is committed: there are no mounts of it")
        return self._mounts_of(found.id, found.kind, self._catalogue.ancestors(key), container=found.container)

    # -- changing --------------------------------------------------------------------------------------------

    def prepare(self, key: str, parent: str, labels: Mapping[str, str]) -> list[Mount]:
        """Begin a snapshot that can be written to.

        Raises:
            SnapshotExistsError: what was to be unpacked is here, and need not be; or one of that name.
            SnapshotUnknownError, InvalidError: there is no such parent, or it is not committed.
            PagepoolError, OSError: its image cannot be mounted. Nothing is left.
        """
        target = labels.get(TARGET, "")
        if target and self._is_here(target, parent, labels):
            raise SnapshotExistsError(target, "these layers are here already")
        return self._create(Kind.ACTIVE, key, parent, labels, unpacks=bool(target))

    def view(self, key: str, parent: str, labels: Mapping[str, str]) -> list[Mount]:
        """Begin one that cannot be written to. Raises as `prepare`."""
        return self._create(Kind.VIEW, key, parent, labels)

    def commit(self, key: str, name: str, labels: Mapping[str, str]) -> None:
        """Make an active snapshot a committed one, which others can be upon.

        Raises:
            SnapshotUnknownError: there is none of that key.
            SnapshotStateError: it is not active.
            SnapshotExistsError: there is one of that name.
        """
        found = self._catalogue.stat(key)
        size, inodes = measure(self._upper(found)) if found.kind is Kind.ACTIVE else (0, 0)
        self._catalogue.commit(key, name, labels, size, inodes)
        if found.container:  # nothing is written to it any more
            try:
                self._mounts.unmount(self._directory(found.id) / ROOT)
            except (PagepoolError, OSError) as error:  # it is committed all the same
                log.warning("what was committed as %s is still mounted: %s", name, error)

    def update(self, key: str, labels: Mapping[str, str], mask: Sequence[str]) -> Snapshot:
        """Change labels. Raises as `Catalogue.update`."""
        return self._catalogue.update(key, labels, mask)

    def remove(self, key: str) -> None:
        """Remove a snapshot, and what it has written. What cannot be taken away now, `cleanup` does.

        Raises:
            SnapshotUnknownError: there is none.
            SnapshotStateError: it has children.
        """
        found = self._catalogue.remove(key)
        try:
            if found.image is None:
                self._remove_directory(self._directory(found.id))
            else:
                self._drop_images()
        except (PagepoolError, OSError) as error:
            log.warning("what is left of snapshot %s is removed later: %s", key, error)

    def cleanup(self) -> None:
        """Take away what is of no snapshot any more."""
        with self._tidying:
            kept = self._catalogue.numbers()
            for directory in sorted(self._snapshots.iterdir()):
                if not directory.name.isdecimal() or int(directory.name) not in kept:
                    try:
                        self._remove_directory(directory)
                    except (PagepoolError, OSError) as error:
                        log.warning("%s is not removed: %s", directory, error)
        self._drop_images()

    def keep(self) -> None:
        """See that all images are mounted that snapshots are layers of, and no others."""
        with self._tidying:
            images = self._catalogue.images()
        for image in images:
            try:
                self._mounts.image(image, image.layers)
            except (PagepoolError, OSError) as error:
                log.warning("%s@%s is not mounted: %s", image.repository, image.manifest, error)
        self._drop_images()

    # -- how -------------------------------------------------------------------------------------------------

    def _is_here(self, target: str, parent: str, labels: Mapping[str, str]) -> bool:
        """Whether a chain of layers is unpacked, or is that of an image that is mounted; that is done if it can be.

        What failed is not tried again for each further layer of the same image.
        """
        found = self._catalogue.find_target(target, parent)
        if found is not None and found.image is None:
            return True
        wanted = (labels.get(REFERENCE, ""), labels.get(MANIFEST, ""))
        if time.monotonic() < self._failed.get(wanted, 0.0):
            return False
        try:
            if found is None or found.image is None:
                return self._claim(target, parent, labels)
            # Its mount may be gone, or have never been: a kill leaves a claim that nobody has tried.
            with self._turns.turn(_place(found.image)):
                self._mounts.image(found.image, found.image.layers)
        except (PagepoolError, OSError) as error:
            log.warning("%s is unpacked, and not mounted: %s", wanted[0] or target, error)
            now = time.monotonic()
            self._failed = {key: until for key, until in self._failed.items() if until > now}
            self._failed[wanted] = now + _AGAIN_S
            return False
        return True

    def _claim(self, target: str, parent: str, labels: Mapping[str, str]) -> bool:
        """Take a chain of layers for that of an image, if it is one.

        Raises:
            PagepoolError, OSError: it cannot be mounted. No claim is left.
        """
        below = _chain_of(self._catalogue.stat(parent)) if parent else None
        claim = self._claims.find(target, below, labels)
        if claim is None:
            return False
        # Nobody is to rely on a claim that is taken back: another pull of the image waits.
        with self._turns.turn(_place(claim.image)):
            with self._tidying:
                found, is_new = self._catalogue.claim(target, parent, labels, claim.image, claim.depth)
            if found.image is None:
                return True
            try:
                self._mounts.image(found.image, found.image.layers, asks=True)
            except BaseException:
                if is_new:
                    with suppress(PagepoolError, OSError):
                        self._catalogue.remove(found.name)
                    self._drop_images()
                raise
        return True

    def _create(
        self, kind: Kind, key: str, parent: str, labels: Mapping[str, str], *, unpacks: bool = False
    ) -> list[Mount]:
        container = kind is Kind.ACTIVE and not unpacks and bool(parent) and self._is_claimed(parent)
        with (
            self._tidying,
            self._catalogue.creating(kind, key, parent, labels, container=container) as created,
        ):
            directory = self._directory(created.id)
            if directory.exists():  # a kill has left it before its record was written
                self._remove_directory(directory)
            directory.mkdir(mode=0o700)
            ancestors = list(created.ancestors)
        try:
            if not container and (kind is Kind.ACTIVE or not ancestors):
                self._make_upper(directory, ancestors)
            return self._mounts_of(created.id, kind, ancestors, container=container)
        except BaseException:
            with suppress(PagepoolError, OSError):
                self.remove(key)
            raise

    def _is_claimed(self, name: str) -> bool:
        return self._catalogue.stat(name).image is not None

    def _make_upper(self, directory: Path, ancestors: Sequence[Snapshot]) -> None:
        """The upper and work directory of an overlay. Its root is as that of what is below it."""
        upper = directory / "fs"
        upper.mkdir()
        upper.chmod(0o755)
        (directory / "work").mkdir(mode=0o711)
        if ancestors:
            below = self._lower(ancestors)[0].stat()
            os.chown(upper, below.st_uid, below.st_gid)
            upper.chmod(stat.S_IMODE(below.st_mode))

    def _lower(self, ancestors: Sequence[Snapshot]) -> list[Path]:
        """The directories that show what is in a snapshot's ancestors, the uppermost first."""
        found = []
        for snapshot in ancestors:
            if snapshot.image is not None:  # which has all that is below it
                with _needing(snapshot.image):
                    found.append(self._mounts.image(snapshot.image, snapshot.depth))
                break
            found.append(self._upper(snapshot))
        return found

    def _mounts_of(self, number: int, kind: Kind, ancestors: Sequence[Snapshot], *, container: bool) -> list[Mount]:
        directory = self._directory(number)
        access = "rw" if kind is Kind.ACTIVE else "ro"
        if container:
            claimed = ancestors[0]
            assert claimed.image is not None
            with _needing(claimed.image):
                path = self._mounts.container(claimed.image, claimed.depth, directory)
            return [Mount("bind", str(path), (access, "rbind"))]
        lower = self._lower(ancestors)
        if not lower or (kind is Kind.VIEW and len(lower) == 1):
            source = lower[0] if lower else directory / "fs"
            return [Mount("bind", str(source), (access, "rbind"))]
        options = ["index=off"]
        if any(snapshot.container for snapshot in ancestors):
            # The node's overlay leaves files without content in it, which is in the image below.
            options += ["metacopy=on", "redirect_dir=on"]
        if kind is Kind.ACTIVE:
            options += [f"workdir={directory / 'work'}", f"upperdir={directory / 'fs'}"]
        options.append(f"lowerdir={':'.join(map(str, lower))}")
        return [Mount("overlay", "overlay", tuple(options))]

    def _upper(self, snapshot: Snapshot) -> Path:
        directory = self._directory(snapshot.id)
        return directory / WRITTEN / _UPPER if snapshot.container else directory / "fs"

    def _directory(self, number: int) -> Path:
        return self._snapshots / str(number)

    def _remove_directory(self, directory: Path) -> None:
        self._mounts.unmount(directory / ROOT)
        # What others have mounted there shows what is not ours to remove.
        for point in mounted_below(directory):
            raise BusyError(f"{point.source} is mounted at {point.path}")
        remove_tree(directory)

    def _drop_images(self) -> None:
        with self._tidying:
            self._mounts.drop({str(image.id) for image in self._catalogue.images()})


@contextmanager
def _needing(image: ImageRecord) -> Iterator[None]:
    """Tell what to do where an image's service has it no more. containerd would take that for an unknown snapshot."""
    try:
        yield
    except NotFoundError as error:
        raise LayersGoneError(image.name, str(error)) from error


def _place(image: ImageRecord) -> tuple[str, str, str]:
    return image.server, image.repository, image.manifest


def _chain_of(snapshot: Snapshot) -> str:
    """The chain ID of a committed snapshot: by its label, or by its name, at the end of which containerd puts it."""
    return snapshot.labels.get(TARGET) or snapshot.name.rpartition("/")[2]


def _check_empty(root: Path) -> None:
    """Nothing that is of no snapshot stays in these directories: they must not be another program's.

    Raises:
        InvalidError: they may be.
    """
    for directory in (root / "snapshots", root / "images"):
        if any(directory.iterdir()):
            raise InvalidError(
                str(root), f"there is no snapshots.db, but {directory} is not empty: choose another --root"
            )


def _hold(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise BusyError(f"{path.parent} is in use by another snapshotter") from None
    return descriptor
