"""`pagepool bench pods`: pods in containerd by pagepool's snapshotter, beside containerd's own, in the same run."""

from __future__ import annotations

import signal
import tempfile
from pathlib import Path
from typing import Final

import click

from pagepool.cli import output
from pagepool.cli.commands.snapshotter import is_installed
from pagepool.cli.options import output_options
from pagepool_service.bench.installed import require_tools
from pagepool_service.commands.benchcommon import environment, find_layouts, interrupt, print_figures, with_peer
from pagepool_service.commands.benchoptions import images_option, work_option

_EPILOG = """
\b
Examples:
  pagepool bench pods --images images
  pagepool bench pods --images images/numpy-old --images images/node-new --runs 5 --json
"""
_TOOLS: Final = {
    "busybox": "apt-get install busybox-static",
    "containerd": "apt-get install containerd",
    "containerd-shim-runc-v2": "apt-get install containerd",
    "ip": "apt-get install iproute2",
    "nsenter": "apt-get install util-linux",
    "runc": "apt-get install runc",
    "skopeo": "apt-get install skopeo",
}
_EXTRA: Final = "pagepool[containerd] (pip install 'pagepool[containerd]')"


@click.command(epilog=_EPILOG, short_help="Run pods in containerd.")
@images_option("OCI layouts, or directories of them.")
@click.option("--peer/--no-peer", default=None, help="Also pull from docker-registry. [if it is installed]")
@click.option("--runs", type=click.IntRange(1, 100), default=3, show_default=True, help="Rounds; the best counts.")
@work_option("Where to put everything meanwhile, on a real disk.")
@output_options
def pods(places: tuple[Path, ...], peer: bool | None, runs: int, work: Path | None) -> None:
    """Run pods by pagepool's snapshotter, beside containerd's overlayfs. Needs root, and the machine alone.

    The time from the beginning of a pull to the end of a container that ran a program, with nothing in storage and in
    memory, and the bytes that came; the pull alone; and a further container of the same image in the same pod. Each
    also after a start was recorded. Both pull from the same service, overlayfs from docker-registry, too.

    Registries and containerd are in namespaces of their own. It drops the caches of the whole machine.
    """
    if not places:
        raise click.UsageError("which images? Give --images DIR.")
    require_tools("bench pods", _TOOLS, [] if is_installed() else [_EXTRA])
    from pagepool_service.bench.podbench import PodPlan, measure_pods

    layouts = find_layouts(places)
    directory = work or Path(tempfile.gettempdir())
    plan = PodPlan(layouts, runs, with_peer(peer), directory.resolve(), environment(), output.note)
    signal.signal(signal.SIGTERM, interrupt)
    results = measure_pods(plan)
    if output.current().json:
        output.print_json({"images": sorted(layouts), **results.as_json()})
        return
    print_figures(results.figures)
