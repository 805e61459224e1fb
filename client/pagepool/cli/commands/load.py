"""``pagepool load``: many clients at a service, and a report; ``pagepool load client``: one of them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import click

from pagepool.cli.connect import AccessOptions
from pagepool.cli.loading import ClientWish, LoadWish, run_client, run_load
from pagepool.cli.nodes import SizeType, node_options
from pagepool.cli.options import ReferenceType, access_options, output_options
from pagepool.load.access.interface import MODES
from pagepool.load.mix import Mix, parse_mix

if TYPE_CHECKING:
    from pagepool.oci import Reference

_DEFAULT = "run"


class _DefaultGroup(click.Group):
    """A group that takes what is none of its commands as the arguments of `run`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the name of the command in front where there is none."""
        if not args or (args[0] not in self.commands and args[0] not in self.get_help_option_names(ctx)):
            args = [_DEFAULT, *args]
        return super().parse_args(ctx, args)


class _RunCommand(click.Command):
    """Says what there is instead to whoever takes it for `docker load`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """See `click.Command`."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            from pagepool.cli.elsewhere import LOAD_OPTIONS, unknown_option

            raise unknown_option(error, LOAD_OPTIONS) from None


class _AddressType(click.ParamType):  # type: ignore[type-arg] # not generic before click 8.2
    """An address to listen on."""

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        """Parse."""
        if isinstance(value, tuple):
            return value
        host, _, port = str(value).rpartition(":")
        if not host or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
            self.fail(f"{value!r} is no HOST:PORT", param, ctx)
        return host.strip("[]"), int(port)


class _MixType(click.ParamType):  # type: ignore[type-arg] # not generic before click 8.2
    """A mix; a bad one is invalid input, not wrong usage."""

    name = "mix"

    def convert(self, value: Any, *_: object) -> Mix:
        """Parse."""
        return value if isinstance(value, Mix) else parse_mix(str(value), Mix())


class _ReportType(click.Path):
    """A report's file, which says by its name what it is."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Check the ending."""
        path = super().convert(value, param, ctx)
        if Path(os.fsdecode(path)).suffix not in (".html", ".json"):
            self.fail(f"{str(value)!r} ends in neither .html nor .json", param, ctx)
        return path


@click.group(name="load", cls=_DefaultGroup, short_help="Load a service with many clients, and report how it did.")
def command() -> None:
    """Load a service with many clients that do what containers do, compare every byte that they read, and report how
    it did. `pagepool load [SERVICE]` is `pagepool load run [SERVICE]`.

    \b
    Examples:
      pagepool load
      pagepool load http://127.0.0.1:5000 --clients 50 --seconds 60 --report load.html
      pagepool load client --coordinator http://coordinator:7000
    """


@command.command(name=_DEFAULT, cls=_RunCommand, short_help="Run a load test, and report on it.")
@click.argument("service", metavar="[SERVICE]", required=False)
@click.option(
    "--image",
    "images",
    multiple=True,
    type=ReferenceType(),
    metavar="REF",
    help="An image of the service to read; again for more [two are made of this machine's files, and pushed].",
)
@click.option(
    "--size", type=SizeType(), default="60MB", show_default=True, help="About how large each made image is, plain."
)
@click.option("-n", "--clients", type=click.IntRange(1, 1000), default=4, show_default=True, help="How many clients.")
@click.option(
    "-t",
    "--seconds",
    type=click.FloatRange(0.1, 86400),
    default=10.0,
    show_default=True,
    metavar="S",
    help="How long they work.",
)
@click.option(
    "--mix",
    type=_MixType(),
    default=None,
    metavar="NAME=WEIGHT,...",
    help="What they do how often [start=1,read=2000,write=100,push=0.02; no write over http, nor by fuse but as root].",
)
@click.option(
    "--zipf",
    type=click.FloatRange(0, 10),
    default=1.0,
    show_default=True,
    metavar="S",
    help="How uneven page reads are: the page of rank r is read in proportion to 1/r^S.",
)
@click.option(
    "--mode",
    type=click.Choice(list(MODES)),
    default="library",
    show_default=True,
    help="How clients read: by the library, by mounts (fuse; kernel, as root), or by requests alone.",
)
@click.option(
    "--rate",
    type=click.FloatRange(0),
    default=0.0,
    metavar="N",
    help="Operations of each client in a second [no limit].",
)
@click.option("--seed", type=int, default=1, show_default=True, help="Of all chance.")
@click.option(
    "--trace",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="What a start reads, as JSON lines [what the service has learned of the image, or a guess].",
)
@click.option(
    "--report",
    "reports",
    multiple=True,
    type=_ReportType(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the report to FILE, which ends in .html or .json; again for both.",
)
@click.option("--metrics", default="", metavar="URL", help="Where the service's metrics are, for its memory.")
@click.option(
    "--listen",
    type=_AddressType(),
    default=None,
    metavar="HOST:PORT",
    help="Wait there for clients that others start (pagepool load client), instead of starting them.",
)
@click.option("--advertise", default="", metavar="URL", help="The service's address as clients reach it [SERVICE].")
@click.option(
    "--join-timeout",
    "join_s",
    type=click.FloatRange(1),
    default=120.0,
    show_default=True,
    metavar="S",
    help="How long to wait until all clients are ready; then those that are begin.",
)
@click.option(
    "--lost-after",
    "lost_s",
    type=click.FloatRange(1),
    default=15.0,
    show_default=True,
    metavar="S",
    help="A client that was not heard of for so long is lost, which is an error.",
)
@click.option("--keep", is_flag=True, help="Do not delete what was pushed.")
@output_options
@node_options
@access_options
def run(
    service: str | None,
    images: tuple[Reference, ...],
    reports: tuple[Path, ...],
    mix: Mix | None,
    **options: Any,
) -> int:
    """Have many clients, each a process, start images, read pages, write into overlays and push new versions for a
    while, and report throughput, latencies, hit ratio, memory of each client, and errors.

    What is read is compared with what the images' layers hold, page by page; whatever pagepool itself verifies.
    Wrong bytes, errors and clients that are lost are shown, and make the exit code 5, 1 and 1.

    SERVICE is a URL or HOST[:PORT]. Without it a service is started for the test, with its store in a temporary
    directory, and gone afterwards; that needs pagepool[service]. Images that are made are kept in the repository
    pagepool-load/app, new versions in pagepool-load/versions, until the end. $TMPDIR says where temporary files are.
    Ctrl-C ends the test early, with a report of what was done. Never load a service that others need.

    With --listen clients run where you start them, in containers for example; the test begins when all have come.
    Whoever reaches that address can take part, so let only those reach it.

    \b
    Examples:
      pagepool load
      pagepool load 127.0.0.1:5000 --image app:1 --image app:2 --clients 50 --seconds 60
      pagepool load --mix read=1 --zipf 0.8 --report load.html --report load.json
      pagepool load http://service:5000 --plain-http --listen 0.0.0.0:7000 --clients 50
    """
    return run_load(LoadWish(service, images, reports, mix, **options))


@command.command(name="client", short_help="Be one client of a load test.")
@click.option("--coordinator", required=True, metavar="URL", help="Who runs the test: http://HOST:PORT.")
@click.option(
    "--service", default=None, metavar="URL", help="The service's address from here [what the coordinator says]."
)
@click.option(
    "--pool",
    envvar="PAGEPOOL_POOL",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Where files are kept once they were fetched; clients of a machine can share it [$PAGEPOOL_POOL, or a "
    "temporary directory].",
)
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(0),
    default=60.0,
    show_default=True,
    metavar="S",
    help="How long to wait for the coordinator to be there.",
)
@click.option("--work", type=click.Path(path_type=Path, file_okay=False), hidden=True, help="An empty directory.")
@click.option("--attached", is_flag=True, hidden=True, help="Stop when standard input ends.")
@output_options
@node_options
@access_options
def client(
    coordinator: str,
    service: str | None,
    pool: Path | None,
    wait_s: float,
    work: Path | None,
    attached: bool,
    **access: Unpack[AccessOptions],
) -> int:
    """Be one client of a load test whose coordinator waits for clients (pagepool load --listen).

    Waits until the coordinator is there and all clients have come, works, hands in what it measured, and ends. Also
    when the coordinator has gone. The exit code is 5 if it read wrong bytes. SIGTERM and Ctrl-C end it early; what
    it measured is handed in.

    \b
    Examples:
      pagepool load client --coordinator http://127.0.0.1:7000
      docker compose up --scale client=50
    """
    return run_client(ClientWish(coordinator, service, pool, wait_s, work, attached, access))
