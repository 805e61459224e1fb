"""What goes to standard output and standard error, and how.

Data goes to standard output: tables for people, sizes in SI units as docker prints them; or JSON, sizes in
bytes. Everything else goes to standard error. Text that came from a server or an image is printed with
control characters escaped, so that it cannot command the terminal.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

from pagepool import units
from pagepool.cli.exits import BROKEN_PIPE
from pagepool.cli.state import State, current

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "State",
    "current",
    "print_line",
    "print_lines",
    "print_json",
    "note",
    "warn",
    "warn_of",
    "print_table",
    "human_size",
    "counted",
    "short_digest",
    "printable",
    "as_text",
    "pick",
    "print_path",
    "write_bytes",
    "flush",
    "hush",
]

_UNDECODED = re.compile("[\udc80-\udcff]")


def print_line(text: str = "") -> None:
    """Print a line of data."""
    _write(f"{text}\n")


def print_path(path: str | os.PathLike[str]) -> None:
    """Print a line that is a path, for whoever goes on with it: bytes that are no text stay what they are."""
    write_bytes(os.fsencode(path) + b"\n")


def print_lines(lines: Iterable[str]) -> None:
    """Print lines of data as they come."""
    for line in lines:
        _write(f"{line}\n")


def print_json(value: object) -> None:
    """Print one JSON document. Where not all characters can be written it has only those of ASCII."""
    any_character = sys.stdout.encoding.lower().startswith("utf")
    _write(json.dumps(value, indent=2, ensure_ascii=not any_character) + "\n")


def note(text: str) -> None:
    """Tell the user something that is not data, unless he wants quiet."""
    if not current().quiet:
        _tell(f"pagepool: {printable(text)}\n")


def warn(text: str) -> None:
    """Warn the user, even if he wants quiet."""
    _tell(f"pagepool: warning: {printable(text)}\n")


def warn_of(path: Path, reason: str) -> None:
    """Warn the user of a file that is passed over, since it cannot be read."""
    warn(f"{path} is passed over: {reason}")


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]], right: Iterable[int] = ()) -> None:
    """Print a table, two spaces between columns.

    Args:
        headers: one for each column.
        rows: cells; text of others is made printable here.
        right: columns to align on the right, counted from 0.
    """
    cells = [list(headers), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headers))]
    aligned = set(right)
    for row in cells:
        parts = (
            cell.rjust(width) if at in aligned else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print_line("  ".join(parts).rstrip())


def human_size(size: object) -> str:
    """A size in SI units; "" if there is none."""
    if not isinstance(size, int | float) or isinstance(size, bool):
        return ""
    return units.human_size(size)


def counted(number: int, thing: str) -> str:
    """So many of something, in words: "1 file", "2,000 files"."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def short_digest(digest: str) -> str:
    """A digest for people: the first twelve digits."""
    return digest.partition(":")[2][:12] or digest[:12]


def printable(text: str) -> str:
    """Text with everything escaped that a terminal might obey or could not show."""
    if text.isprintable() and text.isascii():
        return text
    shown = as_text(text)
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in shown)


def as_text(name: str) -> str:
    """A name as the service writes it: bytes that are no UTF-8, which Python has as surrogates, as ``\\xNN``."""
    return _UNDECODED.sub(lambda found: f"\\x{ord(found[0]) & 0xFF:02x}", name)


def pick(value: Mapping[str, Any], name: str) -> str:
    """A field as text; "" if it is absent or null."""
    found = value.get(name)
    return "" if found is None else str(found)


def _tell(text: str) -> None:
    """Say something on standard error. What cannot be written, for want of room, is no failure of what was done."""
    with suppress(OSError):
        sys.stderr.write(text)
        sys.stderr.flush()


def end_quietly() -> NoReturn:
    """End the command, whose output nobody reads any more, without a word."""
    hush()
    from click.exceptions import Exit  # not loaded by what prints and has readers

    raise Exit(BROKEN_PIPE) from None


def _write(text: str) -> None:
    try:
        sys.stdout.write(text)
        if sys.stdout.isatty():
            sys.stdout.flush()
    except BrokenPipeError:
        end_quietly()


def write_bytes(data: bytes | memoryview) -> None:
    """Write data as it is, behind all that was printed."""
    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
    except BrokenPipeError:
        end_quietly()


def flush() -> None:
    """Write out what is buffered. To be called before the program ends, while failure can still be told."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        end_quietly()


def hush() -> None:
    """Let further output go nowhere, so that Python does not complain about the pipe when it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
