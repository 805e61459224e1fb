"""Figures as Prometheus reads them: its text format 0.0.4, written and nothing else.

The client does not need prometheus_client for that, which keeps figures in ways of its own; a test has its parser read
what is written here. Follows https://prometheus.io/docs/instrumenting/exposition_formats/, the text-based format.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Sample:
    """One figure.

    Args:
        value: its value.
        labels: what tells it from others of its family.
        suffix: what follows the family's name, for parts of a histogram.
    """

    value: float
    labels: Mapping[str, str] = field(default_factory=dict)
    suffix: str = ""


@dataclass(frozen=True, slots=True)
class Family:
    """Figures of one name.

    Args:
        name: a counter's ends in ``_total``.
        kind: what Prometheus takes it for.
        help: one sentence.
        samples: the figures.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    samples: tuple[Sample, ...]


class Histogram:
    """How often something took how long. Not thread-safe.

    Args:
        bounds: upper bounds of its buckets, growing; what is above the last one is counted, too.
    """

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def samples(self, labels: Mapping[str, str] | None = None) -> list[Sample]:
        """As parts of a family."""
        labels = labels or {}
        totals = list(accumulate(self._counts))
        names = [*(f"{bound:g}" for bound in self._bounds), "+Inf"]
        found = [Sample(total, {**labels, "le": le}, "_bucket") for le, total in zip(names, totals, strict=True)]
        return [*found, Sample(self._sum, labels, "_sum"), Sample(totals[-1], labels, "_count")]


def counter(name: str, text: str, *samples: Sample) -> Family:
    """A family of what only grows."""
    return Family(name, "counter", text, samples)


def gauge(name: str, text: str, *samples: Sample) -> Family:
    """A family of what may go up and down."""
    return Family(name, "gauge", text, samples)


def encode(families: Iterable[Family]) -> bytes:
    """Write families, in their order."""
    lines: list[str] = []
    for family in families:
        text = family.help.replace("\\", "\\\\").replace("\n", "\\n")
        lines += (f"# HELP {family.name} {text}", f"# TYPE {family.name} {family.kind}")
        lines += (_line(family.name, sample) for sample in family.samples)
    return "".join(f"{line}\n" for line in lines).encode()


def _line(name: str, sample: Sample) -> str:
    labels = ",".join(f'{label}="{_escape(value)}"' for label, value in sample.labels.items())
    return f"{name}{sample.suffix}{f'{{{labels}}}' if labels else ''} {float(sample.value)!r}"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
