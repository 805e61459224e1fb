"""What a client measured: durations, bytes and errors of each kind of operation, over time; and wrong bytes.

Bounded in memory whatever the length of a run: histograms have a fixed size, time is cut into at most a few hundred
steps, and of errors and mismatches the first are kept, all are counted. Written by one thread; several clients' are
merged.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Final

from pagepool.load.histogram import Histogram

OPERATIONS: Final = {
    "first": "the first start of each client, at the same moment as all others'",
    "start": "a later start of a container: image resolved, opened or mounted, its trace read",
    "file": "a file of a start: opened, and read as the trace says",
    "read": "a page of an image that is open",
    "write": "a change in an overlay",
    "reread": "reading back what was written",
    "sync": "making an overlay's changes durable",
    "push": "a new version, until it is acknowledged",
    "ready": "a new version, from the push on until it can be opened",
    "take": "a start of a version that was pushed meanwhile",
}
"""Every kind of operation, and what its duration is of."""

_KEPT: Final = 20
_COUNT, _BYTES, _ERRORS, _MOST_NS = range(4)


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Bytes that were not what they must be.

    Args:
        image: as it was asked for.
        path: in the image.
        offset: of the page.
        expected, found: what stands for the bytes: a part of SHA-256 in hex, or words.
        what: the operation.
        client: who read it.
    """

    image: str
    path: str
    offset: int
    expected: str
    found: str
    what: str
    client: int = 0

    def __str__(self) -> str:
        return (
            f"client {self.client}, {self.what}: {self.image}:/{self.path} at {self.offset}: "
            f"expected {self.expected}, found {self.found}"
        )


@dataclass(slots=True)
class Operation:
    """One kind of operation.

    Args:
        durations: of those that succeeded.
        bytes: that they moved.
        errors: how many failed.
        series: step of time -> count, bytes, errors, the longest in nanoseconds.
    """

    durations: Histogram = field(default_factory=Histogram)
    bytes: int = 0
    errors: int = 0
    series: dict[int, list[int]] = field(default_factory=dict)

    def at(self, step: int) -> list[int]:
        """The counters of a step."""
        return self.series.setdefault(step, [0, 0, 0, 0])


@dataclass(slots=True)
class Measures:
    """What one client, or several together, measured.

    Args:
        operations: by name.
        checked_pages: pages that were compared with what they must be.
        mismatches: of them, that were wrong.
        wrong: the first of these, each place once.
        failures: the first errors: operation and sentence.
        kinds: errors by class.
        hits, misses: reads of content that was in the pool before, or was not; where a client can tell.
    """

    operations: dict[str, Operation] = field(default_factory=dict)
    checked_pages: int = 0
    mismatches: int = 0
    wrong: list[Mismatch] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)
    kinds: dict[str, int] = field(default_factory=dict)
    hits: int = 0
    misses: int = 0

    def operation(self, name: str) -> Operation:
        """One kind of operation."""
        found = self.operations.get(name)
        return self.operations.setdefault(name, Operation()) if found is None else found

    def add(self, name: str, ns: int, size: int, step: int) -> None:
        """Count what succeeded."""
        one = self.operation(name)
        one.durations.add(ns)
        one.bytes += size
        counters = one.at(step)
        counters[_COUNT] += 1
        counters[_BYTES] += size
        if ns > counters[_MOST_NS]:
            counters[_MOST_NS] = ns

    def fail(self, name: str, error: BaseException, step: int) -> None:
        """Count what failed."""
        one = self.operation(name)
        one.errors += 1
        one.at(step)[_ERRORS] += 1
        kind = type(error).__name__
        self.kinds[kind] = self.kinds.get(kind, 0) + 1
        if len(self.failures) < _KEPT:
            self.failures.append((name, f"{kind}: {error}"))

    def mismatch(self, found: Mismatch) -> None:
        """Count wrong bytes; each place is kept once."""
        self.mismatches += 1
        self._keep_wrong(found)

    def _keep_wrong(self, found: Mismatch) -> None:
        known = any((one.image, one.path, one.offset) == (found.image, found.path, found.offset) for one in self.wrong)
        if not known and len(self.wrong) < _KEPT:
            self.wrong.append(found)

    @property
    def count(self) -> int:
        """Operations that succeeded; files of starts are not counted again."""
        return sum(one.durations.count for name, one in self._all() if name != "file")

    @property
    def bytes(self) -> int:
        """Bytes that were moved; those of starts are counted with their files."""
        return sum(one.bytes for _, one in self._all())

    @property
    def errors(self) -> int:
        """Operations that failed."""
        return sum(one.errors for _, one in self._all())

    def _all(self) -> list[tuple[str, Operation]]:
        """As of now: another thread than the one that counts may ask how far it is."""
        return list(self.operations.items())

    def merge(self, other: Measures) -> None:
        """Add another client's."""
        for name, theirs in other.operations.items():
            ours = self.operation(name)
            ours.durations.merge(theirs.durations)
            ours.bytes += theirs.bytes
            ours.errors += theirs.errors
            for step, counters in theirs.series.items():
                mine = ours.at(step)
                for at in (_COUNT, _BYTES, _ERRORS):
                    mine[at] += counters[at]
                mine[_MOST_NS] = max(mine[_MOST_NS], counters[_MOST_NS])
        self.checked_pages += other.checked_pages
        self.mismatches += other.mismatches
        for one in other.wrong:
            self._keep_wrong(one)
        self.failures = (self.failures + other.failures)[:_KEPT]
        for kind, count in other.kinds.items():
            self.kinds[kind] = self.kinds.get(kind, 0) + count
        self.hits += other.hits
        self.misses += other.misses

    def to_json(self) -> dict[str, Any]:
        """Everything."""
        operations = {
            name: {
                "durations": one.durations.to_json(),
                "bytes": one.bytes,
                "errors": one.errors,
                "series": [[step, *counters] for step, counters in sorted(one.series.items())],
            }
            for name, one in self.operations.items()
        }
        return {
            "operations": operations,
            "checked_pages": self.checked_pages,
            "mismatches": self.mismatches,
            "wrong": [asdict(one) for one in self.wrong],
            "failures": [list(one) for one in self.failures],
            "kinds": dict(self.kinds),
            "hits": self.hits,
            "misses": self.misses,
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Measures:
        """What `to_json` made.

        Raises:
            ValueError, KeyError, TypeError: it is none.
        """
        made = cls()
        for name, one in fields["operations"].items():
            if name not in OPERATIONS:
                raise ValueError(f"no operation: {name!r}")
            series = {int(step): [int(number) for number in numbers] for step, *numbers in one["series"]}
            if any(len(numbers) != 4 for numbers in series.values()):
                raise ValueError(f"the series of {name} cannot be read")
            durations = Histogram.from_json(one["durations"])
            made.operations[name] = Operation(durations, int(one["bytes"]), int(one["errors"]), series)
        made.checked_pages, made.mismatches = int(fields["checked_pages"]), int(fields["mismatches"])
        made.wrong = [Mismatch(**one) for one in fields["wrong"]][:_KEPT]
        made.failures = [(str(name), str(text)) for name, text in fields["failures"]][:_KEPT]
        made.kinds = {str(kind): int(count) for kind, count in fields["kinds"].items()}
        made.hits, made.misses = int(fields["hits"]), int(fields["misses"])
        return made
