"""What runs, for `pagepool ps` and for whoever cleans up: one directory for each container.

    DIRECTORY/runc/         runc's own state
    DIRECTORY/ID/lock       locked (flock) by the process that runs the container, as long as that lives
    DIRECTORY/ID/record     JSON, replaced by rename
    DIRECTORY/ID/bundle/    config.json, and the files mounted over those of the container
    DIRECTORY/ID/netns      and ID/network: see `network`

The lock decides: who can take it has found a container whose owner is dead, whatever the cause and whatever pids have
become. Everything here is root's alone (0700): configurations have secrets in their environment.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pagepool.errors import BusyError, DeniedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

BUNDLE: Final = "bundle"
NETWORK: Final = "network"
DEFAULT_DIRECTORY: Final = Path("/run/pagepool/containers")
LOG_DIRECTORY: Final = Path("/var/lib/pagepool/logs")
"""Of what containers in the background write: on a disk, as it may be much."""

WAIT_S: Final = 10.0
"""After so long a container that was asked to end is killed, if nobody says otherwise."""

CREATED: Final = "created"
RUNNING: Final = "running"
DEAD: Final = "dead"


@dataclass(frozen=True, slots=True)
class Record:
    """A container.

    Args:
        root: its root on the host.
        created_s: when, in seconds since 1970.
        owner: pid of the process that runs it, and cleans up; SIGTERM to it ends the container.
        pid: of the container's first process, as the host sees it; 0: none yet.
        status: created, running, or dead: its owner was killed, and `cleanup_stale` has not come yet.
        runtime: runc or own.
        stop_signal: what asks the program to end.
        stop_timeout_s: after so long it is killed, if nobody says otherwise; None: nothing was said.
        labels: the image's, and those that were given.
        network: host, none, or its network's name.
        addresses: that it has there.
        ports: what is published, as ``ADDRESS:PORT->PORT/tcp``.
        log: the file that its output is appended to; "": none.
        log_begin: how long that was before.
        log_kept: whether it is removed with the container.
    """

    id: str
    name: str
    image: str
    command: tuple[str, ...]
    root: str
    created_s: float
    owner: int
    pid: int = 0
    status: str = CREATED
    runtime: str = "runc"
    stop_signal: str = "SIGTERM"
    stop_timeout_s: float | None = None
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    network: str = "host"
    addresses: tuple[str, ...] = ()
    ports: tuple[str, ...] = ()
    log: str = ""
    log_begin: int = 0
    log_kept: bool = False


class Held:
    """A container's directory, locked. `close` removes it."""

    def __init__(self, directory: Path, lock: int) -> None:
        self.directory = directory
        self._lock = lock

    @property
    def bundle(self) -> Path:
        """Where the runtime finds its configuration."""
        return self.directory / BUNDLE

    def write(self, record: Record) -> None:
        """Note what is known now."""
        temporary = self.directory / "record.new"
        temporary.write_text(json.dumps(asdict(record)))
        temporary.rename(self.directory / "record")

    def close(self) -> None:
        """Remove everything, and let go of it; what is needed to take a network away stays until that has been done."""
        if not (self.directory / NETWORK).exists():
            remove_directory(self.directory)
        os.close(self._lock)


def hold(directory: Path, container: str, name: str = "") -> Held:
    """Make a container's directory.

    Raises:
        BusyError: a container of this id or name is there.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(directory / ".names"):
        for record in list_containers(directory):
            if record.id == container or (name and record.name == name):
                raise BusyError(f"there is a container {name or container} already ({record.id}, {record.status})")
        own = directory / container
        remove_directory(own)  # of somebody killed before it had a record
        own.mkdir(mode=0o700)
        (own / BUNDLE).mkdir(mode=0o700)
        lock = os.open(own / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        held = Held(own, lock)
        held.write(Record(container, name, "", (), "", 0.0, os.getpid()))
    return held


def list_containers(directory: Path = DEFAULT_DIRECTORY) -> list[Record]:
    """All containers, the oldest first. Those whose owner is dead have the status `DEAD`.

    Raises:
        DeniedError: only another user, root that is, can see whether there are any.
    """
    if not os.access(directory, os.R_OK | os.X_OK, effective_ids=True) and directory.exists():
        raise DeniedError(f"the containers in {directory} are root's: only root can see them")
    found = []
    for path in sorted(directory.glob("*/record")):
        with contextlib.suppress(FileNotFoundError):
            found.append(_read(path))
    return sorted(found, key=lambda record: record.created_s)


def stale(directory: Path) -> Iterator[tuple[Record, Held]]:
    """Containers whose owner is dead, each locked: whoever asks has to close it. What is left of a removal that was cut
    off goes."""
    _remove_halves(directory)
    for path in sorted(directory.glob("*/lock")):
        with contextlib.suppress(FileNotFoundError, BlockingIOError):
            lock = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                record = _read(path.with_name("record"))
            except BaseException:
                os.close(lock)
                raise
            yield record, Held(path.parent, lock)


def _remove_halves(directory: Path) -> None:
    """Remove what has no lock: it was being removed, or made, by somebody who was killed."""

    def halves() -> list[Path]:
        found = (path.parent for path in directory.glob(f"*/{BUNDLE}"))
        return [path for path in found if not (path / "lock").exists()]

    if halves():
        with _locked(directory / ".names"):  # now nobody makes one
            for half in halves():
                remove_directory(half)


def _read(path: Path) -> Record:
    fields: dict[str, Any] = json.loads(path.read_text())
    # Another version, which runs containers of its own here, may note more of them.
    fields = {name: value for name, value in fields.items() if name in Record.__dataclass_fields__}
    fields |= {name: tuple(fields[name]) for name in ("command", "addresses", "ports") if name in fields}
    record = Record(**fields)
    return record if _is_locked(path.with_name("lock")) else replace(record, status=DEAD)


def _is_locked(path: Path) -> bool:
    """Whether somebody has the lock. A lock that we have through another descriptor counts."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def remove_directory(directory: Path) -> None:
    """Remove a directory and all in it, as far as that can be: `shutil` would be loaded for every container."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(directory):
            if entry.is_dir(follow_symlinks=False):
                remove_directory(Path(entry))
            else:
                with contextlib.suppress(OSError):
                    os.unlink(entry)  # noqa: PTH108 - likewise
        directory.rmdir()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
