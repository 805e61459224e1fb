"""A load test's report on the terminal, and into files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pagepool.cli import output
from pagepool.load.html import render_html
from pagepool.load.measures import OPERATIONS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pagepool.load.result import LoadResult

_HEADERS = ("OPERATION", "COUNT", "PER SECOND", "P50", "P90", "P99", "P99.9", "MAX", "ERRORS")
_SHOWN = 5


def write_reports(result: LoadResult, paths: Sequence[Path]) -> None:
    """Write reports, each as its name ends."""
    for path in paths:
        if path.suffix == ".html":
            path.write_text(render_html(result), encoding="utf-8")
        else:
            path.write_text(json.dumps(result.to_json(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def print_result(result: LoadResult) -> None:
    """Print it: JSON if that was asked for, else tables, and what went wrong last."""
    if output.current().json:
        output.print_json(result.to_json())
        return
    measures = result.measures
    plan = result.plan
    if not output.current().quiet:
        mix = ", ".join(f"{name} {weight:g}" for name, weight in plan.mix.weights().items())
        clients = sum(one.phase == "done" for one in result.clients)
        rest = f"mix {mix}, Zipf {plan.zipf:g}, seed {plan.seed}"
        output.print_line(f"{clients} clients, mode {plan.mode}, {result.seconds:.1f} s, {rest}")
        for image in plan.images:
            output.print_line(
                f"{output.printable(image.name)}: {image.files:,} files, {output.human_size(image.size)}; "
                f"starts read {len(image.trace)} files ({image.trace_source})"
            )
        output.print_line()
    rows = []
    for name in OPERATIONS:
        if name in measures.operations:
            one = measures.operations[name]
            times = [one.durations.percentile(percent) for percent in (50, 90, 99, 99.9)] + [one.durations.most_ns]
            rate = one.durations.count / result.seconds if result.seconds else 0.0
            shown = [human_time(ns) if one.durations.count else "-" for ns in times]
            rows.append([name, f"{one.durations.count:,}", f"{rate:,.1f}", *shown, f"{one.errors:,}"])
    output.print_table(_HEADERS, rows, range(1, len(_HEADERS)))
    output.print_line()
    for name, text in summary(result):
        output.print_line(f"{name + ':':<24}{text}")
    _print_trouble(result)


def summary(result: LoadResult) -> list[tuple[str, str]]:
    """The figures that are no latencies, each with its name."""
    measures, service = result.measures, result.service
    size = output.human_size
    seconds = result.seconds or 1.0
    found = [
        ("throughput", f"{measures.count / seconds:,.0f} operations/s, {size(measures.bytes / seconds)}/s"),
        ("compared", f"{measures.checked_pages:,} pages, {measures.mismatches:,} wrong"),
    ]
    reads = measures.hits + measures.misses
    if reads:
        ratio = measures.hits / reads
        found.append(("reads without request", f"{ratio:.2%} of {reads:,}"))
    if service.hit_ratio is not None:
        found.append(("service's pool", f"{service.hit_ratio:.2%} of openings found the content there"))
    done = [one for one in result.clients if one.measures is not None]
    if done:
        mean = 1 / len(done)
        pss, private, anonymous = (
            sum(getattr(one.after, name) for one in done) * mean for name in ("pss", "private", "anonymous")
        )
        grown = pss - sum(one.before.pss for one in done) * mean
        text = (
            f"{size(pss)} (PSS), {size(private)} private, {size(anonymous)} heap; {size(grown)} more than at the start"
        )
        found.append(("memory of a client", text))
        found.append(("processor time", f"clients {sum(one.cpu_s for one in done):.1f} s" + _service_cpu(result)))
    if service.memory:
        found.append(("memory of the service", f"{size(service.memory)} ({service.memory_kind}, most)"))
    around = result.surroundings
    load = f"load average {around.load_before:.2f} before, {around.load_after:.2f} after"
    found.append(("machine", f"{around.processors} processors, {load}"))
    found.append(("verdict", result.verdict))
    return found


def human_time(ns: float) -> str:
    """A duration for people, three digits of it."""
    for unit, scale in (("s", 1e9), ("ms", 1e6), ("us", 1e3)):
        if ns >= scale:
            value = ns / scale
            return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"
    return f"{ns:.0f} ns"


def _service_cpu(result: LoadResult) -> str:
    return f", service {result.service.cpu_s:.1f} s" if result.service.cpu_s else ""


def _print_trouble(result: LoadResult) -> None:
    measures = result.measures
    for wrong in measures.wrong[:_SHOWN]:
        output.warn(f"wrong bytes: {wrong}")
    if measures.kinds:
        kinds = ", ".join(f"{count:,} x {kind}" for kind, count in sorted(measures.kinds.items(), key=lambda x: -x[1]))
        output.warn(f"errors: {kinds}")
    for name, text in measures.failures[:_SHOWN]:
        output.warn(f"{name}: {text}")
    for number, reason in result.missing[:_SHOWN]:
        output.warn(f"client {number or '?'} is missing: {reason}")
    for note in result.notes:
        output.warn(note)
