"""The keys that this service signs its tokens with: made by itself, shared by its workers, changed every month.

They are in ``DATA/auth/keys.json``, 0600 in a directory 0700:

    {"keys": [{"id": "…", "secret": "… (64 hex digits)", "created": 1764100000}, …]}

The last one signs; earlier ones verify, until nothing that they signed is good any more. A process that finds the last
too old, or of the future, since the clock was wrong when it was made, makes the next one, under a lock; the others read
the file again when they meet an id that they do not know. To have every token refused at once, remove the file.

A service that may not write there (read-only) signs with a key of its own for as long as it runs, the same in all its
workers, and verifies with those that are there.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from pagepool import linux
from pagepool.errors import CorruptError, PagepoolError, ReadOnlyError, StoreFullError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ROTATE_S: Final = 30 * 86400.0
KEEP_S: Final = 130 * 86400.0
"""Of a key, from its making on: longer than it signs and the last token lives."""
_MOST_KEYS: Final = 1 + -(-int(KEEP_S) // int(ROTATE_S))  # earlier ones go by number: a clock may be wrong
_SECRET_SIZE = 32
_AHEAD_S = 60.0  # of the clock of another machine that shares the directory, at most
_AGAIN_S = 1.0  # between two looks at the file for an id that is not known


@dataclass(frozen=True, slots=True)
class Key:
    """One key.

    Args:
        created: Unix time.
    """

    id: str
    secret: bytes = field(repr=False)
    created: float


class KeyRing:
    """The keys of a service. Thread-safe; survives a fork.

    Args:
        directory: of the keys; None for none.
        writable: whether it may be written to. If not, or there is none, the newest key is in memory only.

    Raises:
        ReadOnlyError, CorruptError: the directory cannot be read.
    """

    def __init__(self, directory: Path | None, *, writable: bool = True) -> None:
        self._directory = directory if writable else None
        self._lock = threading.Lock()
        self._keys: tuple[Key, ...] = ()
        self._looked = float("-inf")
        if self._directory is None:
            self._keys = (*(_read(directory) if directory is not None else ()), _new_key())

    def prepare(self) -> None:
        """Make the first key if there is none. Before anybody is served.

        Raises:
            StoreFullError, ReadOnlyError: it cannot be written.
            CorruptError: the file is none of these.
        """
        self.current()

    def current(self) -> Key:
        """The key to sign with. Reads the file, and makes a new key, only if that is due.

        Raises:
            ReadOnlyError: there is none, and none can be written.
        """
        with self._lock:
            if not self._keys and self._directory is not None:
                self._keys = _read(self._directory)
            if self._directory is not None and (not self._keys or _is_old(self._keys[-1])):
                self._keys = _renew(self._directory)
            return self._keys[-1]

    def find(self, identity: str) -> Key | None:
        """The key of an id."""
        found = self._find(identity)
        if found is not None or self._directory is None:
            return found
        with self._lock:
            if time.monotonic() - self._looked >= _AGAIN_S:
                self._looked = time.monotonic()
                self._keys = _read(self._directory)
        return self._find(identity)

    def reread(self) -> bool:
        """Read the file again: it may have been removed, to have all tokens refused. Returns whether a key is gone."""
        if self._directory is None:
            return False
        with self._lock:
            before = {key.id for key in self._keys}
            self._keys = _read(self._directory)
            return not before <= {key.id for key in self._keys}

    def _find(self, identity: str) -> Key | None:
        until = time.time() - KEEP_S
        return next((key for key in self._keys if key.id == identity and key.created > until), None)


def _new_key() -> Key:
    return Key(secrets.token_hex(8), secrets.token_bytes(_SECRET_SIZE), time.time())


def _is_old(key: Key) -> bool:
    return not key.created - _AHEAD_S <= time.time() <= key.created + ROTATE_S


def _read(directory: Path) -> tuple[Key, ...]:
    """The keys, the one made last at the end; none if there is no file."""
    path = directory / "keys.json"
    try:
        entries = json.loads(path.read_bytes())["keys"]
        keys = [Key(str(one["id"]), bytes.fromhex(one["secret"]), float(one["created"])) for one in entries]
        if any(len(key.secret) != _SECRET_SIZE for key in keys):
            raise ValueError("a key is too short")
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise ReadOnlyError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        # Not what is in it: it is secret.
        raise CorruptError("file", str(path), "it holds no keys; remove it, and everybody logs in anew") from None
    return tuple(keys)


def _renew(directory: Path) -> tuple[Key, ...]:
    """Add a key, unless somebody else just did; forget the first of too many."""
    with _locked(directory):
        keys = _read(directory)
        if keys and not _is_old(keys[-1]):
            return keys
        keys = (*keys, _new_key())[-_MOST_KEYS:]
        _write(directory / "keys.json", keys)
    return keys


def _write(path: Path, keys: tuple[Key, ...]) -> None:
    document = {"keys": [{"id": key.id, "secret": key.secret.hex(), "created": key.created} for key in keys]}
    part = path.with_name(".keys.json")
    try:
        part.unlink(missing_ok=True)
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
            json.dump(document, file)
            file.flush()
            os.fsync(file.fileno())
        part.rename(path)
    except OSError as error:
        raise _refused(error, path) from error


def _refused(error: OSError, path: Path) -> PagepoolError:
    if linux.is_full(error):
        return StoreFullError(f"{path}: {linux.words_of(error, path.parent)}")
    return ReadOnlyError(f"{error.filename or path}: {error.strerror}")


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _refused(error, directory) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
