"""Files about trees in a directory that all workers share: tree files, and what leads to them.

    HEX                    tree file, by the digest of the tree
    images/HEX             of a manifest, the tree that its layers became; or why they become none
    images/HEX-COUNT       the same of its first so many layers
    links/HEX-HEX          of a tree and a repository (its name hashed), the origins it came from, one a line

All of it is a cache: tree files as `TreeStore` keeps them, read whole and not mapped, so that what happens to a file
afterwards neither reaches a client nor ends a worker. The others are renamed into place, too; but for a link, which
grows by lines, and whose torn lines are skipped; earlier versions skip those of `treeorigins` that they do not know,
and know nothing of the files of such names. Nothing is synced; all of it is made again from the store.

The owner's alone: whoever could write here could give a repository another's trees. Any number of processes and
threads.
"""

from __future__ import annotations

import contextlib
import os
import re
from typing import TYPE_CHECKING

from pagepool.digest import blake3_raw
from pagepool.errors import InvalidError
from pagepool.image.treestore import TreeStore, list_files, remove_file, replace_file
from pagepool_service.treeorigins import TreeOrigin

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pagepool.image.treefile import TreeFile

_TREE = re.compile(r"[0-9a-f]{64}")
_MOST_NOTES = 8192  # files each of images and links
_PROBLEM = "unmountable 1: "  # a version that merges more counts on
_LONGEST_PROBLEM = 1000
_MOST_ORIGINS = 32  # of a repository, for one tree


class TreeCache(TreeStore):
    """The files. Nothing it does fails: what cannot be read is not there, what cannot be written is not kept."""

    def names(self) -> list[bytes]:
        """The raw digests of the trees of images whose files are here; no others, which would count as images."""
        parts = self._parts()
        found = (bytes.fromhex(path.name) for path in list_files(self._directory) if _TREE.fullmatch(path.name))
        return [tree for tree in found if tree not in parts]

    def trees(self) -> Iterator[TreeFile]:
        """Those that `names` says, one after the other; the caller closes each."""
        for name in self.names():
            if (found := self.load(name)) is not None:
                yield found

    def tree_of(self, origin: TreeOrigin) -> bytes | None:
        """The raw digest of the tree that was made of something."""
        try:
            return bytes.fromhex(self._image_path(origin).read_text("ascii"))
        except (OSError, ValueError):
            return None

    def note_tree(self, origin: TreeOrigin, tree: bytes) -> None:
        """Remember which tree something became."""
        path = self._image_path(origin)
        if replace_file(path, tree.hex().encode()):
            _drop_oldest(path.parent)

    def problem_of(self, origin: TreeOrigin) -> str:
        """Why layers cannot be merged, as this version merges them; "" if that is not known."""
        try:
            text = self._image_path(origin).read_text()
        except (OSError, ValueError):
            return ""
        return text.removeprefix(_PROBLEM) if text.startswith(_PROBLEM) else ""

    def note_problem(self, origin: TreeOrigin, reason: str) -> None:
        """Remember that layers cannot be merged, and why."""
        path = self._image_path(origin)
        if replace_file(path, f"{_PROBLEM}{reason[:_LONGEST_PROBLEM]}".encode(errors="replace")):
            _drop_oldest(path.parent)

    def origins(self, name: str, tree: bytes) -> list[TreeOrigin]:
        """What of a repository a tree came from, the last one first; it may have lost the manifests since."""
        found: list[TreeOrigin] = []
        try:
            lines = self._link_path(name, tree).read_bytes().decode("ascii", "replace").split("\n")
        except OSError:
            return []
        for line in lines:
            with contextlib.suppress(InvalidError):
                found.append(TreeOrigin.parse(line))
        return list(dict.fromkeys(reversed(found)))

    def link(self, name: str, tree: bytes, origin: TreeOrigin) -> None:
        """Remember that a repository has a tree through a manifest of it."""
        known = self.origins(name, tree)
        if origin in known:
            return
        path = self._link_path(name, tree)
        if len(known) >= _MOST_ORIGINS:
            kept = [origin, *known[: _MOST_ORIGINS // 2]]
            replace_file(path, b"".join(f"{one}\n".encode() for one in reversed(kept)))
        elif known:
            _append(path, f"\n{origin}\n".encode())  # what is before it may be torn
        elif replace_file(path, f"{origin}\n".encode()):
            _drop_oldest(path.parent)

    def _parts(self) -> set[bytes]:
        """The trees of first layers that are not those of whole images, too."""
        notes = [path for path in list_files(self._directory / "images") if not path.name.startswith(".")]
        if not any("-" in path.name for path in notes):
            return set()
        parts: set[bytes] = set()
        wholes: set[bytes] = set()
        for path in notes:
            with contextlib.suppress(OSError, ValueError):
                (parts if "-" in path.name else wholes).add(bytes.fromhex(path.read_text("ascii")))
        return parts - wholes

    def _image_path(self, origin: TreeOrigin) -> Path:
        return self._directory / "images" / origin.file_name

    def _link_path(self, name: str, tree: bytes) -> Path:
        return self._directory / "links" / f"{tree.hex()}-{blake3_raw(name.encode()).hex()}"


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
    files = list_files(directory)
    if len(files) <= _MOST_NOTES:
        return
    ages: list[tuple[int, Path]] = []
    for path in files:
        with contextlib.suppress(OSError):
            ages.append((path.stat().st_mtime_ns, path))
    for _, path in sorted(ages)[: _MOST_NOTES // 2]:
        remove_file(path)
