"""``pagepool cache``: what is kept on this machine, and what a service keeps in memory."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import click

from pagepool.cli import output
from pagepool.cli.connect import PoolOptions
from pagepool.cli.options import ReferenceType, output_options, pool_options
from pagepool.cli.progress import counting
from pagepool.cli.target import open_client, open_image
from pagepool.errors import CorruptError, NotFoundError, PagepoolError, UnreachableError, UnsupportedError
from pagepool.oci import Reference
from pagepool.pool import Scrubber

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pagepool.library import Client

_MIB = 1 << 20
_LINES = (
    ("path", "directory", ""),
    ("objects", "objects", "count"),
    ("bytes", "bytes, of", "size"),
    ("budget", "  a budget of", "size"),
    ("partial_bytes", "being filled", "size"),
    ("held_bytes", "open somewhere", "size"),
    ("retired_bytes", "removed, and still open", "size"),
    ("resident_bytes", "in memory", "size"),
    ("hits", "hits", "count"),
    ("misses", "misses", "count"),
    ("evictions", "evictions", "count"),
    ("evicted_bytes", "evicted", "size"),
    ("saved_bytes", "saved by sharing", "size"),
    ("protection", "protected at rest by", ""),
)


@click.group(
    name="cache", invoke_without_command=True, short_help="Show, fill, check or empty what is kept on this machine."
)
@output_options
@pool_options
@click.pass_context
def command(context: click.Context, **options: Unpack[PoolOptions]) -> None:
    """Look after what is kept of images: the pool of this user, and the pool of a service.

    Without a command, shows both.

    \b
    Examples:
      pagepool cache
      pagepool cache fill app:1 app:2
      pagepool cache scrub --rate 50
      pagepool cache clear
    """
    if context.invoked_subcommand is None:
        _show(options)


@command.command(name="show", short_help="Show how much there is, and what sharing saves.")
@output_options
@pool_options
def show(**options: Unpack[PoolOptions]) -> None:
    """Show how many objects there are, what they take, what is in memory, and what sharing saves.

    First this user's own pool, if there is one, then that of the service, if it can be reached. Hits and misses are
    of opening objects: reading one that is open, or mapped, asks nobody. Saved is what the images that were read take
    more than their contents, each counted once.

    \b
    Examples:
      pagepool cache show
      pagepool cache show --json | jq .service.resident_bytes
    """
    _show(options)


def _show(options: PoolOptions) -> None:
    with open_client(options) as client:
        found = {"own": _own(client), "service": _of_service(client)}
    if output.current().json:
        output.print_json(found)
        return
    for title, figures in found.items():
        output.print_line(f"{title}:")
        _print(figures)


@command.command(name="fill", short_help="Fetch images as a whole.")
@click.argument("references", metavar="REF...", type=ReferenceType(), nargs=-1, required=True)
@output_options
@pool_options
def fill(references: tuple[Reference, ...], **options: Unpack[PoolOptions]) -> None:
    """Fetch images as a whole, in as few requests as possible: they can be read without the service then.

    What does not fit is left out: files of more than a quarter of the pool's budget, and what others push out.

    \b
    Examples:
      pagepool cache fill app:1 app:2
    """
    result = []
    for reference in references:
        with open_image(options, reference) as image:
            with counting(f"fetching {reference}") as count:
                size = image.fill(count)
            result.append({"image": str(reference), "tree": str(image.tree), "bytes": size})
            if not output.current().json:
                output.note(f"{reference}: {output.human_size(size)} are here")
    if output.current().json:
        output.print_json({"images": result})


@command.command(name="scrub", short_help="Compare every object of this pool with its name.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), metavar="MB/S", help="At most so fast [no limit].")
@click.option("--repair/--no-repair", default=True, show_default=True, help="Fetch what was damaged again.")
@output_options
@pool_options
def scrub(rate: float | None, repair: bool, **options: Unpack[PoolOptions]) -> None:
    """Read all objects of this user's pool and compare them with their names. What is wrong is removed.

    It is fetched again at once, from the images of the service that are known here, or else when it is read next.
    The exit code tells: 0 if nothing is wrong (any more), 5 if something is that could not be fetched.

    \b
    Examples:
      pagepool cache scrub
      pagepool cache scrub --rate 50 --no-repair
    """
    with open_client(options) as client, client.open_pool() as pool:
        mend = client.repair if repair else None
        report = Scrubber(pool, mend, rate=None if rate is None else int(rate * 1e6)).run()
    lost = [one for one in report.damaged if not one.repaired]
    if output.current().json:
        output.print_json(
            {
                "objects": report.objects,
                "bytes": report.bytes,
                "damaged": [
                    {"object": one.digest.hex(), "reason": one.reason, "repaired": one.repaired}
                    for one in report.damaged
                ],
            }
        )
    else:
        objects, size = output.counted(report.objects, "object"), output.human_size(report.bytes)
        output.print_line(f"{objects}, {size}, {len(report.damaged)} damaged")
        for one in report.damaged:
            output.print_line(f"  {one.digest.hex()}: {one.reason}; {'fetched again' if one.repaired else 'removed'}")
    if lost:
        raise CorruptError("object", lost[0].digest.hex(), f"{lost[0].reason}; it was removed")


@command.command(name="clear")
@output_options
@pool_options
def clear(**options: Unpack[PoolOptions]) -> None:
    """Remove all objects of this user's pool. Whoever has one open goes on reading it.

    \b
    Examples:
      pagepool cache clear
    """
    with open_client(options) as client, client.open_pool() as pool:
        before = pool.stats()
        pool.clear()
    result = {"objects": before.objects, "bytes": before.bytes}
    if output.current().json:
        output.print_json(result)
    else:
        output.note(f"removed {output.counted(before.objects, 'object')}, {output.human_size(before.bytes)}")


def _own(client: Client) -> Mapping[str, Any] | None:
    if not (Path(client.directory) / "pool").is_dir():
        return None
    with client.open_pool() as pool:
        figures = asdict(pool.stats(inspect=True))
        sharing = client.measure_sharing(frozenset(pool.digests()))
        saved = {**sharing._asdict(), "saved_bytes": sharing.saved_bytes}
        return {"id": pool.id, "path": str(pool.path), **figures, "sharing": saved}


def _of_service(client: Client) -> Mapping[str, Any] | None:
    try:
        return client.service.cache()
    except (UnreachableError, UnsupportedError, NotFoundError) as error:
        output.note(str(error))
        return None
    except PagepoolError as error:
        output.warn(str(error))
        return None


def _print(figures: Mapping[str, Any] | None) -> None:
    if figures is None:
        output.print_line("  none")
        return
    shown = {**figures, **figures.get("sharing", {})}
    for name, label, kind in _LINES:
        value = shown.get(name)
        if value is not None:
            output.print_line(f"  {label:<26}{output.human_size(value) if kind == 'size' else value}")
