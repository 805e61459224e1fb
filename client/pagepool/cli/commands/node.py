"""``pagepool node``: the node of this machine, which mounts images by the kernel and fetches what containers open."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from pagepool.cli import output
from pagepool.cli.nodeclient import asked_node, node_client
from pagepool.cli.nodes import AddressType, SizeType, node_options
from pagepool.cli.options import output_options
from pagepool.errors import UnreachableError
from pagepool.transport.addresses import is_loopback

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pagepool.node.client import NodeClient
    from pagepool.node.worker import WorkerOptions


@click.group(name="node", invoke_without_command=True, short_help="Run the node, which mounts images by the kernel.")
@output_options
@node_options
@click.pass_context
def command(context: click.Context) -> None:
    """Run and look after the node of this machine.

    The node owns the pool that kernel mounts read from, and fetches what containers open and is not there. It is
    two processes that start each other again: a container sees no error when either is killed, hangs, or is
    replaced by a newer version. `pagepool mount` and `pagepool run` start it when they need it.

    Without a command, says how it is.

    \b
    Examples:
      pagepool node start --budget 50GB
      pagepool node
      pagepool node restart
    """
    if context.invoked_subcommand is None:
        _print_status()


@command.command(name="start")
@click.option(
    "--budget",
    type=SizeType(),
    metavar="SIZE",
    help="Most bytes of the pool [as it was; at first 10 GiB, or half of a pool image].",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=1),
    default=30.0,
    show_default=True,
    metavar="S",
    help="How long a service may take before whoever waits for a file gets an error.",
)
@click.option(
    "--large",
    type=SizeType(),
    default=8 << 20,
    metavar="SIZE",
    help="Files of more bytes are read piece by piece while they are fetched [8MiB].",
)
@click.option("--fill/--no-fill", default=True, show_default=True, help="Fetch the rest of what is mounted.")
@click.option("--profiles/--no-profiles", default=True, show_default=True, help="Learn what containers open first.")
@click.option(
    "--parts",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    show_default=True,
    help="Read files of over 1 MiB piece by piece, too, while containers start; auto: over slow links.",
)
@click.option(
    "--pool-image",
    type=SizeType(),
    metavar="SIZE",
    help="Keep all on an XFS of this size, in a file beside --node-state: copies of large files share their bytes.",
)
@click.option(
    "--metrics-listen",
    type=AddressType(),
    envvar="PAGEPOOL_NODE_METRICS_LISTEN",
    metavar="HOST:PORT",
    help="Address and port that answer Prometheus, GET /metrics [$PAGEPOOL_NODE_METRICS_LISTEN, or none].",
)
@click.option(
    "--foreground",
    is_flag=True,
    help="Stay until the node ends, with its log on standard error: for systemd and containers.",
)
@output_options
@node_options
def start(
    budget: int | None,
    timeout_s: float,
    large: int,
    fill: bool,
    profiles: bool,
    parts: str,
    pool_image: int | None,
    metrics_listen: tuple[str, int] | None,
    foreground: bool,
) -> None:
    """Start the node, unless it is running.

    With --foreground the command ends when the node does, with exit code 6 if all of its processes have died. SIGTERM
    and Ctrl-C end the node as `pagepool node stop` does, SIGHUP replaces its processes as `pagepool node restart`.

    \b
    Examples:
      pagepool node start
      pagepool node start --budget 50GB --timeout 10
      pagepool node start --pool-image 100GB
      pagepool node start --foreground --metrics-listen 127.0.0.1:5002
    """
    from pagepool.node.links import ReadInParts
    from pagepool.node.start import ensure_node
    from pagepool.node.worker import WorkerOptions

    client = node_client()
    options = WorkerOptions(
        budget,
        timeout_s,
        large,
        fill,
        profiles,
        ReadInParts(parts),
        pool_image=pool_image,
        metrics_listen=metrics_listen,
    )
    if metrics_listen is not None and not is_loopback(metrics_listen[0]):
        output.warn(f"metrics on {metrics_listen[0]}: everyone who reaches it sees them, without a password")
    if foreground:
        _stay(client, options)
        return
    started = ensure_node(client.places, options)
    if output.current().json:
        output.print_json({"started": started, **client.status()})
    elif started:
        output.note(f"started; the pool is {client.places.pool}")
    else:
        output.note("it was running already; its options are as they were (pagepool node stop ends it)")


def _stay(client: NodeClient, options: WorkerOptions) -> None:
    """Start the node, and come back when it has ended."""
    from pagepool.linux.notify import notify
    from pagepool.node.staying import stay

    manager = os.environ.get("NOTIFY_SOCKET", "")

    def ready() -> None:
        output.note(f"started; the pool is {client.places.pool}")
        notify(manager, "READY=1")

    def say(text: bytes) -> None:
        sys.stderr.buffer.write(text)
        sys.stderr.buffer.flush()

    ended = stay(client.places, options, on_ready=ready, on_log=say)
    if ended is not None and ended.mounts:
        _warn_of_mounts(ended.mounts)
    else:
        output.note("ended")


def _warn_of_mounts(count: int) -> None:
    goes, cannot = ("goes", "it cannot") if count == 1 else ("go", "they cannot")
    output.warn(f"ended; {output.counted(count, 'mount')} {goes} on with what is here, and {cannot} fetch anything")


@command.command(name="stop")
@output_options
@node_options
def stop() -> None:
    """End the node. What is mounted stays mounted, and goes on reading what is here. If nothing is, nothing that the
    node has mounted for itself stays either, also after its processes were all killed.

    What is not here is an error for containers from then on, until they are mounted anew: start the node again
    before anything needs it, or use `pagepool node restart`, which loses nothing.

    \b
    Examples:
      pagepool node stop
    """
    client = asked_node()
    ended = client.stop()
    if not (ended.was_running or ended.cleared):
        raise UnreachableError(str(client.places.run), "the node is not running")
    if output.current().json:
        output.print_json({"stopped": ended.was_running, "mounts": ended.mounts, "cleared": ended.cleared})
    elif ended.mounts:
        _warn_of_mounts(ended.mounts)
    else:
        output.note("ended" if ended.was_running else "it was not running; what was left of it is unmounted")


@command.command(name="restart", short_help="Replace the node's processes by new ones.")
@output_options
@node_options
def restart() -> None:
    """Replace the node's processes by new ones, of the version that is installed. Containers notice nothing.

    \b
    Examples:
      pagepool node restart
    """
    from pagepool.node.start import upgrade_node

    with _told(asked_node()) as client:
        before = client.status()["pid"]
    after = upgrade_node(client.places)
    if output.current().json:
        output.print_json({"before": before, "after": after})
    else:
        output.note(f"process {after} has taken over from {before}")


@command.command(name="status")
@output_options
@node_options
def status() -> None:
    """Say how the node is. The exit code tells whether it is running: 6 if not.

    \b
    Examples:
      pagepool node status --json
    """
    _print_status()


@command.command(name="scrub", short_help="Compare every object of the node's pool with its name.")
@output_options
@node_options
def scrub() -> None:
    """Compare every object of the node's pool with its name; what is damaged is removed, and fetched again.

    \b
    Examples:
      pagepool node scrub
    """
    with _told(asked_node()) as client:
        found = client.scrub()
    if output.current().json:
        output.print_json(found)
    else:
        output.print_line(f"{output.counted(found['objects'], 'object')}, {len(found['damaged'])} damaged")


@contextmanager
def _told(client: NodeClient) -> Iterator[NodeClient]:
    """Say that a node is not running, instead of why its socket does not answer."""
    try:
        yield client
    except UnreachableError as error:
        if client.is_running():
            raise
        raise UnreachableError(str(client.places.run), "the node is not running; pagepool node start") from error


def _print_status() -> None:
    with _told(asked_node()) as client:
        found = client.status()
    if output.current().json:
        output.print_json(found)
        return
    for label, text in _lines(found):
        output.print_line(f"{label:<14}{text}")


def _lines(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    pool = found["pool"]
    used, budget = output.human_size(pool["used"]), output.human_size(pool["budget"])
    return [
        ("version", str(found["version"])),
        ("process", str(found["pid"])),
        ("state", str(found["state"])),
        ("mounts", f"{found['mounts']:,}"),
        ("images", f"{found['trees']:,}, mounted now or within the last day"),
        ("pool", f"{output.counted(pool['objects'], 'object')}, {used} of {budget}"),
        ("evictions", str(pool["evictions"])),
        *([("metrics", f"http://{found['metrics']}/metrics")] if found.get("metrics") else []),
    ]
