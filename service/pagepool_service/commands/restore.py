"""`pagepool restore`: make a store out of a backup, or check a backup by doing so."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pagepool.cli import exits, output, progress
from pagepool.cli.options import output_options
from pagepool_service.backup.repository import SnapshotUnknownError, check_apart, open_repository
from pagepool_service.backup.restoring import check_snapshot
from pagepool_service.backup.restoring import restore as restore_snapshot
from pagepool_service.commands.backup import describe_restored, print_restored

if TYPE_CHECKING:
    from pagepool_service.backup.repository import Repository

_EPILOG = """
\b
Exit codes:
  0  everything was restored, or checked, and is right
  5  files of the backup are damaged, or what was restored is
  others as of every pagepool command

\b
Examples:
  pagepool restore /mnt/backup/pagepool /var/lib/pagepool
  pagepool restore --snapshot 20260301T040000.000000Z-0123456789abcdef /mnt/backup/pagepool ./data
  pagepool restore --check --scratch /mnt/scratch /mnt/backup/pagepool
"""


@click.command(short_help="Restore a store from a backup.", epilog=_EPILOG)
@click.argument("source", metavar="SRC", type=click.Path(path_type=Path, file_okay=False))
@click.argument("data", metavar="[DATA]", required=False, type=click.Path(path_type=Path, file_okay=False))
@click.option("--snapshot", metavar="ID", help="Which one, or the beginning of its id. [the newest]")
@click.option("--check", is_flag=True, help="Restore into a directory that is removed again: nothing is kept.")
@click.option(
    "--scratch",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Where --check restores to; it needs the room of the whole store. [the system's temporary directory]",
)
@click.option("--partial", is_flag=True, help="Of a damaged backup, keep what can be restored.")
@output_options
@click.pass_context
def restore(
    ctx: click.Context,
    source: Path,
    data: Path | None,
    snapshot: str | None,
    check: bool,
    scratch: Path | None,
    partial: bool,
) -> None:
    """Make the data directory DATA out of a snapshot in SRC. DATA must be empty, or not there.

    Every file and record is compared with its checksum, and the new store is read back whole as by `pagepool fsck`.
    If anything is damaged nothing is kept, and the files and images concerned are named.
    """
    if check == (data is not None):
        raise click.UsageError("give DATA, or --check without it.", ctx)
    if check and partial:
        raise click.UsageError("--partial is of restoring into DATA, not of --check.", ctx)
    if data is not None:
        check_apart(data, source)
    with open_repository(source, write=False) as repository:
        name = choose_snapshot(repository, snapshot)
        chosen = repository.load(name)
        with progress.counting("restoring", chosen.size) as count:
            if data is None:
                done = check_snapshot(repository, chosen, scratch or Path(tempfile.gettempdir()), progress=count)
            else:
                done = restore_snapshot(repository, chosen, data, partial=partial, progress=count)
    result = {"snapshot": name, "data": None if data is None else str(data), **describe_restored(done)}
    if output.current().json:
        output.print_json(result)
    else:
        print_restored(result, f"checked snapshot {name}" if data is None else f"restored snapshot {name} to {data}")
        if not done.clean:
            kept = data is not None and partial
            output.print_line(
                "what could be read was kept: run `pagepool fsck --repair`" if kept else "nothing was kept"
            )
    if not done.clean:
        ctx.exit(exits.CORRUPT)


def choose_snapshot(repository: Repository, wanted: str | None) -> str:
    """The id of a snapshot: the newest, or the one whose id begins like that.

    Raises:
        SnapshotUnknownError: there is none, or several.
    """
    known = repository.list_snapshots()
    found = [name for name in known if name.startswith(wanted or "")]
    if wanted is None and known:
        return known[-1]
    if len(found) != 1:
        what = f"{wanted or 'newest'} in {repository.path}"
        raise SnapshotUnknownError(f"{what} ({'several begin so' if found else f'it has {len(known)} snapshots'})")
    return found[0]
