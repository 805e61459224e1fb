"""Files about trees in a directory that all workers share: tree files, and what leads to them.

    HEX                    tree file, by the digest of the tree
    images/HEX             of a manifest, the tree that its layers became
    links/HEX-HEX          of a tree and a repository (its name hashed), the manifests it came from, one a line

All of it is a cache: a file may vanish at any moment, and is made again from the store. A name that exists is whole,
because files are renamed into place; but for a link, which grows by lines, and whose torn lines are skipped. Nothing is
synced. A tree file is compared with its digest when it is opened, and is not mapped: what happens to it afterwards must
neither reach a client nor end a worker. So the oldest can be removed at any time, by any worker, beside any reader.

The owner's alone: whoever could write here could give a repository another's trees. A crash leaves temporary files
(their names begin with a dot), which are removed an hour later. Any number of processes and threads.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from typing import TYPE_CHECKING

from pagepool.digest import Digest, blake3_raw
from pagepool.errors import CorruptError, DigestMismatchError, InvalidError
from pagepool.image import TreeFile

if TYPE_CHECKING:
    from pathlib import Path

MAX_BYTES = 256 << 20
"""Of all tree files together."""
_MOST_NOTES = 8192  # files each of images and links
_MOST_MANIFESTS = 32  # of a repository, for one tree
_STALE_S = 3600.0
_TREE = re.compile(r"[0-9a-f]{64}")


class TreeCache:
    """The files. Nothing it does fails: what cannot be read is not there, what cannot be written is not kept.

    Args:
        directory: made when it is needed.
        max_bytes: most bytes of tree files.
    """

    def __init__(self, directory: Path, max_bytes: int = MAX_BYTES) -> None:
        self._directory = directory
        self._max_bytes = max_bytes

    def load(self, digest: bytes) -> TreeFile | None:
        """A tree by its raw digest, read whole; it counts as used."""
        path = self._directory / digest.hex()
        try:
            raw = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        try:
            return TreeFile(raw, digest)
        except (CorruptError, DigestMismatchError):
            _remove(path)  # it is made again
            return None

    def keep(self, digest: bytes, raw: bytes) -> None:
        """Keep a tree file, unless it is larger than all of them may be; the ones used longest ago make room."""
        if len(raw) <= self._max_bytes and _replace(self._directory / digest.hex(), raw):
            self._make_room(self._directory / digest.hex())

    def tree_of(self, manifest: Digest) -> bytes | None:
        """The raw digest of the tree that was made of an image."""
        try:
            return bytes.fromhex(self._image_path(manifest).read_text("ascii"))
        except (OSError, ValueError):
            return None

    def note_tree(self, manifest: Digest, tree: bytes) -> None:
        """Remember which tree an image has."""
        path = self._image_path(manifest)
        if _replace(path, tree.hex().encode()):
            _drop_oldest(path.parent)

    def manifests(self, name: str, tree: bytes) -> list[Digest]:
        """The manifests of a repository that a tree came from, the last one first; it may have lost them since."""
        found: list[Digest] = []
        try:
            lines = self._link_path(name, tree).read_bytes().decode("ascii", "replace").split("\n")
        except OSError:
            return []
        for line in lines:
            with contextlib.suppress(InvalidError):
                found.append(Digest.parse(line))
        return list(dict.fromkeys(reversed(found)))

    def link(self, name: str, tree: bytes, manifest: Digest) -> None:
        """Remember that a repository has a tree through a manifest."""
        known = self.manifests(name, tree)
        if manifest in known:
            return
        path = self._link_path(name, tree)
        if len(known) >= _MOST_MANIFESTS:
            kept = [manifest, *known[: _MOST_MANIFESTS // 2]]
            _replace(path, b"".join(f"{digest}\n".encode() for digest in reversed(kept)))
        elif known:
            _append(path, f"{manifest}\n".encode())
        elif _replace(path, f"{manifest}\n".encode()):
            _drop_oldest(path.parent)

    def _image_path(self, manifest: Digest) -> Path:
        return self._directory / "images" / blake3_raw(str(manifest).encode()).hex()

    def _link_path(self, name: str, tree: bytes) -> Path:
        return self._directory / "links" / f"{tree.hex()}-{blake3_raw(name.encode()).hex()}"

    def _make_room(self, spared: Path) -> None:
        found: list[tuple[int, int, Path]] = []
        total = 0
        for path in _files(self._directory):
            with contextlib.suppress(OSError):  # another worker removed it
                status = path.stat()
                if _TREE.fullmatch(path.name):
                    found.append((status.st_mtime_ns, status.st_size, path))
                    total += status.st_size
                elif path.name.startswith(".") and status.st_mtime < time.time() - _STALE_S:
                    _remove(path)
        for _, size, path in sorted(found):
            if total <= self._max_bytes:
                return
            if path != spared:
                _remove(path)
                total -= size


def _replace(path: Path, data: bytes) -> bool:
    """Put a file into place, whole. Returns whether it could be done."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary.write_bytes(data)
        temporary.rename(path)
    except OSError:
        _remove(temporary)
        return False
    return True


def _append(path: Path, data: bytes) -> None:
    """In one write, so that lines of several processes do not mix."""
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            os.write(fd, data)
        finally:
            os.close(fd)


def _drop_oldest(directory: Path) -> None:
    """Halve the files of a directory once they are too many."""
    files = _files(directory)
    if len(files) <= _MOST_NOTES:
        return
    ages: list[tuple[int, Path]] = []
    for path in files:
        with contextlib.suppress(OSError):
            ages.append((path.stat().st_mtime_ns, path))
    for _, path in sorted(ages)[: _MOST_NOTES // 2]:
        _remove(path)


def _files(directory: Path) -> list[Path]:
    try:
        return [directory / entry.name for entry in os.scandir(directory) if entry.is_file(follow_symlinks=False)]
    except OSError:
        return []


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
