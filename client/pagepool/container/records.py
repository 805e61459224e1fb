"""What runs, for `pagepool ps` and for whoever cleans up: one directory for each container.

    DIRECTORY/runc/         runc's own state
    DIRECTORY/ID/lock       locked (flock) by the process that runs the container, as long as that lives; has the exit
                            code in it from the end on, for whoever has it open
    DIRECTORY/ID/record     JSON, replaced by rename
    DIRECTORY/ID/bundle/    config.json, and the files mounted over those of the container
    DIRECTORY/ID/netns      and ID/network: see `network`
    DIRECTORY/ID/exec-*/    locked by whoever runs a further program in it (`executing`)

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
    from collections.abc import Callable, Iterator, Mapping

BUNDLE: Final = "bundle"
NETWORK: Final = "network"
EXEC: Final = "exec-"
DEFAULT_DIRECTORY: Final = Path("/run/pagepool/containers")
LOG_DIRECTORY: Final = Path("/var/lib/pagepool/logs")
"""Of what containers in the background write: on a disk, as it may be much."""
ENDED_DIRECTORY: Final = Path("/var/lib/pagepool/ended")
"""Of what is kept of those that have ended: on a disk, so that it is there after a boot."""

WAIT_S: Final = 10.0
"""After so long a container that was asked to end is killed, if nobody says otherwise."""

CREATED: Final = "created"
RUNNING: Final = "running"
DEAD: Final = "dead"
EXITED: Final = "exited"
KILLED: Final = "killed"
STATUSES: Final = (CREATED, RUNNING, DEAD, EXITED, KILLED)


@dataclass(frozen=True, slots=True)
class Record:
    """A container.

    Args:
        root: its root on the host.
        created_s: when, in seconds since 1970.
        owner: pid of the process that runs it, and cleans up; SIGTERM to it ends the container. 0: it has ended.
        pid: of the container's first process, as the host sees it; 0: none yet, or none any more.
        status: created, running, or dead: its owner was killed, and `cleanup_stale` has not come yet. Of one that is
            noted in `ended`: exited, or killed, which is what becomes of a dead one.
        runtime: runc or own.
        stop_signal: what asks the program to end.
        stop_timeout_s: after so long it is killed, if nobody says otherwise; None: nothing was said.
        labels: the image's, and those that were given.
        network: host, none, or its network's name.
        addresses: that it has there.
        ports: what is published, as ``ADDRESS:PORT->PORT/tcp``.
        log: the file that its output is appended to; "": none.
        log_begin: how long that was before.
        log_kept: whether it is removed with the container, or with what is noted of it afterwards.
        log_end: how long the log was at its end; None: it has not ended.
        background: whether it was put there.
        alone: whether its owner does nothing but run it, and ends when it has ended.
        ended_directory: where it is noted once it has ended (`ended`); "": nothing is kept of it.
        exit_code: None: it has not ended, or nobody knows, since its owner was killed.
        ended_s: when, in seconds since 1970; of one whose owner was killed, when that was noticed.
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
    log_end: int | None = None
    background: bool = False
    alone: bool = False
    ended_directory: str = ""
    exit_code: int | None = None
    ended_s: float | None = None


def ends_with(record: Record) -> bool:
    """Whether its owner ends when it has ended. Before there was `alone`, those in the background alone said so."""
    return record.alone or record.background


def has_ended(record: Record) -> bool:
    """Whether it is what is kept of a container that has ended."""
    return record.status in (EXITED, KILLED)


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

    def tell(self, exit_code: int) -> None:
        """Have whoever waits for the container (`waiting`) know how it has ended, as soon as this is closed."""
        with contextlib.suppress(OSError):  # no room: then nobody knows
            os.pwrite(self._lock, b"%d\n" % exit_code, 0)

    def told(self) -> int | None:
        """What its owner has told before it was killed: the exit code; None: nothing."""
        return read_told(self._lock)

    def close(self) -> None:
        """Remove everything, and let go of it; what is needed to take a network away stays until that has been done."""
        if not (self.directory / NETWORK).exists():
            remove_directory(self.directory)
        os.close(self._lock)


def read_told(lock: int) -> int | None:
    """The exit code that is in a lock; None: none. Its owner may be about to write it, as long as it is locked."""
    words = os.pread(lock, 32, 0).split()
    return int(words[0]) if words and words[0].isdigit() else None


def hold(directory: Path, container: str, name: str = "") -> Held:
    """Make a container's directory.

    Raises:
        BusyError: a container of this id or name is there.
        OSError: it cannot be made; nothing is left of it.
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
        try:
            held.write(Record(container, name, "", (), "", 0.0, os.getpid()))
        except OSError:  # what is left would take of the room that was lacking
            os.close(lock)
            remove_directory(own)
            raise
    return held


def list_containers(
    directory: Path = DEFAULT_DIRECTORY, on_bad: Callable[[Path, str], object] = lambda *_: None
) -> list[Record]:
    """All containers that have not ended, the oldest first. Those whose owner is dead have the status `DEAD`.

    Args:
        on_bad: told of each record that cannot be read, and why.

    Raises:
        DeniedError: only another user, root that is, can see whether there are any.
    """
    if directory.exists() and not os.access(directory, os.R_OK | os.X_OK, effective_ids=True):
        raise DeniedError(f"the containers in {directory} are root's: only root can see them")
    found = []
    for path in sorted(directory.glob("*/record")):
        try:
            found.append(_read(path))
        except FileNotFoundError:
            continue
        except ValueError as error:
            on_bad(path, str(error))
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
                record = _read_anyway(path.with_name("record"))
            except BaseException:
                os.close(lock)
                raise
            yield record, Held(path.parent, lock)


def _remove_halves(directory: Path) -> None:
    """Remove what has no lock: it was being removed, or made, by somebody who was killed; or its container has ended
    before a program beside it, which has its directory in it as long as it needs that."""

    def halves() -> list[Path]:
        found = (path for path in directory.glob("[!.]*") if path.name != "runc" and path.is_dir())
        return [path for path in found if not (path / "lock").exists() and _is_half(path)]

    if halves():
        with _locked(directory / ".names"):  # now nobody makes one
            for half in halves():
                remove_directory(half)


def _is_half(directory: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        paths = list(directory.iterdir())
        execs = [path for path in paths if path.name.startswith(EXEC)]
        # Whoever makes other directories here does not name them as commands name containers.
        is_ours = (execs == paths and (execs or len(directory.name) == 32)) or (directory / BUNDLE).exists()
        return bool(is_ours) and not any(_is_locked(path) for path in execs)
    return False


def _read(path: Path) -> Record:
    record = parse_record(path.read_bytes())
    return record if _is_locked(path.with_name("lock")) else replace(record, status=DEAD)


def _read_anyway(path: Path) -> Record:
    """Of one whose owner is dead: what it was cannot be known if its record cannot be read; its directory goes."""
    try:
        return _read(path)
    except ValueError:
        return Record(path.parent.name, "", "", (), "", 0.0, 0, status=DEAD)


def parse_record(data: bytes) -> Record:
    """What is noted of a container.

    Raises:
        ValueError: it is no record.
    """
    fields: dict[str, Any] = json.loads(data)
    try:
        # Another version, which runs containers of its own here, may note more of them.
        fields = {name: value for name, value in fields.items() if name in Record.__dataclass_fields__}
        fields |= {name: tuple(fields[name]) for name in ("command", "addresses", "ports") if name in fields}
        return Record(**fields)
    except (TypeError, AttributeError) as error:
        raise ValueError(str(error)) from error


def _is_locked(path: Path) -> bool:
    """Whether somebody has the lock. A lock that we have through another descriptor counts."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
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
