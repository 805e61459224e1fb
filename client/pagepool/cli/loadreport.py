"""A load test's report on the terminal, and into files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pagepool.cli import output
from pagepool.load.html import render_html
from pagepool.load.words import HEADERS, operation_rows, summary, trouble

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pagepool.load.result import LoadResult


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
    if not output.current().quiet:
        _print_plan(result)
    output.print_table([header.upper() for header in HEADERS], operation_rows(result), range(1, len(HEADERS)))
    output.print_line()
    for name, text in summary(result):
        output.print_line(f"{name + ':':<24}{text}")
    for text in trouble(result):
        output.warn(text)


def _print_plan(result: LoadResult) -> None:
    plan = result.plan
    clients = sum(one.phase == "done" for one in result.clients)
    mix = ", ".join(f"{name} {weight:g}" for name, weight in plan.mix.weights().items())
    rest = f"mix {mix}, Zipf {plan.zipf:g}, seed {plan.seed}"
    output.print_line(f"{clients} clients, mode {plan.mode}, {result.seconds:.1f} s, {rest}")
    for image in plan.images:
        files = f"{image.files:,} files, {output.human_size(image.size)}"
        trace = f"starts read {len(image.trace)} files ({image.trace_source})"
        output.print_line(f"{output.printable(image.name)}: {files}; {trace}")
    output.print_line()
