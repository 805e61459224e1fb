"""Figures of a load test for people: the same on the terminal and in the HTML report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pagepool.load.measures import OPERATIONS
from pagepool.units import human_size

if TYPE_CHECKING:
    from pagepool.load.result import LoadResult

HEADERS = ("Operation", "Count", "Per second", "p50", "p90", "p99", "p99.9", "Max", "Errors")


def human_time(ns: float) -> str:
    """A duration, three digits of it."""
    for unit, scale in (("s", 1e9), ("ms", 1e6), ("us", 1e3)):
        if ns >= scale:
            value = ns / scale
            return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"
    return f"{ns:.0f} ns"


def operation_rows(result: LoadResult) -> list[list[str]]:
    """A row of `HEADERS` for each kind of operation that was done."""
    rows = []
    operations = result.measures.operations
    for name in OPERATIONS:
        if name in operations:
            one = operations[name]
            times = [one.durations.percentile(percent) for percent in (50, 90, 99, 99.9)] + [one.durations.most_ns]
            rate = one.durations.count / result.seconds if result.seconds else 0.0
            shown = [human_time(ns) if one.durations.count else "-" for ns in times]
            rows.append([name, f"{one.durations.count:,}", f"{rate:,.1f}", *shown, f"{one.errors:,}"])
    return rows


def summary(result: LoadResult) -> list[tuple[str, str]]:
    """The figures that are no latencies, each with its name."""
    measures, service = result.measures, result.service
    seconds = result.seconds or 1.0
    rate = f"{measures.count / seconds:,.0f} operations/s, {human_size(measures.bytes / seconds)}/s"
    found = [("throughput", rate)]
    found.append(("compared", f"{measures.checked_pages:,} pages, {measures.mismatches:,} wrong"))
    reads = measures.hits + measures.misses
    if reads:
        found.append(("reads without request", f"{measures.hits / reads:.2%} of {reads:,}"))
    if service.hit_ratio is not None:
        found.append(("service's pool", f"{service.hit_ratio:.2%} of openings found the content there"))
    found += _memory(result)
    around = result.surroundings
    load = f"load average {around.load_before:.2f} before, {around.load_after:.2f} after"
    found.append(("machine", f"{around.processors} processors, {load}"))
    found.append(("verdict", result.verdict))
    return found


def trouble(result: LoadResult, most: int = 5) -> list[str]:
    """What went wrong, the worst first, in sentences."""
    measures = result.measures
    found = [f"wrong bytes: {wrong}" for wrong in measures.wrong[:most]]
    if measures.kinds:
        kinds = sorted(measures.kinds.items(), key=lambda item: -item[1])
        found.append("errors: " + ", ".join(f"{count:,} x {kind}" for kind, count in kinds))
    found += [f"{name}: {text}" for name, text in measures.failures[:most]]
    found += [f"client {number or '?'} is missing: {reason}" for number, reason in result.missing[:most]]
    return found + list(result.notes)


def _memory(result: LoadResult) -> list[tuple[str, str]]:
    done = [one for one in result.clients if one.measures is not None]
    service = result.service
    found = []
    if done:

        def mean(name: str) -> float:
            return sum(float(getattr(one.after, name)) for one in done) / len(done)

        grown = mean("pss") - sum(one.before.pss for one in done) / len(done)
        parts = f"{human_size(mean('private'))} private, {human_size(mean('anonymous'))} heap"
        text = f"{human_size(mean('pss'))} (PSS), {parts}; {human_size(grown)} more than at its start"
        found.append(("memory of a client", text))
        served = f", service {service.cpu_s:.1f} s" if service.cpu_s else ""
        found.append(("processor time", f"clients {sum(one.cpu_s for one in done):.1f} s{served}"))
    if service.memory:
        found.append(("memory of the service", f"{human_size(service.memory)} ({service.memory_kind}, most)"))
    return found
