"""What became of a client's operations: how long they took, what failed, and whether what was read is right."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import httpx

from pagepool.errors import PagepoolError
from pagepool.load.measures import Mismatch
from pagepool.load.truth import PAGE, page_digest
from pagepool.oci import Reference

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pagepool.load.access import Opened
    from pagepool.load.measures import Measures
    from pagepool.load.plan import PlannedImage
    from pagepool.load.truth import Truth
    from pagepool.load.writing import Wrong

EXPECTED: Final = (PagepoolError, OSError, httpx.HTTPError)
"""What may go wrong with an operation, and is counted; anything else is a bug, and ends the client."""


class Target:
    """An image that is read.

    Args:
        planned: what it is.
        truth: what it must hold; closed by the caller.
    """

    def __init__(self, planned: PlannedImage, truth: Truth) -> None:
        self.planned, self.truth = planned, truth
        self.reference = Reference.parse(planned.reference)
        self.opened: Opened | None = None


class Recorder:
    """Counts what one client does. One thread.

    Args:
        measures: where it is counted.
        client: the number of the client.
        step_s: seconds of a step of the series.
    """

    def __init__(self, measures: Measures, client: int, step_s: float) -> None:
        self._measures, self._client, self._step_s = measures, client, step_s
        self._begun = time.monotonic()

    def start_clock(self) -> None:
        """Time in series counts from here."""
        self._begun = time.monotonic()

    def took(self, name: str, ns: int, size: int) -> None:
        """Count an operation that took so long, and moved so many bytes."""
        self._measures.add(name, ns, size, self._step())

    def since(self, name: str, began: int, size: int) -> None:
        """Count an operation that ends now, and began at a time of `time.perf_counter_ns`."""
        self.took(name, time.perf_counter_ns() - began, size)

    def fail(self, name: str, error: BaseException) -> None:
        """Count an operation that failed."""
        self._measures.fail(name, error, self._step())

    @contextmanager
    def counted(self, name: str) -> Iterator[None]:
        """Count what goes wrong in a block as an error of an operation, and go on."""
        try:
            yield
        except EXPECTED as error:
            self.fail(name, error)

    def check(self, target: Target, file: int, offset: int, data: bytes | memoryview, what: str) -> None:
        """Compare a page.

        Args:
            what: the operation.
        """
        truth = target.truth
        self._measures.checked_pages += 1
        if truth.size(file) <= offset and not data:
            return
        expected = truth.expected(file, offset // PAGE)
        found = page_digest(data)
        if found != expected:
            self.wrong(target.planned.name, truth.path(file), offset, expected.hex(), found.hex(), what)

    def check_range(self, target: Target, file: int, offset: int, wanted: int, data: bytes, what: str) -> None:
        """Compare what was read; where a range begins or ends within a page, only the length of that part can be.

        Args:
            wanted: bytes that it must have.
        """
        size = target.truth.size(file)
        first = -(-offset // PAGE) * PAGE
        end = offset + len(data)
        view = memoryview(data)
        if len(data) != wanted:
            words = f"{wanted} bytes", f"{len(data)} bytes"
            self.wrong(target.planned.name, target.truth.path(file), offset, *words, what)
        for at in range(first, end, PAGE):
            if at + PAGE <= end or end == size:
                self.check(target, file, at, view[at - offset : at - offset + PAGE], what)

    def tell(self, wrong: Wrong | None, target: Target) -> None:
        """Count a wrong page of an overlay, if it is one."""
        if wrong is not None:
            self.wrong(target.planned.name, wrong.path, wrong.offset, wrong.expected, wrong.found, "write")

    def wrong(self, image: str, path: bytes, offset: int, expected: str, found: str, what: str) -> None:
        """Count wrong bytes."""
        shown = path.decode(errors="backslashreplace")
        self._measures.mismatch(Mismatch(image, shown, offset, expected, found, what, self._client))

    def _step(self) -> int:
        return int((time.monotonic() - self._begun) / self._step_s)
