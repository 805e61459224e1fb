"""`pagepool fsck`: check a store, and say which images are concerned."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pagepool.cli import exits
from pagepool_service.commands.watching import watching
from pagepool_service.settings import Settings
from pagepool_service.store.fsck import check_store

if TYPE_CHECKING:
    from pagepool_service.store.fsck import Report

_EPILOG = """
\b
Exit codes:
  0  nothing is damaged
  5  something is damaged
  others as of every pagepool command

\b
Examples:
  pagepool fsck
  pagepool fsck --quick --json --data /var/lib/pagepool
  pagepool fsck app:1 library/debian@sha256:...
"""
_IMAGES_SHOWN = 8


@click.command(epilog=_EPILOG)
@click.argument("images", nargs=-1, metavar="[IMAGE]...")
@click.option("--data", type=click.Path(path_type=Path, file_okay=False), help="Data directory.")
@click.option("--quick", is_flag=True, help="Check records and structure only: read no file content.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.pass_context
def fsck(ctx: click.Context, images: tuple[str, ...], data: Path | None, quick: bool, as_json: bool) -> None:
    """Read everything in the store again and verify it. Changes nothing; a service may be running.

    Every record's checksum, every frame and extent, every object, layer and blob against its digest, and every
    reference between them. With IMAGE... only what these images are made of.
    """
    settings = Settings.load(data=data)
    with watching(sys.stderr.isatty() and not as_json) as watch:
        report = check_store(settings.data, quick=quick, images=images, watch=watch)
    if as_json:
        click.echo(json.dumps(_as_json(settings.data, report), indent=2))
    else:
        _print(report)
    if not report.clean:
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
    for note in report.notes:
        click.echo(f"note: {note}")
    counted = ", ".join(f"{number:,} {what}" for what, number in sorted(report.checked.items()) if number)
    click.echo(f"checked in {report.seconds:.1f} s: {counted or 'nothing'}")
    found = len(report.problems)
    click.echo("no problems found" if not found else f"{found} problem{'s' if found > 1 else ''} found")
