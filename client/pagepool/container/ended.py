"""What is kept of containers in the background that have ended, for `pagepool ps --all`, `wait` and `logs`.

    DIRECTORY/ID.json    a `Record` (its status is exited or killed), written once, durably, and renamed into its place

The container's log, if it was kept (`logs`), belongs to it: a record goes first, then its log. The last `MOST` are
kept; whoever notes another one removes those beyond. What cannot be read is told of and passed over; it counts as one.

Several processes note, read and remove at the same time. A container is noted here before it is gone from where those
are noted that run (`records`), so for a moment it is in both.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pagepool.container.records import ENDED_DIRECTORY, Record, parse_record
from pagepool.errors import DeniedError
from pagepool.linux import sync_directory

if TYPE_CHECKING:
    from collections.abc import Callable

MOST: Final = 200
"""Containers of which something is kept."""
_SUFFIX: Final = ".json"
_CUT_OFF_S: Final = 3600.0


def write_ended(record: Record) -> None:
    """Note a container that has ended, unless it is noted already, and remove what is too old.

    Args:
        record: `ended_directory` is where; its log is whole, and stays.

    Raises:
        OSError: it cannot be written: nothing is noted then.
    """
    directory = Path(record.ended_directory)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = _path(directory, record.id)
    if path.exists():
        return
    new = directory / f".{record.id}.new"
    try:
        with new.open("w") as file:
            new.chmod(0o600)
            json.dump(asdict(record), file)
            file.flush()
            os.fsync(file.fileno())
        new.rename(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    sync_directory(directory)
    _remove_oldest(directory)


def list_ended(
    directory: Path = ENDED_DIRECTORY, on_bad: Callable[[Path, str], object] = lambda *_: None
) -> list[Record]:
    """What is noted of containers that have ended, the one that ended first in front.

    Args:
        on_bad: told of each record that cannot be read, and why.

    Raises:
        DeniedError: only another user, root that is, can see whether there are any.
    """
    found = []
    for path in _paths(directory):
        try:
            record = parse_record(path.read_bytes())
            if path != _path(directory, record.id):
                raise ValueError(f"it is that of {record.id}")
            found.append(record)
        except FileNotFoundError:
            continue  # it was removed meanwhile
        except (OSError, ValueError) as error:
            on_bad(path, str(error))
    return sorted(found, key=lambda record: record.ended_s or 0.0)


def find_ended(record: Record) -> Record | None:
    """What is noted of a container that has ended; None if nothing is."""
    if not record.ended_directory:
        return None
    with contextlib.suppress(OSError, ValueError):
        return parse_record(_path(Path(record.ended_directory), record.id).read_bytes())
    return None


def remove_ended(record: Record) -> None:
    """Remove what is kept of a container that has ended, its log too. Nothing happens if it is gone already."""
    _path(Path(record.ended_directory), record.id).unlink(missing_ok=True)
    if record.log_kept:
        Path(record.log).unlink(missing_ok=True)


def remove_unreadable(directory: Path = ENDED_DIRECTORY) -> list[str]:
    """Remove records that cannot be read; their logs go with the next container. Returns their ids."""
    bad: list[Path] = []
    list_ended(directory, lambda path, _: bad.append(path))
    for path in bad:
        path.unlink(missing_ok=True)
    return [path.stem for path in bad]


def noted_ids(directory: Path) -> set[str]:
    """The ids of those of which something is kept, whether it can be read or not."""
    return {path.stem for path in _paths(directory)}


def _remove_oldest(directory: Path) -> None:
    """Remove what is beyond the bound, and what was being written when the machine went down."""
    for path in directory.glob(".*.new"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > _CUT_OFF_S:
                path.unlink()
    paths = _paths(directory)
    if len(paths) <= MOST:
        return
    ages: list[tuple[int, Path]] = []
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            ages.append((path.stat().st_mtime_ns, path))
    for _, path in sorted(ages, reverse=True)[MOST:]:
        try:
            record = parse_record(path.read_bytes())
        except FileNotFoundError:
            continue
        except (OSError, ValueError):
            path.unlink(missing_ok=True)
        else:
            remove_ended(record)


def _paths(directory: Path) -> list[Path]:
    try:
        names = os.listdir(directory)  # noqa: PTH208 - names are all it is about
    except (FileNotFoundError, NotADirectoryError):
        return []
    except PermissionError:
        raise DeniedError(
            f"what {directory} has of containers that have ended is root's: only root can see it"
        ) from None
    return [directory / name for name in names if name.endswith(_SUFFIX) and not name.startswith(".")]


def _path(directory: Path, container: str) -> Path:
    return directory / f"{container}{_SUFFIX}"
