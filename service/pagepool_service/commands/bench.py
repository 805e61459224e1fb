"""`pagepool bench`: measure on this machine what the documentation says."""

from __future__ import annotations

import json
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pagepool.cli import output
from pagepool.cli.options import output_options
from pagepool_service.bench.collecting import CollectPlan, measure_collection
from pagepool_service.bench.images import find_images, find_pair
from pagepool_service.bench.reads import ReadPlan
from pagepool_service.bench.reads import measure as measure_reads
from pagepool_service.bench.registry import Plan, measure
from pagepool_service.bench.report import make_report
from pagepool_service.bench.servers import PEER, Launcher
from pagepool_service.commands.benchcommon import environment, interrupt, number, print_figures, with_peer
from pagepool_service.commands.benchmount import mount
from pagepool_service.commands.benchoptions import images_option, work_option
from pagepool_service.commands.benchpods import pods

if TYPE_CHECKING:
    from pagepool_service.bench.report import Line, Report, Target

_EXPECTED = 8
_BUILD = "python tests/support/images.py --set bench"
_EPILOG = f"""
\b
Examples:
  {_BUILD} --dir images
  pagepool bench registry --images images
  pagepool bench registry --images images --runs 1 --no-peer --json
  pagepool bench registry --images images --big --report figures.json
"""
_READS_EPILOG = """
\b
Examples:
  pagepool bench reads --images images
  pagepool bench reads --images images/debian-old --images images/debian-new --clients 50 --json
"""
_COLLECT_EPILOG = """
\b
Examples:
  pagepool bench collect --images images
  pagepool bench collect --images images/numpy-old --images images/node-new --json
"""
_MEMORY = (
    "PSS: the highest sample, ten a second, of all processes together; mapped files are in it. "
    "VmHWM: each process's own maximum, added up."
)
_DURABILITY = "pagepool calls fsync before it acknowledges; docker-registry does not."
_PROTOTYPE = (
    "Prototype: inflates, hashes, splits, looks up, compresses (zstd level 3, two threads) and stores, in one process; "
    "no recipe, no verification, no checksums."
)
_READY = "Ready: every layer was read, stored without duplicates, and rebuilt; docker-registry only keeps the blobs."


@click.group()
def bench() -> None:
    """Measure a service on real images."""


bench.add_command(mount)
bench.add_command(pods)


@bench.command(epilog=_EPILOG, short_help="Push and pull real images.")
@images_option("An OCI layout, or a directory of OCI layouts; may be repeated.")
@click.option("--peer/--no-peer", default=None, help="Also measure docker-registry. [if it is installed]")
@click.option("--runs", type=click.IntRange(1, 100), default=3, show_default=True, help="Runs of each registry.")
@click.option("--workers", type=click.IntRange(1, 256), default=2, show_default=True, help="Workers of the service.")
@click.option("--rebuild-compressed", is_flag=True, help="Run the service with this option.")
@click.option("--big", is_flag=True, help="Also push and pull a layer of 4 GiB. [needs 20 GB of disk]")
@work_option("Where to put the registries' data meanwhile.")
@click.option(
    "--report",
    "report_path",
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    metavar="FILE",
    help="Write the JSON there, too.",
)
@output_options
def registry(
    places: tuple[Path, ...],
    peer: bool | None,
    runs: int,
    workers: int,
    rebuild_compressed: bool,
    big: bool,
    work: Path | None,
    report_path: Path | None,
) -> None:
    """Push and pull real images, beside Debian's docker-registry in the same run.

    Speed of pushes and pulls, bytes on disk, memory of all processes, and how fast layers are read. Both registries
    are driven by one client that does nothing but copy between a file and a socket. Everything is local and temporary.
    """
    if not places:
        raise click.UsageError(f"which images? Build some with\n\n    {_BUILD} --dir DIR\n\nand give --images DIR.")
    images = find_images(places)
    if len(images) < _EXPECTED:
        output.warn(f"{len(images)} images; the figures mean little with fewer than {_EXPECTED}")
    launcher = Launcher(environment(), workers, ["--rebuild-compressed"] if rebuild_compressed else ())
    plan = Plan(images, runs, with_peer(peer), big, launcher, work or Path(tempfile.gettempdir()), output.note)
    signal.signal(signal.SIGTERM, interrupt)
    report = make_report(measure(plan))
    text = json.dumps(report.as_json(), indent=2)
    if report_path:
        report_path.write_text(f"{text}\n")
    if output.current().json:
        output.print_line(text)
    else:
        _print(report)


@bench.command(epilog=_READS_EPILOG, short_help="Read pages and images in every way there is.")
@images_option("OCI layouts, or directories of them: two that overlap are chosen.")
@click.option("--peer/--no-peer", default=None, help="Also measure docker-registry. [if it is installed]")
@click.option("--clients", type=click.IntRange(1, 200), default=20, show_default=True, help="Client processes.")
@work_option("Where to put data meanwhile.")
@output_options
def reads(places: tuple[Path, ...], peer: bool | None, clients: int, work: Path | None) -> None:
    """Read pages and images in every way there is, each beside something to compare it with, in the same run.

    Pages in this process beside os.pread, pages over HTTP beside an application that does nothing, whole images beside
    docker-registry and tar, the memory of clients, and a FUSE mount beside a plain directory.
    """
    pair = find_pair(find_images(places)) if places else None
    if pair is None:
        raise click.UsageError(f"which images? Build some with\n\n    {_BUILD} --dir DIR\n\nand give --images DIR.")
    directory = work or Path(tempfile.gettempdir())
    launcher = Launcher(environment(), 1)
    signal.signal(signal.SIGTERM, interrupt)
    figures = measure_reads(ReadPlan(pair, clients, with_peer(peer), launcher, directory, output.note))
    if output.current().json:
        output.print_json({"images": [image.name for image in pair], "figures": [one.as_json() for one in figures]})
        return
    print_figures(figures)


@bench.command(epilog=_COLLECT_EPILOG, short_help="See what others notice of a collection.")
@images_option("OCI layouts, or directories of them: all but the first are deleted.")
@click.option("--workers", type=click.IntRange(1, 256), default=2, show_default=True, help="Workers of the service.")
@work_option("Where to put data meanwhile, on a real disk.")
@click.option(
    "--quiet-time",
    type=click.FloatRange(0.1, 3600),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to look at pushes and reads without a collection.",
)
@output_options
def collect(places: tuple[Path, ...], workers: int, work: Path | None, quiet_time: float) -> None:
    """Collect images that were deleted while others are pushed and read: what do those notice of it?

    Small pushes, page reads, and a file that is written and synced on the same disk, during a collection, beside the
    same without one in the same run.
    """
    images = find_images(places) if places else []
    if len(images) < 2:
        raise click.UsageError(f"two images at least: build some with\n\n    {_BUILD} --dir DIR\n\nand give --images.")
    processes = environment()
    signal.signal(signal.SIGTERM, interrupt)
    launcher = Launcher(processes, workers)
    plan = CollectPlan(images, launcher, processes, work or Path(tempfile.gettempdir()), quiet_time, output.note)
    figures, said = measure_collection(plan)
    if output.current().json:
        names = [image.name for image in images]
        output.print_json({"images": names, "figures": [one.as_json() for one in figures], "collection": said})
        return
    print_figures(figures)


def _print(report: Report) -> None:
    runs = len(report.results.ingest) or len(report.results.runs)
    output.print_line(f"{len(report.results.images)} images, medians of {runs} runs")
    output.print_line()
    headers = ("", "pagepool", PEER, "ratio")
    output.print_table(headers, [_cells(line) for line in report.lines], right=(1, 2, 3))
    output.print_line()
    if report.beside:
        output.print_table(
            ("", "pagepool", "prototype", "ratio"), [_cells(line) for line in report.beside], right=(1, 2, 3)
        )
        output.print_line()
    output.print_table(("target", "", "", "measured", ""), [_judged(one) for one in report.targets], right=(2, 3))
    output.print_line()
    output.print_lines((_READY, _DURABILITY, _MEMORY))
    if report.beside:
        output.print_line(_PROTOTYPE)


def _cells(line: Line) -> tuple[str, str, str, str]:
    return line.name, number(line.pagepool), number(line.peer), "-" if line.ratio is None else f"{line.ratio:.2f}"


def _judged(target: Target) -> tuple[str, str, str, str, str]:
    value = number(target.value)
    judgement = {True: "met", False: "MISSED", None: "not measured"}[target.met]
    return target.name, ">=" if target.at_least else "<=", f"{target.bound:.3g}", value, judgement
