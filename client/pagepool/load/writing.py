"""A private overlay, and a model of what it must hold: every change is read back and compared.

The model has the pages that were written, and knows all others from the image's truth file. Files of the image are
overwritten, new ones made, appended to and cut. It is bounded: once an overlay holds a certain number of pages, all of
it is compared and given up, and a new one begins.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from pagepool.load.truth import PAGE, page_digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from random import Random

    from pagepool.load.access import Opened
    from pagepool.load.truth import Truth

MOST_PAGES: Final = 1024
_FILES: Final = 16
_LARGEST_WRITE: Final = 4 * PAGE
_EMPTY: Final = bytes(PAGE)


@dataclass(slots=True)
class _File:
    """What a file must hold.

    Args:
        base: its number in the truth, whose bytes are below what was written; -1 for a new file.
        size: bytes.
        kept: so many bytes of the image's file still count.
        pages: number -> all of a page that was written to, zeros behind the end of the file.
    """

    base: int
    size: int
    kept: int
    pages: dict[int, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Wrong:
    """A page that is not what it must be: path, offset, and both in words."""

    path: bytes
    offset: int
    expected: str
    found: str


class OverlayModel:
    """What an overlay must hold.

    Args:
        truth: of the image.
        random: what is written, and where.
    """

    def __init__(self, truth: Truth, random: Random) -> None:
        self._truth, self._random = truth, random
        self._files: dict[bytes, _File] = {}
        chosen = {random.randrange(truth.count) for _ in range(_FILES)} if truth.count else set()
        for file in sorted(chosen):
            size = truth.size(file)
            self._files[truth.path(file)] = _File(file, size, size)
        self._new = 0
        self.pages = 0

    @property
    def full(self) -> bool:
        """Whether it is time for a new one."""
        return self.pages >= MOST_PAGES

    def plan_write(self) -> tuple[bytes, int, bytes]:
        """What to write next: path, offset, data."""
        random = self._random
        if not self._files or random.random() < 0.1:
            self._new += 1
            path = b"pagepool-load/written/%d" % self._new
            self._files[path] = _File(-1, 0, 0)
        else:
            path = random.choice(list(self._files))
        file = self._files[path]
        data = random.randbytes(random.randint(1, _LARGEST_WRITE))
        offset = file.size if random.random() < 0.2 else random.randint(0, file.size)
        return path, offset, data

    def plan_cut(self) -> tuple[bytes, int] | None:
        """A file to truncate, and how long it is to be; None if none was written to yet."""
        written = [path for path, file in self._files.items() if file.pages]
        if not written:
            return None
        path = self._random.choice(written)
        return path, self._random.randint(0, self._files[path].size)

    def need(self, path: bytes, offset: int, size: int) -> list[int]:
        """Offsets of pages of the image that a write leaves a part of: to be read before, and given to `learn`."""
        edges = {offset // PAGE, (offset + size - 1) // PAGE}
        file = self._files[path]
        return [page * PAGE for page in sorted(edges) if not self._covers(file, page, offset, size)]

    def need_cut(self, path: bytes, size: int) -> list[int]:
        """The same of a truncation."""
        page, rest = divmod(size, PAGE)
        file = self._files[path]
        return [page * PAGE] if rest and page not in file.pages and page * PAGE < file.kept else []

    def learn(self, path: bytes, offset: int, data: bytes) -> Wrong | None:
        """Take a page of the image as it was read; tell if it is wrong."""
        wrong = self._compare(path, offset, data)
        if wrong is None:
            self._keep(self._files[path], offset // PAGE, data)
        return wrong

    def wrote(self, path: bytes, offset: int, data: bytes) -> None:
        """Note what was written."""
        file = self._files[path]
        end = offset + len(data)
        for page in range(offset // PAGE, -(-end // PAGE)):
            start = page * PAGE
            old = bytearray(file.pages.get(page, _EMPTY))
            low, high = max(offset, start), min(end, start + PAGE)
            old[low - start : high - start] = data[low - offset : high - offset]
            self._keep(file, page, bytes(old))
        file.size = max(file.size, end)

    def cut(self, path: bytes, size: int) -> None:
        """Note that a file was truncated to at most its size, after `need_cut`."""
        file = self._files[path]
        file.size, file.kept = size, min(file.kept, size)
        for page in [page for page in file.pages if page * PAGE >= size]:
            del file.pages[page]
        last = size // PAGE
        if last in file.pages:
            file.pages[last] = file.pages[last][: size - last * PAGE].ljust(PAGE, b"\0")

    def check(self, path: bytes, offset: int, size: int, opened: Opened) -> Iterator[Wrong]:
        """Read the pages that a range touches, and compare them."""
        for page in range(offset // PAGE, -(-(offset + size) // PAGE)):
            found = opened.read(path, page * PAGE, PAGE)
            wrong = self._compare(path, page * PAGE, found)
            if wrong is not None:
                yield wrong

    def check_all(self, opened: Opened, count: Callable[[int], object]) -> Iterator[Wrong]:
        """Read all pages that were written, and the end of each file that was written to, and compare them."""
        for path, file in self._files.items():
            if not file.pages:
                continue
            for page in file.pages:
                yield from self.check(path, page * PAGE, 1, opened)
            tail = opened.read(path, file.size, PAGE)
            if tail:
                yield Wrong(path, file.size, "the end of the file", f"{len(tail)} bytes more")
            count(len(file.pages) + 1)

    def _keep(self, file: _File, page: int, data: bytes) -> None:
        self.pages += page not in file.pages
        file.pages[page] = data.ljust(PAGE, b"\0")

    def _covers(self, file: _File, page: int, offset: int, size: int) -> bool:
        """Whether nothing of the image is left in a page by a write, or what is left is known."""
        start = page * PAGE
        whole = offset <= start and offset + size >= min(start + PAGE, file.size)
        return whole or page in file.pages or start >= file.kept

    def _compare(self, path: bytes, offset: int, found: bytes) -> Wrong | None:
        """A page that is in the model is as it says; every other one is the image's."""
        file = self._files[path]
        length = max(0, min(PAGE, file.size - offset))
        if len(found) != length:
            return Wrong(path, offset, f"{length} bytes", f"{len(found)} bytes")
        if not length:
            return None
        page = offset // PAGE
        known = file.pages.get(page)
        expected = self._truth.expected(file.base, page) if known is None else page_digest(known[:length])
        digest = page_digest(found)
        return None if digest == expected else Wrong(path, offset, expected.hex(), digest.hex())
