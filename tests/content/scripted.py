"""A tree in memory, and a source of its extents that does what a test says and notes what it was asked for."""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pagepool.digest import blake3_raw
from pagepool.errors import CorruptError, PagepoolError
from pagepool.extents import EXTENT_SIZE
from tests.support.trees import TreeBuilder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pagepool.image.treefile import ObjectInfo, TreeFile


def noise(size: int, seed: int) -> bytes:
    """Bytes of which no two extents are the same."""
    return random.Random(seed).randbytes(size)


def make_tree(files: Mapping[str, bytes]) -> TreeFile:
    """A tree of files."""
    builder = TreeBuilder()
    for path, data in files.items():
        builder.file(path, data)
    return builder.build()


def info_of(tree: TreeFile, data: bytes) -> ObjectInfo:
    """The object that has some content."""
    return tree.object(tree.find_object(blake3_raw(data)))


def extent_names(data: bytes) -> list[bytes]:
    """The digests of the extents of some content."""
    return [blake3_raw(data[start : start + EXTENT_SIZE]) for start in range(0, len(data), EXTENT_SIZE)]


@dataclass
class Source:
    """Brings extents.

    Args:
        asked: what it was asked for, request by request.
        damaged: extents that it does not have right.
        gifts: extents that come with every answer.
        error: what each request ends with, before anything comes.
        before: called at the beginning of each request.
    """

    extents: dict[bytes, bytes]
    asked: list[list[bytes]] = field(default_factory=list)
    damaged: set[bytes] = field(default_factory=set)
    gifts: list[bytes] = field(default_factory=list)
    error: PagepoolError | None = None
    before: Callable[[], object] = lambda: None
    lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def of(cls, *contents: bytes) -> Source:
        """One that has all of some contents."""
        pieces = (data[start : start + EXTENT_SIZE] for data in contents for start in range(0, len(data), EXTENT_SIZE))
        return cls({blake3_raw(piece): piece for piece in pieces})

    def __call__(self, wanted: Sequence[bytes]) -> Iterator[tuple[bytes, memoryview]]:
        """See `Fetch`."""
        with self.lock:
            self.asked.append(list(wanted))
        self.before()
        if self.error is not None:
            raise self.error
        for digest in [*self.gifts, *wanted]:
            if digest not in self.damaged:
                yield digest, memoryview(self.extents[digest])
        for digest in wanted:
            if digest in self.damaged:
                raise CorruptError("extent", digest.hex(), "it is damaged at the server")

    @property
    def names(self) -> list[bytes]:
        """All that it was asked for."""
        return [digest for request in self.asked for digest in request]
