"""``pagepool wait``: wait until containers end."""

from __future__ import annotations

import contextlib

import click

from pagepool.cli import output, roots
from pagepool.cli.containers import complete_known, ended_at, find_known, tell_unknown
from pagepool.cli.options import output_options
from pagepool.container import Waiting


@click.command(name="wait", short_help="Wait until containers end, and print their exit codes.")
@click.argument("containers", metavar="CONTAINER...", nargs=-1, required=True, shell_complete=complete_known)
@output_options
def command(containers: tuple[str, ...]) -> int:
    """Wait until containers of `pagepool run` have ended, named by ids, beginnings of ids, or names, and print the exit
    code of each, in a line of its own: that of the program, or 128 and the number of the signal that killed it.

    Those that have ended already are known as long as `pagepool ps --all` lists them. A name means the container that
    runs, if one does, else the one of that name that ended last. If one is not known, nothing is waited for. Of one
    whose `pagepool run` was killed nobody knows how it ended: that is a question mark (null with --json), and exit
    code 1.

    \b
    Examples:
      pagepool wait job
      test "$(pagepool wait job)" = 0
      pagepool wait --json $(pagepool ps -q)
    """
    with contextlib.ExitStack() as undo:
        found = [Waiting(record, roots.containers_directory()) for record in find_known(containers)]
        for one in found:
            undo.callback(one.close)
        records = []
        for one in found:
            records.append(record := one.wait())
            if not output.current().json:
                output.print_line("?" if record.exit_code is None else str(record.exit_code))
                output.flush()
    if output.current().json:
        rows = [
            {"id": one.id, "name": one.name or None, "exit_code": one.exit_code, "ended_at": ended_at(one)}
            for one in records
        ]
        output.print_json({"containers": rows})
    return tell_unknown(records)
