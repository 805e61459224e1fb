"""`pagepool fsck`: check a store, say which images are concerned, and repair it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import click

from pagepool.cli import exits, output
from pagepool.cli.connect import TrustOptions
from pagepool.cli.options import output_options, trust_options
from pagepool_service.commands.dataoption import data_option
from pagepool_service.commands.watching import watching
from pagepool_service.encoders import keep_compiled
from pagepool_service.settings import Settings
from pagepool_service.store.fsck import check_store
from pagepool_service.store.store import check_there

if TYPE_CHECKING:
    from pagepool_service.store.fsck import Report

_EPILOG = """
\b
Exit codes:
  0  nothing is damaged, or everything was repaired
  5  something is damaged; with --repair: something could not be repaired
  9  with --repair: the database itself is damaged, and a service is running
  others as of every pagepool command

\b
Examples:
  pagepool fsck
  pagepool fsck --quick --json --data /var/lib/pagepool
  pagepool fsck app:1 library/debian@sha256:...
  pagepool fsck --repair --dry-run
  pagepool fsck --repair --from https://mirror.example --from /mnt/backup/pagepool
"""
_IMAGES_SHOWN = 8


@click.command(epilog=_EPILOG)
@click.argument("images", nargs=-1, metavar="[IMAGE]...")
@data_option
@click.option("--quick", is_flag=True, help="Check records and structure only: read no file content.")
@click.option("--repair", is_flag=True, help="Repair what is damaged; what cannot be repaired is moved away and named.")
@click.option(
    "--from",
    "sources",
    multiple=True,
    metavar="REF",
    help="With --repair: get content again from there: http(s)://HOST[/REPOSITORY], an OCI layout or archive, or a "
    "directory of backups. Can be given several times.",
)
@click.option("--dry-run", is_flag=True, help="With --repair: say what would be done first, and change nothing.")
@trust_options
@output_options
@click.pass_context
def fsck(
    ctx: click.Context,
    images: tuple[str, ...],
    data: Path | None,
    quick: bool,
    repair: bool,
    sources: tuple[str, ...],
    dry_run: bool,
    **trust: Unpack[TrustOptions],
) -> None:
    """Read everything in the store again and verify it. Changes nothing without --repair; a service may be running.

    Every record's checksum, every frame and extent, every object, layer and blob against its digest, and every
    reference between them. With IMAGE... only what these images are made of.

    With --repair, damaged records are made again from others, or from the content that is still there, or got from the
    places that --from names. What nothing brings back is moved to DATA/quarantine, and can be pushed again.

    With --quiet, only problems are printed, and what was done about them.

    --insecure, --ca-certificate, --username and --password-stdin are for the servers that --from names.
    """
    if not repair and (sources or dry_run):
        raise click.UsageError("--from and --dry-run need --repair.", ctx)
    if not sources and (trust["username"] is not None or trust["password_stdin"]):
        raise click.UsageError("--username and --password-stdin are for --from.", ctx)
    if repair and images:
        raise click.UsageError("--repair is of the whole store: give no IMAGE.", ctx)
    settings = Settings.load(data=data)
    check_there(settings.data)
    keep_compiled(settings.data / "encoders", make=False)  # the service's, where it is the same user
    state = output.current()
    as_json, shown = state.json, sys.stderr.isatty() and not state.json and not state.quiet
    if repair:
        _repair(ctx, settings, sources, trust, quick=quick, dry_run=dry_run, shown=shown)
        return
    with watching(shown) as watch:
        report = check_store(settings.data, quick=quick, images=images, watch=watch)
    if as_json:
        click.echo(json.dumps(_as_json(settings.data, report), indent=2))
    else:
        _print(report)
    if not report.clean:
        ctx.exit(exits.CORRUPT)


def _repair(
    ctx: click.Context,
    settings: Settings,
    sources: tuple[str, ...],
    trust: TrustOptions,
    *,
    quick: bool,
    dry_run: bool,
    shown: bool,
) -> None:
    from pagepool_service.commands import repairing
    from pagepool_service.maintaining import limits_of
    from pagepool_service.pools import cache_directory
    from pagepool_service.repair.run import Plan, repair_store
    from pagepool_service.store.checks import Message

    with watching(shown) as watch, repairing.open_sources(sources, trust) as opened:
        tell = (lambda text: watch(Message("stage", text))) if watch else (lambda _: None)
        plan = Plan(opened, cache_directory(settings), limits_of(settings), quick, dry_run, watch, tell)
        done = repair_store(settings.data, plan)
    if output.current().json:
        click.echo(json.dumps(repairing.as_json(settings.data, done, dry_run=dry_run), indent=2))
    else:
        repairing.print_repaired(done, dry_run=dry_run)
    if not done.clean:
        ctx.exit(exits.CORRUPT)


def _as_json(data: Path, report: Report) -> dict[str, Any]:
    return {
        "data": str(data),
        "clean": report.clean,
        "quick": report.quick,
        "seconds": round(report.seconds, 3),
        "checked": dict(sorted(report.checked.items())),
        "problems": [asdict(problem) for problem in report.problems],
        "notes": report.notes,
    }


def _print(report: Report) -> None:
    for problem in report.problems:
        click.echo(f"{problem.kind} {problem.name}: {problem.reason}")
        if problem.images:
            shown = ", ".join(problem.images[:_IMAGES_SHOWN])
            more = len(problem.images) - _IMAGES_SHOWN
            click.echo(f"    images: {shown}" + (f" and {more} more" if more > 0 else ""))
    if output.current().quiet:
        return
    for note in report.notes:
        click.echo(f"note: {note}")
    counted = ", ".join(f"{number:,} {what}" for what, number in sorted(report.checked.items()) if number)
    click.echo(f"checked in {report.seconds:.1f} s: {counted or 'nothing'}")
    found = output.counted(len(report.problems), "problem") if report.problems else "no problems"
    click.echo(f"{found} found")
