"""``pagepool memory``: what the images of running containers take in memory, and what sharing saves."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pagepool.cli import output, roots
from pagepool.cli.nodeclient import asked_node
from pagepool.cli.nodes import node_options
from pagepool.cli.options import output_options
from pagepool.container.records import list_containers
from pagepool.errors import UnreachableError
from pagepool.image.treefile import TreeFile
from pagepool.node.memory import MemoryInputs, MountedImage, measure_memory
from pagepool.pool.layout import object_name

if TYPE_CHECKING:
    from pagepool.node.client import NodeClient
    from pagepool.node.memory import ContainerMemory, MemoryReport, MemorySource

_HEADERS = ("CONTAINER", "IMAGE", "MAPPED", "RESIDENT", "SHARED", "TWICE", "OWN FILES", "ON DISK")
_CLEAR = "\x1b[H\x1b[J"


@click.command(name="memory", short_help="Show what containers take in memory, and what sharing saves.")
@click.option("--watch", is_flag=True, help="Show it again and again, until interrupted.")
@click.option(
    "--interval",
    "interval_s",
    type=click.FloatRange(0.1, 3600),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="With --watch: how long to wait in between.",
)
@output_options
@node_options
def command(watch: bool, interval_s: float) -> None:
    """Show, for each container, how much of its image is in memory.

    CONTAINER: its name, or else its id. MAPPED: of its files, mapped by its processes. RESIDENT: of its image, in
    the page cache. SHARED: of that, what other containers have, too. TWICE: what is in memory a second time, because
    a large file was opened before it was whole. OWN FILES: in memory, of files it wrote. ON DISK: of its image, in
    the node's pool. The page cache does not say who read a page: what several images contain is resident for each of
    them. With --quiet, only the totals.

    \b
    Examples:
      pagepool memory
      pagepool memory --watch
      pagepool memory --json | jq .saved
    """
    source = open_source()
    while True:
        report = measure_memory(source.inputs())
        if watch and not output.current().json and sys.stdout.isatty():
            output.print_line(_CLEAR)
        _show(report, watch)
        if not watch:
            return
        output.flush()
        time.sleep(interval_s)


class NodeMemory:
    """What the node of this machine has mounted.

    Args:
        node: that node.
    """

    def __init__(self, node: NodeClient) -> None:
        self._node = node
        self._trees: dict[str, TreeFile] = {}

    def inputs(self) -> MemoryInputs:
        """See `MemorySource`."""
        places = self._node.places
        containers = []
        for mount in self._node.mounts():
            tree = self._trees.get(mount["tree"])
            if tree is None:
                try:
                    tree = self._trees[mount["tree"]] = TreeFile.open(places.tree_files / mount["tree"])
                except FileNotFoundError:
                    output.warn(f"{mount['path']} is left out: the tree file of {mount['image']} is gone")
                    continue
            upper = Path(mount["upper"]) / "upper" if mount["upper"] else None
            identity = mount["owner"] or mount["id"]
            containers.append(MountedImage(identity, mount["image"], tree, upper, Path(mount["path"])))
        lazy = {digest: places.lazy / "fetch" / object_name(digest) for digest in self._node.lazy_objects()}
        return MemoryInputs(containers, places.objects, lazy)


def open_source() -> MemorySource:
    """The node that runs on this machine.

    Raises:
        UnreachableError: there is none.
        DeniedError: this user may not ask it.
    """
    node = asked_node()
    if not node.is_running():
        raise UnreachableError(str(node.places.run), "the node is not running; pagepool node start")
    return NodeMemory(node)


def report_as_json(report: MemoryReport) -> dict[str, Any]:
    """For `--json`."""
    found, names = asdict(report), container_names()
    containers = [{"id": one["id"], "name": names.get(one["id"]), **one} for one in found["containers"]]
    return {**found, "containers": containers, "saved": report.saved}


def container_names() -> dict[str, str]:
    """Names of containers that have one, by id. What else is mounted has none."""
    return {one.id: one.name for one in list_containers(roots.containers_directory()) if one.name}


def _show(report: MemoryReport, watch: bool) -> None:
    if output.current().json:
        if watch:
            output.print_line(json.dumps(report_as_json(report)))  # one document a line
        else:
            output.print_json(report_as_json(report))
        return
    if not output.current().quiet:
        names = container_names()
        rows = [_cells(one, names.get(one.id) or one.id[:12]) for one in report.containers]
        output.print_table(_HEADERS, rows, right=range(2, len(_HEADERS)))
        output.print_line()
    size = output.human_size
    output.print_line(f"in memory, of images:      {size(report.resident):>10}")
    output.print_line(f"  shared between containers{size(report.shared):>11}")
    output.print_line(f"  held twice               {size(report.twice):>11}")
    output.print_line(f"of containers' own files:  {size(report.private):>10}")
    output.print_line(f"shared by image only:      {size(report.per_image):>10}")
    output.print_line(f"without any sharing:       {size(report.per_container):>10}")


def _cells(one: ContainerMemory, name: str) -> tuple[str, ...]:
    figures = (one.mapped, one.resident, one.shared, one.twice, one.private, one.present)
    return (
        output.printable(name),
        one.image,
        *("-" if figure is None else output.human_size(figure) for figure in figures),
    )
