"""`pagepool bench mount`: containers on pagepool's kernel mount, beside podman on overlayfs, in the same run."""

from __future__ import annotations

import json
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pagepool.cli import output
from pagepool.cli.options import output_options
from pagepool_service.bench.lab import Lab
from pagepool_service.bench.mountbench import PHASES, kinds_of, measure_mounts, peer_tools_installed
from pagepool_service.bench.mountstart import PHASE as START
from pagepool_service.bench.stargz import stargz_missing
from pagepool_service.commands.benchcommon import environment, find_layouts, interrupt, number
from pagepool_service.commands.benchoptions import images_option, work_option

if TYPE_CHECKING:
    from pagepool_service.bench.mountrows import Row

_EPILOG = """
\b
Examples:
  pagepool bench mount --images images
  pagepool bench mount --images images --only start --runs 5 --report start.json
  pagepool bench mount --images images --only warm,many --json
"""


def _phases(_: click.Context, __: click.Parameter, value: str | None) -> tuple[str, ...]:
    names = tuple(PHASES) if value is None else tuple(filter(None, value.split(",")))
    unknown = [name for name in names if name not in PHASES]
    if unknown or not names:
        raise click.BadParameter(f"{', '.join(unknown) or 'nothing'}: there are {', '.join(PHASES)}")
    return names


@click.command(epilog=_EPILOG, short_help="Start containers by the kernel mount.")
@images_option("OCI layouts, or directories of them.")
@click.option("--only", "phases", callback=_phases, metavar="PHASE,…", help=f"Of {', '.join(PHASES)}. [all of them]")
@click.option("--peer/--no-peer", default=None, help="Also measure podman. [if it and docker-registry are installed]")
@click.option(
    "--stargz/--no-stargz",
    default=None,
    help="Also measure eStargz by containerd and stargz-snapshotter; starts only. [if they are installed]",
)
@click.option("--ours/--no-ours", default=True, help="Measure pagepool. [yes]")
@click.option("--runs", type=click.IntRange(1, 100), default=3, show_default=True, help="Starts; the best counts.")
@click.option("--mounts", type=click.IntRange(10, 10_000), default=500, show_default=True, help="Mounted at once.")
@click.option("--containers", type=click.IntRange(1, 1000), default=32, show_default=True, help="Started at once.")
@click.option(
    "--large", type=click.IntRange(1, 1 << 20), default=1024, show_default=True, metavar="MIB", help="Of a file."
)
@work_option("Where to put everything meanwhile, on a real disk.")
@click.option(
    "--report",
    "report_path",
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    metavar="FILE",
    help="Write the JSON there, too.",
)
@output_options
def mount(
    places: tuple[Path, ...],
    phases: tuple[str, ...],
    peer: bool | None,
    stargz: bool | None,
    ours: bool,
    runs: int,
    mounts: int,
    containers: int,
    large: int,
    work: Path | None,
    report_path: Path | None,
) -> None:
    """Start and mount containers by the kernel mount, beside podman on overlayfs. Needs root, and the machine alone.

    The time from nothing to a first output, over a link as it is and one of 100 Mbit/s and 20 ms; what further
    containers add to the page cache; reads of what is in memory; a write into a large file; many containers.
    Registries and containers are in network namespaces of their own. It drops the caches of the whole machine.

    Starts are measured with eStargz images, by containerd and stargz-snapshotter, too, where these are installed. The
    images are converted first, which takes minutes and is not timed.
    """
    if not places:
        raise click.UsageError("which images? Give --images DIR.")
    with_peer = peer_tools_installed() if peer is None else peer
    if not with_peer and peer is None:
        output.warn("podman, runc or docker-registry are not installed: measuring without them")
    if stargz and START not in phases:
        raise click.UsageError(f"--stargz is of the phase {START}, which is not measured")
    with_stargz = START in phases and _with_stargz(stargz)
    if not ours and not with_peer and not (with_stargz and phases == (START,)):
        raise click.UsageError("nothing to measure: --no-ours and no peer")
    layouts = find_layouts(places)
    lab = Lab(
        layouts,
        kinds_of(ours, with_peer),
        runs,
        work or Path(tempfile.gettempdir()),
        environment(),
        output.note,
        lazy=with_stargz,
        mounts=mounts,
        containers=containers,
        big_size=large << 20,
    )
    signal.signal(signal.SIGTERM, interrupt)
    figures = measure_mounts(lab, phases)
    text = json.dumps({"images": sorted(layouts), "figures": figures.as_json()}, indent=2)
    if report_path:
        report_path.write_text(f"{text}\n")
    if output.current().json:
        output.print_line(text)
        return
    headers = ("", "pagepool", "overlayfs", "judged", "aim", "")
    output.print_table(headers, [_cells(one) for one in figures.rows], right=(1, 2, 3, 4))
    lazy = [one for one in figures.rows if one.lazy is not None]
    if lazy:
        output.print_line("")
        more = ("", "stargz", "beside overlayfs", "pagepool beside it")
        output.print_table(more, [_lazy_cells(one) for one in lazy], right=(1, 2, 3))


def _with_stargz(wanted: bool | None) -> bool:
    """Whether stargz-snapshotter is measured; says so if it is not because it is not there."""
    missing = stargz_missing() if wanted is None else []
    if missing:
        output.note(f"starts are measured without stargz-snapshotter: there is no {', no '.join(missing)}")
    return not missing if wanted is None else wanted


def _cells(one: Row) -> tuple[str, ...]:
    sign = ">=" if one.how == "faster" else "<="
    return (
        one.name,
        number(one.pagepool),
        number(one.peer),
        _judged(one, one.judged) if one.how else "",
        "" if one.aim is None else f"{sign} {one.aim:.4g}",
        {True: "met", False: "MISSED", None: ""}[one.met],
    )


def _lazy_cells(one: Row) -> tuple[str, ...]:
    return (one.name, number(one.lazy), _judged(one, one.lazy_judged), _judged(one, one.to_lazy))


def _judged(one: Row, value: float | None) -> str:
    return "" if value is None else f"{value:.2f}{'x' if one.how == 'faster' else ''}"
