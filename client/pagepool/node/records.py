"""What the node writes down before it acts on it: sources of trees, and mounts. One JSON file each, whole or not there.

Kept below RUN, so nothing is synced: a record has to outlive the process, not the machine. A record that cannot be read
is as good as none, and is logged.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

log = logging.getLogger("pagepool.node")

_Record = TypeVar("_Record", "SourceRecord", "MountRecord")


_MOMENTS: Final = ("released", "since")


def uptime_s() -> float:
    """Seconds since the machine was started, as all processes count them: nobody can set that clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _of_this_boot(moment_s: float) -> float:
    """A moment as `uptime_s` counts; one that is still to come is of an older version, which wrote seconds since 1970,
    or of another boot, and then of long ago."""
    now_s = uptime_s()
    return moment_s if moment_s <= now_s else moment_s - time.time() + now_s


@dataclass(frozen=True, slots=True)
class SourceRecord:
    """Where the content of a tree comes from.

    Args:
        tree: BLAKE3 of the tree, hex.
        url: of the service.
        repository: where the image is.
        image: its name, for people.
        manifest: digest of the manifest whose layers are the tree, all of them; "" if none is known.
        username, password, identity_token: who we are to the service; empty: nobody.
        verify: whether its certificate is checked; or files of those who vouch for it (`pagepool.transport.trust`).
        lease: the lease that the node holds on the tree; "" if it has none.
        released: when the last mount of the tree went (`uptime_s`); 0 while there is one.
    """

    tree: str
    url: str
    repository: str
    image: str
    manifest: str = ""
    username: str = ""
    password: str = ""
    identity_token: str = ""
    verify: bool | str = True
    lease: str = ""
    released: float = 0.0

    @property
    def place(self) -> tuple[str, str]:
        """Which image of which service it is."""
        return (self.url, self.repository)

    @property
    def access(self) -> tuple[object, ...]:
        """What requests depend on."""
        who = (self.username, self.password, self.identity_token)
        return (self.url, self.repository, self.verify, *who)


@dataclass(frozen=True, slots=True)
class MountRecord:
    """A mount.

    Args:
        id: names it, and the directory of what it writes.
        path: where it is, as who asked for it sees it.
        image: the image's name.
        tree: BLAKE3 of the tree, hex.
        upper: directory that holds `upper` and `work`; "" if nothing can be written.
        temporary: whether that directory goes with the mount.
        read_only: whether nothing can be written.
        since: when it was made (`uptime_s`).
        device: of its file system, ``major:minor``.
        quota: most bytes that it may write; 0 for no limit.
        attached: whether who asked for it has put it in its place.
        owner: what it belongs to ("" or the id of a container).
        fill: whether the rest of its image is to be fetched when there is time.
        lazy: device of the lazy mount that it asks, ``major:minor``; "" if that is not known.
        layers: how many layers of the image these are, counted from the lowest; None: all.
    """

    id: str
    path: str
    image: str
    tree: str
    upper: str
    temporary: bool
    read_only: bool
    since: float
    device: str
    quota: int = 0
    attached: bool = False
    owner: str = ""
    fill: bool = True
    lazy: str = ""
    layers: int | None = None

    def shown(self) -> dict[str, Any]:
        """The fields, for others: `since` is in seconds since 1970."""
        return {**asdict(self), "since": time.time() - uptime_s() + self.since}


def write_record(path: Path, record: SourceRecord | MountRecord) -> None:
    """Write a record, in place of an older one of that name.

    Raises:
        OSError: it cannot be written; the older one is still there.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        part.touch(mode=0o600)
        part.write_text(json.dumps(asdict(record)))
        part.rename(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def read_records(directory: Path, kind: type[_Record]) -> Iterator[_Record]:
    """The records of a directory, by name."""
    for path in sorted(directory.glob("*.json")):
        try:
            fields = json.loads(path.read_text())
            fields |= {name: _of_this_boot(fields[name]) for name in _MOMENTS if name in fields}
            # A later version, which was here before, may have noted more.
            yield kind(**{name: value for name, value in fields.items() if name in kind.__dataclass_fields__})
        except FileNotFoundError:
            continue
        except (OSError, ValueError, TypeError) as error:
            log.error("the record %s is left out: %s", path.name, error)
