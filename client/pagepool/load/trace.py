"""What a container reads when it starts: a recorded trace, what the service has learned of an image, or a guess.

A recorded trace is a text file with one JSON object in each line, in the order of time:

    {"path": "/usr/bin/python3"}                                all of the file
    {"path": "/usr/lib/libc.so.6", "offset": 0, "size": 4096}   a part
    {"path": "/usr/share/model.bin", "fraction": 0.25}          its first quarter

Files that an image does not have are left out of its trace.
"""

from __future__ import annotations

import json
import os
from random import Random
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pagepool.errors import InvalidError
from pagepool.image.member import Kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from pagepool.image.treefile import TreeFile
    from pagepool.load.truth import Truth

MOST_STEPS: Final = 4096
_GUESSED_FILES, _GUESSED_BYTES = 150, 24 << 20
_WHOLE: Final = 1 << 20
_SHARE: Final = 4


class TraceInvalidError(InvalidError):
    """No trace."""

    what = "trace"


class Step(NamedTuple):
    """Something that is read: a file of the truth, by its number, and bytes `[offset, offset + size)` of it."""

    file: int
    offset: int
    size: int


class Recorded(NamedTuple):
    """A line of a recorded trace; `size` and `fraction` are None where all of the file is read."""

    path: bytes
    offset: int
    size: int | None
    fraction: float | None


def load_trace(path: Path) -> list[Recorded]:
    """Read a recorded trace.

    Raises:
        TraceInvalidError: a line is none; it says which.
        OSError: it cannot be read.
    """
    found: list[Recorded] = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line.strip():
            try:
                found.append(_parse_line(json.loads(line)))
            except (ValueError, TypeError, KeyError) as error:
                reason = f"has no {error}" if isinstance(error, KeyError) else str(error)
                raise TraceInvalidError(f"{path}:{number}", reason) from error
    if not found:
        raise TraceInvalidError(str(path), "has no line")
    return found


def _parse_line(fields: Any) -> Recorded:
    if not isinstance(fields, dict) or not isinstance(fields["path"], str):
        raise ValueError('is no object with a "path"')
    offset, size, fraction = fields.get("offset", 0), fields.get("size"), fields.get("fraction")
    if type(offset) is not int or offset < 0:
        raise ValueError(f"offset {offset!r} is no number of bytes")
    if size is not None and (type(size) is not int or size < 0):
        raise ValueError(f"size {size!r} is no number of bytes")
    if fraction is not None and (type(fraction) not in (int, float) or not 0 <= fraction <= 1):
        raise ValueError(f"fraction {fraction!r} is not between 0 and 1")
    return Recorded(os.fsencode(fields["path"]).strip(b"/"), offset, size, fraction)


def plan_recorded(trace: Iterable[Recorded], truth: Truth) -> list[Step]:
    """A recorded trace, for one image."""
    steps: list[Step] = []
    for one in trace:
        file = truth.find(one.path)
        if file >= 0 and len(steps) < MOST_STEPS:
            length = truth.size(file)
            wanted = length if one.size is None else one.size
            if one.fraction is not None:
                wanted = int(length * one.fraction)
            steps.append(Step(file, min(one.offset, length), max(0, min(wanted, length - one.offset))))
    return steps


def plan_profile(objects: Sequence[bytes], tree: TreeFile, truth: Truth) -> list[Step]:
    """What the service has learned: the files of these objects, in this order.

    Args:
        objects: raw BLAKE3, as a profile has them.
        tree: of the image.
    """
    places = {place: at for at, digest in enumerate(objects) if (place := tree.find_object(digest)) >= 0}
    found: dict[int, int] = {}
    todo = [(1, b"")]
    while todo:
        directory, prefix = todo.pop()
        for name, ino in tree.entries(directory):
            if tree.kind(ino) is Kind.DIRECTORY:
                todo.append((ino, prefix + name + b"/"))
            elif tree.kind(ino) is Kind.REGULAR and (node := tree.node(ino)).size and node.object in places:
                found.setdefault(places[node.object], truth.find(prefix + name))
    files = (found[at] for at in sorted(found) if found[at] >= 0)
    return [Step(file, 0, truth.size(file)) for file in files][:MOST_STEPS]


def guess_trace(truth: Truth, seed: int) -> list[Step]:
    """A made-up start: programs and libraries first, then what they read; large files in part.

    Args:
        seed: the same seed chooses the same files.
    """
    random = Random(seed)
    order = list(range(truth.count))
    random.shuffle(order)
    order.sort(key=lambda file: _urgency(truth.path(file)))
    steps: list[Step] = []
    left = _GUESSED_BYTES
    for kind in range(3):
        share = _GUESSED_FILES * (kind + 1) // 3
        for file in (file for file in order if _urgency(truth.path(file)) == kind):
            if len(steps) >= share or left <= 0:
                break
            length = truth.size(file)
            wanted = length if length <= _WHOLE else length // _SHARE
            steps.append(Step(file, 0, wanted))
            left -= wanted
    return steps


def _urgency(path: bytes) -> int:
    """0 for programs and libraries, 1 for what is interpreted or configures, 2 for the rest."""
    name = path.rpartition(b"/")[2]
    if b"bin/" in path or b".so" in name:
        return 0
    return 1 if name.endswith((b".py", b".js", b".conf", b".json", b".sh")) or path.startswith(b"etc/") else 2
