"""`pagepool backup`: take a backup of a store, list those that there are, and forget old ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pagepool.cli import exits, output, progress
from pagepool.cli.options import output_options
from pagepool.errors import CorruptError
from pagepool_service.backup.repository import Repository, check_apart, open_repository
from pagepool_service.backup.restoring import check_snapshot
from pagepool_service.backup.taking import take_backup
from pagepool_service.commands.dataoption import data_option
from pagepool_service.settings import Settings
from pagepool_service.store.store import check_there

if TYPE_CHECKING:
    from pagepool_service.backup.repository import Snapshot
    from pagepool_service.backup.restoring import Restored

_EPILOG = """
\b
Exit codes:
  0  everything that the store holds is in the backup
  5  the store has damaged records, which are named and left out; or --verify has found damage
  others as of every pagepool command

\b
Examples:
  pagepool backup /mnt/backup/pagepool
  pagepool backup --verify --keep 14 /mnt/backup/pagepool
  pagepool backup --list /mnt/backup/pagepool
"""
_IMAGES_SHOWN = 8


@click.command(short_help="Back up a store.", epilog=_EPILOG)
@click.argument("destination", metavar="DEST", type=click.Path(path_type=Path, file_okay=False))
@data_option
@click.option("--list", "only_list", is_flag=True, help="List the snapshots that DEST has, and take none.")
@click.option(
    "--keep",
    type=click.IntRange(1),
    metavar="N",
    help="Afterwards forget all snapshots but the newest N; none if anything was damaged.",
)
@click.option("--verify", is_flag=True, help="Check the new snapshot by restoring it into a directory that is removed.")
@click.option(
    "--scratch",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Where --verify restores to; it needs the room of the whole store. [DEST/tmp]",
)
@output_options
@click.pass_context
def backup(
    ctx: click.Context,
    destination: Path,
    data: Path | None,
    only_list: bool,
    keep: int | None,
    verify: bool,
    scratch: Path | None,
) -> None:
    """Take a backup of a store into DEST, while a service runs or not.

    DEST is a directory on another disk, which may hold many snapshots: what they share is there once, and a new one
    writes only what is new. Each snapshot is of one moment. Uploads that are under way are not part of it.
    """
    if only_list:
        with open_repository(destination, write=False) as repository:
            _list(repository)
        return
    settings = Settings.load(data=data)
    check_apart(settings.data, destination)
    check_there(settings.data)  # before anything is made of DEST
    result: dict[str, Any] = {}
    with open_repository(destination, write=True) as repository:
        with progress.counting("reading") as count:
            name = take_backup(settings.data, repository, count)
        snapshot = repository.load(name)
        result = _described(name, snapshot)
        clean = not snapshot.damaged
        if verify:
            checked = _verify(repository, snapshot, scratch or destination / "tmp")
            clean = clean and checked.clean
            result["verified"] = describe_restored(checked)
        if keep is not None:
            # What is damaged, and was left out of this one, earlier ones may have still.
            result["forgotten"], result["freed_bytes"] = repository.forget(keep, name) if clean else ([], 0)
    if output.current().json:
        output.print_json(result)
    else:
        _print(result, clean=clean)
    if not clean:
        ctx.exit(exits.CORRUPT)


def _verify(repository: Repository, snapshot: Snapshot, scratch: Path) -> Restored:
    with progress.counting("restoring", snapshot.size) as count:
        return check_snapshot(repository, snapshot, scratch, progress=count)


def _list(repository: Repository) -> None:
    rows: list[dict[str, Any]] = []
    for name in repository.list_snapshots():
        try:
            rows.append(_described(name, repository.load(name)))
        except CorruptError as error:
            rows.append({"snapshot": name, "error": str(error)})
    if output.current().json:
        output.print_json({"snapshots": rows})
        return
    cells = [
        [row["snapshot"], "", "", "", row["error"]]
        if "error" in row
        else [row["snapshot"], str(row["tags"]), str(row["blobs"]), output.human_size(row["bytes"]), row["source"]]
        for row in rows
    ]
    output.print_table(["SNAPSHOT", "TAGS", "BLOBS", "SIZE", "SOURCE"], cells, right=(1, 2, 3))


def _described(name: str, snapshot: Snapshot) -> dict[str, Any]:
    statistics = snapshot.statistics
    return {
        "snapshot": name,
        "created": snapshot.created,
        "source": snapshot.source,
        "store_format": snapshot.store_format,
        "bytes": snapshot.size,
        "records": snapshot.records,
        "tags": statistics.get("tags", 0),
        "manifests": statistics.get("manifests", 0),
        "blobs": statistics.get("blobs", 0),
        "written_bytes": statistics.get("written_bytes", 0),
        "written_records": statistics.get("written_records", 0),
        "damaged": [{"kind": kind, "name": record} for kind, record in snapshot.damaged],
    }


def describe_restored(done: Restored) -> dict[str, Any]:
    """What a restore did, for JSON."""
    return {
        "clean": done.clean,
        "records": done.records,
        "files": done.files,
        "bytes": done.size,
        "damaged": [{"path": d.path, "reason": d.reason, "held": d.held} for d in done.damage],
        "checked": dict(sorted(done.report.checked.items())),
        "problems": [
            {"kind": p.kind, "name": p.name, "reason": p.reason, "images": list(p.images)} for p in done.report.problems
        ],
    }


def print_restored(result: dict[str, Any], verb: str) -> None:
    """The same for people."""
    for damage in result["damaged"]:
        output.print_line(f"damaged: {damage['path']}: {damage['reason']}")
        output.print_line(f"    held: {damage['held']}")
    for problem in result["problems"]:
        output.print_line(f"{problem['kind']} {problem['name']}: {problem['reason']}")
        if problem["images"]:
            more = len(problem["images"]) - _IMAGES_SHOWN
            shown = ", ".join(problem["images"][:_IMAGES_SHOWN])
            output.print_line(f"    images: {shown}" + (f" and {more} more" if more > 0 else ""))
    size = output.human_size(result["bytes"])
    output.print_line(f"{verb}: {result['records']:,} records and {size} in {result['files']:,} files compared")
    counted = ", ".join(f"{number:,} {what}" for what, number in result["checked"].items() if number)
    output.print_line(f"fsck of what was restored: {counted or 'nothing'}")


def _print(result: dict[str, Any], *, clean: bool) -> None:
    for record in result["damaged"]:
        output.warn(f"left out, because it is damaged: {record['kind']} {record['name']}")
    written = output.human_size(result["written_bytes"])
    size = output.human_size(result["bytes"])
    output.print_line(f"snapshot {result['snapshot']}: {size} in {result['records']:,} records, {written} of it new")
    if "verified" in result:
        print_restored(result["verified"], "verified by restoring")
    if "forgotten" in result and not clean:
        output.print_line("nothing is forgotten: earlier snapshots may have what is damaged")
    elif "forgotten" in result:
        freed = output.human_size(result["freed_bytes"])
        output.print_line(f"forgot {output.counted(len(result['forgotten']), 'snapshot')}, {freed} freed")
    if result["damaged"]:
        output.print_line("the store is damaged: `pagepool fsck` says what this concerns")
