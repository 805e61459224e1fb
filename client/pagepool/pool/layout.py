"""Where things lie in a pool's directory, and the file that says what the directory is (docs/format/pool.md).

    format                  version, id, whether the pool is durable
    objects/ab/cdef…        whole objects, 0444: the digest in hex, its first two digits a directory
    partial/KEY.data|.map   objects being filled
    retired/                unlinked from objects/ or partial/ while somebody held them
    tmp/                    objects being written; each is locked by its writer
    lock, state, log, queue the account, what happened since it was last read, the eviction queue
    epoch, epoch.lock       what is known to be on the disk
    scrub, scrub.lock       how far the last scrub has come

A directory becomes a pool when `format` gets its name, after everything else is there. Making one is done under the
lock, so two processes may begin at the same time. A crash before that leaves a directory that the next one completes.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pagepool import linux
from pagepool.errors import StoreFormatError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

VERSION = 1
FORMAT, LOCK, STATE, LOG, QUEUE, EPOCH, SCRUB = "format", "lock", "state", "log", "queue", "epoch", "scrub"
EPOCH_LOCK, SCRUB_LOCK = "epoch.lock", "scrub.lock"
OBJECTS, PARTIAL, RETIRED, TEMPORARY = "objects", "partial", "retired", "tmp"
PAGE = 4096
_PRIVATE = (PARTIAL, RETIRED, TEMPORARY)
_OURS = frozenset((LOCK, OBJECTS, *_PRIVATE, f".{FORMAT}"))
"""What there is of a pool before it is one."""


@dataclass(frozen=True, slots=True)
class Format:
    """What a pool's `format` file says.

    Args:
        id: 32 hex digits, made once.
        durable: whether the pool is meant to outlive the machine's boot.
    """

    id: str
    durable: bool

    def encode(self) -> bytes:
        """The file's bytes."""
        return f"pagepool pool\nversion {VERSION}\nid {self.id}\ndurable {'yes' if self.durable else 'no'}\n".encode()


def cost(size: int) -> int:
    """What a file of so many bytes counts against a budget: whole pages."""
    return -(-size // PAGE) * PAGE


def object_name(digest: bytes) -> str:
    """An object's path below `objects/`."""
    text = digest.hex()
    return f"{text[:2]}/{text[2:]}"


def names_in(directory: Path) -> list[str]:
    """What is in a directory, sorted."""
    return sorted(entry.name for entry in directory.iterdir())


def parse_format(path: Path, raw: bytes) -> Format:
    """Parse a `format` file.

    Raises:
        StoreFormatError: it is not one, or of another version.
    """
    lines = raw.decode("ascii", "replace").splitlines()
    fields = dict(line.partition(" ")[::2] for line in lines[1:])
    if not lines or lines[0] != "pagepool pool":
        raise StoreFormatError(f"{path} is not a pool: its format file begins with {lines[:1]!r}")
    if fields.get("version") != str(VERSION):
        raise StoreFormatError(f"{path} is a pool of version {fields.get('version')}; this program knows {VERSION}")
    identity, durable = fields.get("id", ""), fields.get("durable", "")
    if len(identity) != 32 or set(identity) - set("0123456789abcdef") or durable not in ("yes", "no"):
        raise StoreFormatError(f"{path}: the pool's format file is damaged")
    return Format(identity, durable == "yes")


def read_format(path: Path) -> Format | None:
    """A pool's format; None if the directory is not a pool yet.

    Raises:
        StoreFormatError: it is something else, or of another version.
    """
    try:
        return parse_format(path, (path / FORMAT).read_bytes())
    except FileNotFoundError:
        return None


def open_format(path: Path, durable: bool | None) -> Format:
    """Read a pool's format, making the pool if the directory is not there or empty. Blocks on other makers.

    Args:
        path: the pool's directory.
        durable: of a new pool; None to look at the file system.

    Raises:
        StoreFormatError: as `read_format`, or the directory holds something else.
        PermissionError: the directory is another user's, who could write what he likes into it.
        OSError: it cannot be made or read.
    """
    path.mkdir(mode=0o755, parents=True, exist_ok=True)
    # In a directory that all may write to, /dev/shm above all, anybody may have been there first.
    owner = path.stat().st_uid
    if owner != os.geteuid():
        raise PermissionError(
            errno.EPERM, f"it belongs to user {owner}, and a pool is used by its owner only", str(path)
        )
    found = read_format(path)
    if found is not None:
        return found
    foreign = [name for name in names_in(path) if name not in _OURS]
    if foreign and read_format(path) is None:  # another process may just have made it, and begun to use it
        raise StoreFormatError(f"{path} is not a pool: it holds {foreign[0]!r}")
    with _locked(path / LOCK):
        return read_format(path) or _make(path, durable)


def _make(path: Path, durable: bool | None) -> Format:
    for name in _PRIVATE:
        (path / name).mkdir(mode=0o700, exist_ok=True)
    objects = path / OBJECTS
    for directory in (objects, *(objects / f"{number:02x}" for number in range(256))):
        directory.mkdir(exist_ok=True)
        directory.chmod(0o755)
    path.chmod(0o755)
    made = Format(secrets.token_hex(16), not linux.in_memory(path) if durable is None else durable)
    replace(path, FORMAT, made.encode(), durable=made.durable)
    return made


def replace(path: Path, name: str, data: bytes, *, durable: bool, mode: int = 0o644) -> None:
    """Write a file of the pool so that it is the old or the new one, whatever happens meanwhile.

    For one writer at a time: each such file has a lock. What a writer that was killed has left is written over.
    """
    temporary = path / f".{name}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fchmod(file.fileno(), mode)
        if durable:
            os.fsync(file.fileno())
    temporary.replace(path / name)
    if durable:
        linux.sync_directory(path)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
