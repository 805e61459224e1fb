"""How long things took: counts in buckets whose width grows with the time, so that memory is bounded.

As in HDR histograms each power of two has 32 buckets: a percentile is right to about 3 %, from one nanosecond to more
than an hour, in 1,216 counters. Histograms of several clients are added up, bucket by bucket.
"""

from __future__ import annotations

from typing import Any, Final

_BITS: Final = 5
_LONGEST_NS: Final = (1 << 42) - 1
_BUCKETS: Final = ((42 - _BITS - 1) << _BITS) + (2 << _BITS)


class Histogram:
    """Durations of one kind of thing."""

    __slots__ = ("_counts", "count", "least_ns", "most_ns", "total_ns")

    def __init__(self) -> None:
        self._counts = [0] * _BUCKETS
        self.count = self.total_ns = self.most_ns = 0
        self.least_ns = _LONGEST_NS

    def add(self, ns: int) -> None:
        """Count a duration, in nanoseconds; what is longer than 73 minutes counts as that."""
        ns = min(max(ns, 0), _LONGEST_NS)
        self._counts[_bucket(ns)] += 1
        self.count += 1
        self.total_ns += ns
        if ns > self.most_ns:
            self.most_ns = ns
        if ns < self.least_ns:
            self.least_ns = ns

    def merge(self, other: Histogram) -> None:
        """Add another one's counts."""
        for at, count in enumerate(other._counts):
            if count:
                self._counts[at] += count
        self.count += other.count
        self.total_ns += other.total_ns
        self.most_ns = max(self.most_ns, other.most_ns)
        self.least_ns = min(self.least_ns, other.least_ns)

    def percentile(self, percent: float) -> int:
        """The duration, in nanoseconds, that `percent` of all were not longer than; 0 if there are none."""
        if not self.count:
            return 0
        rank = max(1, -(-self.count * percent // 100))
        seen = 0
        for at, count in enumerate(self._counts):
            seen += count
            if seen >= rank:
                return min(max(_middle(at), self.least_ns), self.most_ns)
        return self.most_ns

    @property
    def mean_ns(self) -> float:
        """The average; 0 if there are none."""
        return self.total_ns / self.count if self.count else 0.0

    def to_json(self) -> dict[str, Any]:
        """Everything, buckets as pairs of number and count."""
        return {
            "count": self.count,
            "total_ns": self.total_ns,
            "least_ns": self.least_ns if self.count else 0,
            "most_ns": self.most_ns,
            "buckets": [[at, count] for at, count in enumerate(self._counts) if count],
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Histogram:
        """What `to_json` made.

        Raises:
            ValueError, KeyError, TypeError: it is none, or its counts do not agree.
        """
        made = cls()
        for at, count in fields["buckets"]:
            if not 0 <= int(at) < _BUCKETS or int(count) < 0:
                raise ValueError(f"no bucket of a histogram: {at!r}, {count!r}")
            made._counts[int(at)] = int(count)
        made.count = sum(made._counts)
        if made.count != int(fields["count"]):
            raise ValueError(f"a histogram of {fields['count']!r} that has {made.count}")
        if made.count:
            made.total_ns, made.most_ns = int(fields["total_ns"]), int(fields["most_ns"])
            made.least_ns = int(fields["least_ns"])
        return made


def _bucket(ns: int) -> int:
    shift = ns.bit_length() - _BITS - 1
    return ns if shift <= 0 else (shift << _BITS) + (ns >> shift)


def _middle(bucket: int) -> int:
    if bucket < 2 << _BITS:
        return bucket
    shift = (bucket >> _BITS) - 1
    return ((bucket - (shift << _BITS)) << shift) + (1 << shift >> 1)
