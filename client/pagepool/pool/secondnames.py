"""Second names of objects: links below `fetched/`, under which an overlay finds what was brought in during its lookup.

Made for a while, and taken away together with the first name. What was linked within the last `fresh_s` seconds is
*fresh*: an overlay is about to look for it. Thread-safe; a crash leaves links, which the next process takes up.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from pagepool import linux
from pagepool.pool.layout import OBJECTS, cost, object_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

LINKED_S: Final = 60.0
"""A second name is kept for so long, unless room is needed."""


class SecondNames:
    """The links.

    Args:
        fetched: directory of them, on the pool's file system.
        fresh_s: see the module.
        clock: in seconds; never goes back.
    """

    def __init__(self, fetched: Path, fresh_s: float, clock: Callable[[], float]) -> None:
        self._fetched = self._objects = fetched
        self._clock = clock
        self.fresh_s = fresh_s
        self.lock = threading.RLock()
        self._links = dict.fromkeys(self._linked(), clock())
        self._young: OrderedDict[bytes, tuple[float, int]] = OrderedDict()
        self._young_bytes = 0

    def attach(self, path: Path) -> None:
        """Belong to a pool from now on.

        Raises:
            OSError: directories cannot be made.
        """
        self._objects = path / OBJECTS
        for number in range(256):  # now, since the disk may be full when they are needed
            (self._fetched / f"{number:02x}").mkdir(mode=0o700, exist_ok=True)

    @property
    def fresh(self) -> int:
        """Bytes of what overlays are about to look for."""
        with self.lock:
            since = self._clock() - self.fresh_s
            while self._young:
                digest, (linked, charged) = next(iter(self._young.items()))
                if linked >= since:
                    break
                del self._young[digest]
                self._young_bytes -= charged
            return self._young_bytes

    def link(self, digest: bytes) -> bool:
        """Give an object its second name, for `LINKED_S` from now on. Whoever calls this holds the object meanwhile.

        Returns:
            False if the pool does not have it, or the disk is full.

        Raises:
            OSError: it cannot be linked.
        """
        name = object_name(digest)
        first, second = self._objects / name, self._fetched / name
        with self.lock:
            try:
                if not _same_file(first, second):
                    second.unlink(missing_ok=True)  # of an object that went some other way
                    os.link(first, second)
            except FileNotFoundError:
                return False
            except OSError as error:
                if linux.is_full(error):
                    return False
                raise
            self._note_link(digest, cost(second.stat().st_size))
        return True

    def _note_link(self, digest: bytes, charged: int) -> None:
        now = self._links[digest] = self._clock()
        self._young_bytes += charged - self._young.pop(digest, (now, 0))[1]
        self._young[digest] = now, charged

    def unlink(self, digest: bytes) -> None:
        """Take an object's second name away."""
        with self.lock:
            self._links.pop(digest, None)
            self._young_bytes -= self._young.pop(digest, (0.0, 0))[1]
            with suppress(FileNotFoundError):
                (self._fetched / object_name(digest)).unlink()

    def unlink_old(self) -> int:
        """Take second names away that were made a while ago; the pool has these objects under their first ones.

        Returns:
            how many.
        """
        now = self._clock()
        with self.lock:
            old = [digest for digest, since in self._links.items() if since + LINKED_S < now]
            for digest in old:
                self.unlink(digest)
        return len(old)

    def age(self, digest: bytes, inode: int) -> float | None:
        """The age in seconds of an object's second name; None if it has none."""
        try:
            found = (self._fetched / object_name(digest)).lstat().st_ino
        except FileNotFoundError:
            return None
        if found != inode:
            return None
        return self._clock() - self._links.get(digest, float("-inf"))

    def _linked(self) -> Iterator[bytes]:
        for directory in sorted(self._fetched.iterdir()):
            for found in directory.iterdir():
                with suppress(ValueError):
                    yield bytes.fromhex(directory.name + found.name)


def _same_file(first: Path, second: Path) -> bool:
    try:
        return first.samefile(second)
    except FileNotFoundError:
        return False
