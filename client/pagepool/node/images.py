"""What a mount needs of an image, on this node: its tree file and its metadata image, fetched once and kept.

Owns STATE/trees and STATE/images. A tree file is named by its digest; a metadata image by its tree, and by its own
digest, with which it is compared before each first mount: it may have been torn by a loss of power. What a name of an
image meant when it was last resolved is noted, so that an image that is here can be mounted while its service is gone.

Files have the time of their last use. Those that no known tree needs are kept within a bound, and so are notes: what
was used longest ago goes.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from pagepool.digest import Digest, blake3_raw
from pagepool.errors import CorruptError, DigestMismatchError, InvalidError, ResponseError, UnreachableError
from pagepool.image.treefile import TreeFile
from pagepool.node.source import is_down
from pagepool.oci import parse_config
from pagepool.transport import RegistryClient
from pagepool.transport.trees import TreeClient

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from pagepool.node.links import Links
    from pagepool.node.places import NodePlaces
    from pagepool.oci import Platform
    from pagepool.transport import Session
    from pagepool.transport.making import Patience

MOST_UNUSED: Final = 1 << 30
"""Bytes of files that no known tree needs."""
MOST_NOTES: Final = 64 << 20
"""Bytes on the disk of what is noted of images, their configurations among it."""
_TORN: Final = (OSError, ValueError, KeyError, TypeError, InvalidError)
"""What comes of a note that is not there, or that was torn by a loss of power: it says nothing."""
_USED_S: Final = 3600.0
"""What was used within that time stays: a mount may be under way."""

log = logging.getLogger("pagepool.node")


@dataclass(frozen=True, slots=True)
class Resolved:
    """An image, resolved.

    Args:
        tree: of its file system, or of that of its first layers.
        manifest: of its manifest, "" if it is not known.
        offline: whether the service could not be asked.
    """

    tree: Digest
    manifest: str
    offline: bool = False


class Images:
    """The tree files and metadata images of a node. Thread-safe.

    Args:
        places: of the node.
        links: told how long tree files take.
    """

    def __init__(self, places: NodePlaces, links: Links) -> None:
        self._links = links
        self._trees = places.tree_files
        self._notes = places.state / "images"
        self._lock = threading.Lock()
        self._noted: dict[Path, bytes] = {}
        self._verified: dict[Path, tuple[int, ...]] = {}
        self._locks: dict[str, threading.Lock] = {}

    def resolve(
        self,
        session: Session,
        repository: str,
        target: str,
        platform: Platform | None,
        wait_s: float,
        patience: Patience | None = None,
        layers: int | None = None,
    ) -> Resolved:
        """What a name means now; if the service is gone, what it meant last, if that image is here.

        Args:
            wait_s: how long to wait while the image's layers are read.
            patience: how long for its tree, if it has to be made first.
            layers: of how many layers the tree is, counted from the lowest; None: of all.

        Raises:
            PagepoolError: as `TreeClient.resolve`.
        """
        note = self._note(session.where, repository, target, platform, layers)
        try:
            state = TreeClient(session).resolve(repository, target, platform, wait_s, patience, layers)
        except (UnreachableError, ResponseError) as error:
            if not is_down(error):
                raise
            with contextlib.suppress(*_TORN):
                return _read_note(note, offline=True)
            raise
        resolved = Resolved(state.tree, str(state.image))
        data = json.dumps({"tree": str(state.tree), "manifest": str(state.image)}).encode()
        with self._alone(note.name):
            if self._noted.get(note) != data or not _touch(note):
                with contextlib.suppress(OSError):
                    self._notes.mkdir(mode=0o700, exist_ok=True)
                    _replace(note, data)
                    self._noted[note] = data
        return resolved

    def noted(
        self, session: Session, repository: str, target: str, platform: Platform | None, layers: int | None = None
    ) -> Resolved | None:
        """What a name meant last, without asking the service; None if that, or a file of it, is not here."""
        with contextlib.suppress(*_TORN):
            found = _read_note(self._note(session.where, repository, target, platform, layers))
            here = (self._trees / found.tree.hex).exists() and any(self._trees.glob(f"{found.tree.hex}.*.erofs"))
            return found if here else None
        return None

    def tree(self, session: Session, repository: str, tree: Digest) -> None:
        """See that a tree file is in its place, and what it should be. It is read whole once by this process.

        Raises:
            PagepoolError: it is not here, and cannot be fetched.
        """
        path = self._trees / tree.hex
        with self._alone(path.name):
            if self._is_verified(path):
                self._note_use(path)
                return
            try:
                TreeFile.open(path, tree.raw).close()
            except FileNotFoundError:
                self._fetch(session, repository, tree, path)
            except (CorruptError, DigestMismatchError) as error:
                log.warning("the tree file %s is fetched again: %s", path.name, error)
                self._fetch(session, repository, tree, path)
            self._note_use(path)

    def _fetch(self, session: Session, repository: str, tree: Digest, path: Path) -> None:
        begun = time.monotonic()
        with _replaced(path) as out:
            TreeClient(session).fetch_into(repository, tree, out)
            size = out.tell()
        self._links.note(session.where, size, time.monotonic() - begun)

    def metadata(self, session: Session, repository: str, tree: Digest, patience: Patience | None = None) -> Path:
        """The metadata image of a tree, verified. It is read whole once by this process.

        Args:
            patience: how long to wait for it, if the service has to make it first.

        Raises:
            PagepoolError: it is not here, and cannot be fetched.
        """
        with self._alone(f"{tree.hex}.erofs"):
            for path in sorted(self._trees.glob(f"{tree.hex}.*.erofs")):
                if self._is_verified(path) or blake3_raw(path.read_bytes()).hex() == path.name.split(".")[1]:
                    self._note_use(path)
                    return path
                log.warning("the metadata image %s is damaged, and fetched again", path.name)
                path.unlink(missing_ok=True)
            part = self._trees / f".{tree.hex}.{os.getpid()}.erofs"
            try:
                with part.open("wb") as out:
                    digest = TreeClient(session).fetch_erofs(repository, tree, out, patience)
                path = self._trees / f"{tree.hex}.{digest.hex}.erofs"
                part.rename(path)
            finally:
                part.unlink(missing_ok=True)
            return path

    def config(self, session: Session, repository: str, manifest: str) -> str:
        """The configuration of an image, as it is stored.

        Args:
            manifest: digest of its manifest.

        Raises:
            PagepoolError: it is not here, and cannot be fetched.
        """
        path = self._notes / f"{Digest.parse(manifest).hex}.config"
        with self._alone(path.name):
            return self._config(session, repository, manifest, path)

    def _config(self, session: Session, repository: str, manifest: str, path: Path) -> str:
        with contextlib.suppress(*_TORN):
            found = path.read_bytes()
            parse_config(found)
            _touch(path)
            return found.decode()
        data = RegistryClient(session).get_config(repository, manifest)
        parse_config(data)
        with contextlib.suppress(OSError):
            self._notes.mkdir(mode=0o700, exist_ok=True)
            _replace(path, data)
        return data.decode()

    def forget_unused(self, needed: Collection[str], most: int = MOST_UNUSED) -> None:
        """Remove the files of trees that were used longest ago, and what was being fetched when a worker was killed.

        Args:
            needed: trees (hex) whose files stay: those that are mounted, or were within a day.
            most: bytes of all others, which may stay.
        """
        until = time.time() - _USED_S
        found = []
        for path in filter(Path.is_file, self._trees.iterdir()):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                if path.name.startswith("."):
                    self._remove_old(path, until)
                elif path.name.partition(".")[0] not in needed:
                    found.append((status.st_mtime, status.st_size, path))
        left = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if left > most and self._remove_old(path, until):
                left -= size

    def forget_notes(self, needed: Collection[str], most: int = MOST_NOTES) -> None:
        """Remove what is noted of images, as `forget_unused` does.

        Args:
            needed: trees, and digests of manifests (hex), whose notes stay in any case.
            most: bytes on the disk of all, with these.
        """
        until = time.time() - _USED_S
        found = []
        with contextlib.suppress(FileNotFoundError):
            for path in self._notes.iterdir():
                with contextlib.suppress(FileNotFoundError):
                    status = path.stat()
                    if path.name.startswith("."):
                        self._remove_old(path, until)
                    else:
                        found.append((status.st_mtime, status.st_blocks * 512, path))
        left = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if left > most and not _is_noted(path, needed) and self._remove_old(path, until):
                left -= size

    def _remove_old(self, path: Path, until: float) -> bool:
        """Remove a file unless it was used since. Whether it is gone."""
        with self._alone(path.name if path.suffix != ".erofs" else f"{path.name.partition('.')[0]}.erofs"):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime >= until:
                    return False
                path.unlink()
            self._verified.pop(path, None)
            self._noted.pop(path, None)
            return True

    def _note_use(self, path: Path) -> None:
        """A file was verified, and is about to be used."""
        with contextlib.suppress(OSError):  # a disk that takes nothing
            os.utime(path)
        self._verified[path] = _identity(path)

    def _is_verified(self, path: Path) -> bool:
        """Whether a file is the one that was verified."""
        before = self._verified.get(path)
        with contextlib.suppress(OSError):
            return before is not None and before == _identity(path)
        return False

    def _note(
        self, where: str, repository: str, target: str, platform: Platform | None, layers: int | None = None
    ) -> Path:
        key = "\n".join((where, repository, target, str(platform or "")))
        key += "" if layers is None else f"\n{layers}"
        return self._notes / f"{blake3_raw(key.encode()).hex()[:32]}.json"

    @contextlib.contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """One thread at a time for each file."""
        with self._lock:
            lock = self._locks.setdefault(name, threading.Lock())
        with lock:
            yield


def _read_note(note: Path, *, offline: bool = False) -> Resolved:
    found = json.loads(note.read_text())
    _touch(note)
    return Resolved(Digest.parse(found["tree"]), str(found["manifest"]), offline)


def _touch(path: Path) -> bool:
    """Note that a file is used. Whether it is there."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    except OSError:
        pass  # a disk that takes nothing
    return True


def _is_noted(path: Path, needed: Collection[str]) -> bool:
    """Whether a file is about one of these trees or manifests."""
    if path.suffix == ".config":
        return path.stem in needed
    with contextlib.suppress(*_TORN):
        return Digest.parse(json.loads(path.read_bytes())["tree"]).hex in needed
    return False


def _identity(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _replace(path: Path, data: bytes) -> None:
    with _replaced(path) as out:
        out.write(data)


@contextlib.contextmanager
def _replaced(path: Path) -> Iterator[BinaryIO]:
    """A file that gets its name at the end of the block; if that raises nothing is left of it."""
    part = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        with part.open("wb") as out:
            yield out
        part.rename(path)
    finally:
        part.unlink(missing_ok=True)
