"""What was taken out of a store, kept for whoever knows what to do with it.

    DATA/quarantine/TIME/listing.jsonl              a line for each thing: what it was, why, which images it concerns
                        /listing.txt                the same for people
                        /records/TABLE/KEY          a record as it lay in the database, its checksum at the end
                        /spool/ALGORITHM-HEX        a blob's file
                        /store/data.mdb             a database that was replaced as a whole

Of this only the listings are read again, for the blobs in them (`earlier`); it may be removed at any time. What is kept
is durable before it is taken out of the store.
"""

from __future__ import annotations

import json
import os
import shutil
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pagepool.digest import blake3_raw
from pagepool.linux import sync_directory

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pagepool_service.store.environment import Table

_LONGEST_NAME = 200


class Quarantine:
    """The directory of one repair. Made when the first thing is put into it."""

    def __init__(self, data: Path) -> None:
        moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        self.path = data / "quarantine" / moment
        self._listed = False

    @property
    def is_used(self) -> bool:
        """Whether anything is in it."""
        return self._listed

    def keep_record(self, table: Table, key: bytes, value: bytes) -> str:
        """Keep a record. Returns the name of its file, below the directory."""
        name = key.hex() or "empty"
        if len(name) > _LONGEST_NAME:
            name = f"{name[: _LONGEST_NAME - 64]}-{blake3_raw(key).hex()}"[:_LONGEST_NAME]
        target = self._directory("records", table.label) / name
        with target.open("wb") as file:
            file.write(value)
            file.flush()
            os.fsync(file.fileno())
        sync_directory(target.parent)
        return str(target.relative_to(self.path))

    def keep_file(self, source: Path, kind: str) -> str:
        """Keep a file, which stays where it is: a second name, or a copy. Returns its name below the directory."""
        target = self._directory(kind) / source.name
        target.unlink(missing_ok=True)
        try:
            target.hardlink_to(source)
        except OSError:
            shutil.copyfile(source, target)
            with target.open("rb") as file:
                os.fsync(file.fileno())
        sync_directory(target.parent)
        return str(target.relative_to(self.path))

    def note(self, entry: Mapping[str, Any]) -> None:
        """Write down what something was, and why it was taken out. Durable on return."""
        directory = self._directory()
        for name, line in (("listing.jsonl", json.dumps(entry)), ("listing.txt", _as_text(entry))):
            with (directory / name).open("a") as file:
                file.write(f"{line}\n")
                file.flush()
                os.fsync(file.fileno())
        if not self._listed:
            sync_directory(directory)
            self._listed = True

    def _directory(self, *names: str) -> Path:
        path = self.path.joinpath(*names)
        if not path.is_dir():
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            for parent in (path.parent, self.path.parent, self.path.parent.parent):
                sync_directory(parent)
        return path


def _as_text(entry: Mapping[str, Any]) -> str:
    lines = [f"{entry['kind']} {entry['name']}: {entry['reason']}"]
    for label in ("images", "paths", "files"):
        lines += [f"    {label[:-1]}: {value}" for value in entry.get(label, ())]
    return "\n".join(lines)
