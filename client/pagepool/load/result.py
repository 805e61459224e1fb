"""What came out of a load test, and as JSON: schema 1, described in docs/load.md."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from pagepool.load.measures import OPERATIONS, Measures
from pagepool.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pagepool.load.coordinator import ClientState
    from pagepool.load.measures import Operation
    from pagepool.load.observing import ServiceView
    from pagepool.load.plan import LoadPlan

SCHEMA = 1
PERCENTILES = (50.0, 90.0, 99.0, 99.9)
OK, ERRORS, WRONG, INTERRUPTED = "ok", "errors", "wrong bytes", "interrupted"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Where and when a test ran.

    Args:
        began: RFC 3339.
        host, kernel, python: of the coordinator.
        processors: that it may use.
        load_before, load_after: load averages over one minute.
        own_service: whether the service was started for the test.
        service: its address.
    """

    began: str
    load_before: float
    own_service: bool
    service: str
    load_after: float = 0.0
    host: str = field(default_factory=platform.node)
    kernel: str = field(default_factory=platform.release)
    python: str = field(default_factory=platform.python_version)
    processors: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))


@dataclass(frozen=True, slots=True)
class LoadResult:
    """A test.

    Args:
        plan: what was to be done.
        surroundings: where.
        clients: those that came, in the order of their numbers.
        service: what was seen of it.
        seconds: from the beginning until the last client had worked.
        interrupted: whether somebody wanted it to end early.
        notes: what else went wrong: tags that could not be removed …
    """

    plan: LoadPlan
    surroundings: Surroundings
    clients: Sequence[ClientState]
    service: ServiceView
    seconds: float
    interrupted: bool = False
    notes: Sequence[str] = ()

    @property
    def measures(self) -> Measures:
        """Of all clients together."""
        total = Measures()
        for client in self.clients:
            if client.measures is not None:
                total.merge(client.measures)
        return total

    @property
    def missing(self) -> list[tuple[int, str]]:
        """Clients that handed in nothing, or too late: number (0: it never came) and reason."""
        found = [(one.number, one.reason or one.phase) for one in self.clients if one.phase != "done"]
        never = self.plan.clients - len(self.clients)
        return found + [(0, "it never came")] * max(0, never)

    @property
    def verdict(self) -> str:
        """In one word: wrong bytes outweigh errors, and these an interruption."""
        measures = self.measures
        if measures.mismatches:
            return WRONG
        if self.interrupted and not measures.errors:
            return INTERRUPTED
        if measures.errors or self.missing or not measures.count:
            return ERRORS
        return OK

    def to_json(self) -> dict[str, Any]:
        """See docs/load.md. Durations are microseconds, sizes bytes."""
        measures = self.measures
        plan = self.plan.to_json()
        plan["images"] = [
            {
                "name": one.name,
                "reference": one.reference,
                "trace": {"source": one.trace_source, "steps": len(one.trace), "bytes": sum(s.size for s in one.trace)},
                **{name: getattr(one, name) for name in ("files", "pages", "size", "left_out")},
            }
            for one in self.plan.images
        ]
        del plan["base"], plan["protocol"]
        reads = measures.hits + measures.misses
        return {
            "schema": SCHEMA,
            "version": __version__,
            "verdict": self.verdict,
            "plan": plan,
            "surroundings": asdict(self.surroundings),
            "seconds": self.seconds,
            "totals": {
                "operations": measures.count,
                "per_second": measures.count / self.seconds if self.seconds else 0.0,
                "bytes": measures.bytes,
                "errors": measures.errors,
                "missing_clients": len(self.missing),
                "checked_pages": measures.checked_pages,
                "mismatches": measures.mismatches,
                "hits": measures.hits,
                "misses": measures.misses,
                "hit_ratio": measures.hits / reads if reads else None,
            },
            "operations": {
                name: _operation(measures.operations[name], self.seconds)
                for name in OPERATIONS
                if name in measures.operations
            },
            "errors": {"by_class": measures.kinds, "first": [list(one) for one in measures.failures]},
            "wrong": [asdict(one) for one in measures.wrong],
            "missing": [list(one) for one in self.missing],
            "clients": [_client(one) for one in self.clients],
            "service": {**asdict(self.service), "hit_ratio": self.service.hit_ratio},
            "notes": list(self.notes),
        }


def _operation(one: Operation, seconds: float) -> dict[str, Any]:
    durations = one.durations
    return {
        "count": durations.count,
        "per_second": durations.count / seconds if seconds else 0.0,
        "bytes": one.bytes,
        "errors": one.errors,
        "mean_us": durations.mean_ns / 1e3,
        "least_us": (durations.least_ns if durations.count else 0) / 1e3,
        **{f"p{percent:g}_us": durations.percentile(percent) / 1e3 for percent in PERCENTILES},
        "most_us": durations.most_ns / 1e3,
        "series": [
            {"step": step, "count": count, "bytes": size, "errors": errors, "most_us": most / 1e3}
            for step, (count, size, errors, most) in sorted(one.series.items())
        ],
        "histogram": durations.to_json(),
    }


def _client(one: ClientState) -> dict[str, Any]:
    measures = one.measures or Measures()
    return {
        "client": one.number,
        "host": one.host,
        "phase": one.phase,
        "reason": one.reason,
        "operations": measures.count,
        "errors": measures.errors,
        "mismatches": measures.mismatches,
        "seconds": one.seconds,
        "cpu_s": one.cpu_s,
        "memory_before": one.before.to_json(),
        "memory_after": one.after.to_json(),
    }
