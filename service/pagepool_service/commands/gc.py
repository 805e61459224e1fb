"""`pagepool gc`: collect what nothing needs any more, and say what was freed, and why the rest was kept."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pagepool.cli import exits, output
from pagepool.cli.options import output_options
from pagepool_service.collecting import policy_of
from pagepool_service.commands.accessoptions import parsed
from pagepool_service.commands.dataoption import data_option
from pagepool_service.settings import Settings, parse_age, parse_duration, parse_tag_rules
from pagepool_service.store.collect import Collector, open_for_collection
from pagepool_service.treesweep import sweep_trees

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pagepool_service.store.collect import Policy, Report

_EPILOG = """
\b
What is kept:
  what a tag points to, what an index that is kept lists, what is about an image that is kept (signatures and
  other referrers), and what those are about; blobs of a repository that somebody uploads to; what a lease,
  that is a mounted image, is made of; and for a while what has no tag, and blobs that no manifest needs yet.

\b
Exit codes:
  0  done
  5  a record is damaged that says what must be kept: nothing that it may keep was removed (pagepool fsck)
  others as of every pagepool command

\b
Examples:
  pagepool gc --dry-run
  pagepool gc --keep-tags 10 --untagged-older-than 7d
  pagepool gc --keep-tags 'ci/*=5,*=all' --json
  pagepool gc --grace 0 --untagged-older-than 0
"""


def _given(parse: Callable[[str], Any]) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    """As `parsed`, in a tuple: None is a value, too."""
    return parsed(lambda text: (parse(text),))


@click.command(epilog=_EPILOG)
@data_option
@click.option(
    "--dry-run", is_flag=True, help="Change nothing: say what would be freed, which tags would go, and what is kept."
)
@click.option(
    "--keep-tags",
    metavar="N|RULES",
    callback=_given(parse_tag_rules),
    help="Keep the newest N tags of each repository; or by its name, the first that matches: 'ci/*=5,*=all'. [all]",
)
@click.option(
    "--untagged-older-than",
    metavar="TIME",
    callback=_given(parse_age),
    help="Remove manifests without a tag that were not pushed, tagged or pulled for so long; never: keep them. [7d]",
)
@click.option(
    "--grace",
    metavar="TIME",
    callback=_given(parse_duration),
    help="Remove blobs that no manifest needs, and that nobody pushed or looked for, for so long. [24h]",
)
@click.option("--wait/--no-wait", default=True, help="If another collection runs, wait for it to be done. [wait]")
@output_options
@click.pass_context
def gc(
    ctx: click.Context,
    data: Path | None,
    dry_run: bool,
    keep_tags: tuple[Any] | None,
    untagged_older_than: tuple[Any] | None,
    grace: tuple[Any] | None,
    wait: bool,
) -> None:
    """Free what nothing in a store needs any more. A service may be running: nobody waits, and nothing breaks.

    Images that were deleted, tags beyond the newest ones, manifests without tags, layers and contents that were left
    behind. Frames that are mostly dead are written anew without what is dead, and free space of the database goes back
    to the file system. A running service does this by itself, as its settings say (PAGEPOOL_GC...), which count
    here, too, where an option does not say otherwise. With --quiet, only problems are printed.
    """
    settings = Settings.load(data=data)
    as_json = output.current().json
    policy = policy_of(settings)
    chosen = {"tags": keep_tags, "untagged_s": untagged_older_than, "grace_s": grace}
    policy = replace(policy, **{name: value[0] for name, value in chosen.items() if value is not None})
    quiet = output.current().quiet
    _warn_of_short_times(policy, settings.renewed_after_ns // 10**9)
    with _progress(sys.stderr.isatty() and not as_json and not quiet) as watch:
        report = _collect(settings.data, policy, dry_run, wait, watch)
    if as_json:
        click.echo(json.dumps({"data": str(settings.data), **report.to_json()}, indent=2))
    elif not quiet:
        _print(report)
    else:
        _print_problems(report)
    if report.damaged:
        ctx.exit(exits.CORRUPT)


def _warn_of_short_times(policy: Policy, noted_after_s: int) -> None:
    """Say whom times hurt that are shorter than what a service knows of its clients.

    Not of 0, which asks for everything.

    Args:
        noted_after_s: how old a link is before a service by these settings notes that somebody relies on it.
    """
    times = {"--grace": policy.grace_s, "--untagged-older-than": policy.untagged_s}
    short = {name: age for name, age in times.items() if age and age < 2 * noted_after_s}
    for name, age in short.items():
        output.warn(
            f"{name} is {age:.0f} s, and a service notes only every {noted_after_s} s that a client has looked for "
            "what is there: a push or pull that is under way may lose what it has found, and has to be repeated. "
            "A service with PAGEPOOL_GC_GRACE and PAGEPOOL_GC_UNTAGGED of such a time notes it in time"
        )


def _collect(
    data: Path, policy: Policy, dry_run: bool, wait: bool, watch: Callable[[str, int, int], None] | None
) -> Report:
    with open_for_collection(data, readonly=dry_run) as store:
        collector = Collector(store, policy, watch=watch)
        report = collector.forecast() if dry_run else collector.run(wait=wait)
        report.freed.update(sweep_trees(store, dry=dry_run))
    return report


def _print(report: Report) -> None:
    verb = "would be freed" if report.dry else "freed"
    freed = {kind: count for kind, count in report.freed.items() if count and not kind.endswith("bytes")}
    click.echo(f"{verb}:")
    for kind, count in freed.items():
        click.echo(f"  {kind:<44}{count:>12,}")
    if report.compacted:
        click.echo(f"  {'frames written anew without what is dead':<44}{report.compacted:>12,}")
    if not freed and not report.compacted:
        click.echo("  nothing")
    _print_size("contents", report.frame_bytes)
    _print_size("recipes", report.recipe_bytes)
    if not report.dry:
        _print_size("given back by the database", report.punched)
        before, after = output.human_size(report.space_before), output.human_size(report.space_after)
        click.echo(f"  {'on the disk, before and now':<44}{before:>12} {after}")
    click.echo("kept:")
    for reason, count in report.kept.items():
        if count:
            click.echo(f"  {reason:<44}{count:>12,}")
    _print_size("dead, in frames that mostly live", report.dead_kept)
    if report.tags:
        click.echo("tags that would go:")
        output.print_lines(f"  {output.printable(tag)}" for tag in report.tags)
    _print_problems(report)
    done = f"looked at in {report.seconds:.1f} s"
    if not report.dry:
        done = f"done in {report.seconds:.1f} s, {report.writes:,} write transactions, "
        done += f"the longest of {1000 * report.longest_hold_s:.0f} ms"
        done += f" ({1000 * report.longest_work_s:.0f} ms without its commit)"
    click.echo(done)


def _print_problems(report: Report) -> None:
    for problem in report.problems:
        click.echo(f"problem: {problem}")


def _print_size(what: str, size: int) -> None:
    if size:
        click.echo(f"  {what:<44}{output.human_size(size):>12}")


@contextmanager
def _progress(shown: bool) -> Iterator[Callable[[str, int, int], None] | None]:
    """A progress bar on a terminal."""
    if not shown:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:>18}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("opening", total=None)
        yield lambda step, done, total: progress.update(task, description=step, completed=done, total=total or None)
