"""Upload sessions: blobs on their way in, as plain files that survive the process.

Owns the directory of uploads. A session is ``ID``, the bytes so far, and ``ID.json``, its repository and digest
algorithm. How much has come in is the size of the file and nothing else, so a session goes on after a restart and on
any worker. `OpenUpload` is the right to write to one: it holds a flock on the file, and hashes what passes through,
so that a blob that came through one process need not be read again to be verified.

Concurrency: one writer per session over all processes; a second one is refused with UploadBusyError. `Uploads` may be
used from any thread, an `OpenUpload` from one at a time (`close` waits for a write that is going on).

Crash: sessions stay as far as they were written. What was acknowledged as a blob is the store's (`BlobStore.admit`).
A session without its second file, and one that was idle for too long, is removed by `uploadfiles.sweep`.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
import uuid
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pagepool.errors import (
    DigestMismatchError,
    LimitError,
    ReadOnlyError,
    StoreFullError,
    UploadBusyError,
    UploadUnknownError,
)
from pagepool_service.store.disk import UnsyncedError, refused
from pagepool_service.store.sums import Summer, Sums, sum_file
from pagepool_service.uploadfiles import directory_size, owner_mark

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pagepool.digest import Digest
    from pagepool_service.store.environment import Writer
    from pagepool_service.store.store import Store

# Sessions between two requests whose hash state is kept: a session dropped from here is hashed from its file.
_SUMMERS_KEPT = 64
# Bytes written at most between two looks at quota and disk: by so much may sessions that grow together go beyond.
_MOST_UNCHECKED = 16 << 20


@dataclass(frozen=True, slots=True)
class Session:
    """What `ID.json` says."""

    id: str
    repository: str
    algorithm: str


class Uploads:
    """The sessions of one store.

    Args:
        store: takes the finished blobs; its quota counts sessions too.
        max_size: most bytes of one blob.
        quota_bytes: most bytes of store, spool and sessions together; 0 for no limit.
    """

    def __init__(self, store: Store, *, max_size: int, quota_bytes: int = 0) -> None:
        self._store = store
        self._directory = store.uploads
        self._max_size = max_size
        self._quota = quota_bytes
        self._summers: OrderedDict[str, Summer] = OrderedDict()
        self._lock = threading.Lock()
        self._hashers = ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="hash")

    def begin(self, repository: str, algorithm: str = "sha256", owner: str = "") -> Session:
        """Make a session.

        Args:
            owner: whose it is, for counting them: `uploadfiles.owner_mark`.

        Raises:
            ReadOnlyError, StoreFullError: it cannot be made.
        """
        self._check_writable()
        mark, random = owner_mark(owner), str(uuid.uuid4())
        session = Session(mark + random[len(mark) :], repository, algorithm)
        text = json.dumps({"repository": repository, "algorithm": algorithm, "created": int(time.time())})
        try:
            self._record_path(session.id).write_text(text)
            self._path(session.id).touch(mode=0o600, exist_ok=False)
        except OSError as error:
            with suppress(OSError):  # a disk that has failed removes nothing either
                self._record_path(session.id).unlink(missing_ok=True)
            raise refused(error, "writing an upload failed") from error
        return session

    def size(self, repository: str, session_id: str) -> int:
        """How many bytes have come in.

        Raises:
            UploadUnknownError: no such session in this repository.
        """
        self._session(repository, session_id)
        try:
            return self._path(session_id).stat().st_size
        except OSError:
            raise UploadUnknownError(session_id) from None

    def open(self, repository: str, session_id: str) -> OpenUpload:
        """Take the right to write to a session.

        Raises:
            UploadUnknownError: no such session in this repository.
            UploadBusyError: another request is writing to it.
            ReadOnlyError: nobody may.
        """
        self._check_writable()
        session = self._session(repository, session_id)
        path = self._path(session_id)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            raise UploadUnknownError(session_id) from None
        except OSError as error:
            raise refused(error, "writing an upload failed") from error
        try:
            _lock_file(fd, path, session_id)
            return OpenUpload(self, session, path, fd, self._take_summer(session, os.fstat(fd).st_size))
        except BaseException:
            os.close(fd)
            raise

    def cancel(self, repository: str, session_id: str) -> None:
        """Remove a session.

        Raises:
            UploadUnknownError, UploadBusyError: see `open`.
        """
        upload = self.open(repository, session_id)
        upload.remove()
        upload.close()

    def check_room(self, incoming: int) -> int:
        """See that so many more bytes may come in. Returns how many more could after them.

        Raises:
            StoreFullError: over the quota, or more than the disk has.
        """
        disk = os.statvfs(self._directory)
        room = disk.f_bavail * disk.f_frsize - incoming
        if room < 0:
            raise StoreFullError(f"{incoming} bytes coming, the disk has {room + incoming} left")
        if self._quota:
            taken = directory_size(self._directory) + directory_size(self._store.data / "spool")
            with self._store.env.read() as txn:
                taken += txn.used_bytes()
            room = min(room, self._quota - taken - incoming)
            if room < 0:
                raise StoreFullError(f"{taken} bytes used, {incoming} more coming, the quota is {self._quota}")
        return room

    def check_size(self, size: int) -> None:
        """See that a blob may be so large.

        Raises:
            LimitError: it may not.
        """
        if size > self._max_size:
            raise LimitError("blob", size, self._max_size)

    def admit(self, path: Path, digest: Digest, summer: Summer, also: Callable[[Writer], None]) -> None:
        """Verify a session's file and hand it to the store."""
        self._store.blobs.admit(path, verified(summer, digest), also)

    def has_already(self, session: Session, digest: Digest) -> bool:
        """Whether a session's repository has a blob already, and all of it can be read."""
        return self._store.registry.has_sound_blob(session.repository, digest)

    def forget(self, session_id: str) -> None:
        """Remove what is left of a session."""
        self._path(session_id).unlink(missing_ok=True)
        self._record_path(session_id).unlink(missing_ok=True)

    def start_hashing(self, summer: Summer | None, pieces: Sequence[bytes]) -> Future[None]:
        """Hash bytes beside their being written: neither takes the whole of a core."""
        return self._hashers.submit(_hash, summer, pieces)

    def keep_summer(self, session_id: str, summer: Summer) -> None:
        """Keep the hash state of a session between two requests."""
        with self._lock:
            self._summers[session_id] = summer
            while len(self._summers) > _SUMMERS_KEPT:
                self._summers.popitem(last=False)

    def _check_writable(self) -> None:
        if self._store.env.readonly:
            raise ReadOnlyError("it was opened read-only")

    def _take_summer(self, session: Session, size: int) -> Summer | None:
        with self._lock:
            summer = self._summers.pop(session.id, None)
        if summer is not None and summer.size == size:
            return summer
        return Summer(session.algorithm) if size == 0 else None

    def _session(self, repository: str, session_id: str) -> Session:
        try:
            # Only what `begin` makes: an id from a request never names another file.
            if str(uuid.UUID(session_id)) != session_id:
                raise UploadUnknownError(session_id)
            record = json.loads(self._record_path(session_id).read_bytes())
            session = Session(session_id, record["repository"], record["algorithm"])
        except (OSError, ValueError, KeyError, TypeError):
            raise UploadUnknownError(session_id) from None
        if session.repository != repository:
            raise UploadUnknownError(session_id)
        return session

    def _path(self, session_id: str) -> Path:
        return self._directory / session_id

    def _record_path(self, session_id: str) -> Path:
        return self._directory / f"{session_id}.json"


class OpenUpload:
    """The right to write to one session, until `close`.

    Args:
        summer: hash state over exactly what the file holds, or None if it must be read again.
    """

    def __init__(self, uploads: Uploads, session: Session, path: Path, fd: int, summer: Summer | None) -> None:
        self._uploads = uploads
        self._path = path
        self._fd = fd
        self._summer = summer
        self._lock = threading.Lock()
        self._room = 0
        self._keeps = True
        self.session = session
        self.size = os.fstat(fd).st_size

    def keep_nothing(self, digest: Digest) -> bool:
        """Only hash what will come, if the session is empty and its repository has the blob that it is said to be.

        So a push for which there is no room succeeds where it would store nothing. It is the same for a blob that is
        only elsewhere as for one that is nowhere: nobody learns what others have.

        Returns:
            whether it is so.
        """
        with self._lock:
            if self.size or not self._uploads.has_already(self.session, digest):
                return False
            self._keeps = False
            self._summer = Summer(digest.algorithm)
            return True

    def write(self, pieces: Sequence[bytes]) -> None:
        """Append bytes, at most 512 pieces of them. On an error the caller truncates to where it began.

        Raises:
            LimitError: the blob would be larger than allowed.
            StoreFullError, ReadOnlyError: they cannot be written.
            UploadUnknownError: it was closed meanwhile.
        """
        size = sum(map(len, pieces))
        with self._lock:
            if self._fd < 0:
                raise UploadUnknownError(self.session.id)
            self._uploads.check_size(self.size + size)
            if not self._keeps:
                _hash(self._summer, pieces)
                self.size += size
                return
            self._room -= size
            if self._room < 0:
                self._room = min(_MOST_UNCHECKED, self._uploads.check_room(size))
            hashing = self._uploads.start_hashing(self._summer, pieces)
            try:
                self._append(pieces)
            finally:
                wait([hashing])

    def truncate(self, size: int) -> None:
        """Go back to an earlier size."""
        with self._lock:
            self._truncate(size)

    def finish(self, digest: Digest, also: Callable[[Writer], None]) -> None:
        """Make the session's bytes a blob. On return it is durable, and the session is gone.

        Args:
            digest: what the client says it is; verified.
            also: runs in the transaction that makes the blob visible.

        Raises:
            DigestMismatchError: the bytes have another digest; the session is removed.
            UnsyncedError: nor are they on the disk; the session is removed.
            StoreFullError, ReadOnlyError: the blob was not taken in.
        """
        with self._lock:
            summer = self._summer
            if summer is None or summer.algorithm != digest.algorithm:
                summer = sum_file(self._path, digest.algorithm)
            self._summer = None
            try:
                self._admit(digest, summer, also)
            except (DigestMismatchError, UnsyncedError):
                # The kernel drops what it could not write, and says so once: syncing again would say that all is well.
                self._uploads.forget(self.session.id)
                raise
            self._uploads.forget(self.session.id)

    def _admit(self, digest: Digest, summer: Summer, also: Callable[[Writer], None]) -> None:
        full = StoreFullError(f"{digest} was removed while it was pushed again, and there is no room for it")
        if self._keeps:
            try:
                self._uploads.admit(self._path, digest, summer, also)
                return
            except StoreFullError as error:
                if not self._path.exists():  # it has its place, in a transaction that failed
                    raise
                full = error
        else:
            verified(summer, digest)
        if not self._uploads.has_already(self.session, digest):
            raise full

    def remove(self) -> None:
        """Remove the session."""
        with self._lock:
            self._summer = None
            self._uploads.forget(self.session.id)

    def close(self, size: int | None = None) -> None:
        """Give the right back. Quick; but it waits for a write that is going on in another thread.

        Args:
            size: go back to this size first; a write that has not begun yet will not.
        """
        with self._lock:
            if self._fd < 0:
                return
            if size is not None:
                self._truncate(size)
            if self._summer is not None and self._summer.size == self.size > 0:
                self._uploads.keep_summer(self.session.id, self._summer)
            os.close(self._fd)
            self._fd = -1

    def _truncate(self, size: int) -> None:
        if size == self.size or not _is_at(self._fd, self._path):  # it is gone, or a blob's by now
            return
        os.ftruncate(self._fd, size)
        self.size = size
        # A hash cannot be taken back.
        self._summer = Summer(self.session.algorithm) if size == 0 else None

    def _append(self, pieces: Sequence[bytes]) -> None:
        end = self.size + sum(map(len, pieces))
        try:
            self.size += os.pwritev(self._fd, pieces, self.size)
            if self.size < end:  # a disk that is nearly full takes a part, and then says so
                rest = memoryview(b"".join(pieces))[self.size - end :]
                while rest:
                    done = os.pwrite(self._fd, rest, self.size)
                    self.size += done
                    rest = rest[done:]
        except OSError as error:
            raise refused(error, "writing an upload failed") from error


def verified(summer: Summer, digest: Digest) -> Sums:
    """What was computed over some bytes.

    Raises:
        DigestMismatchError: they have another digest.
    """
    sums = summer.sums()
    if sums.digest != digest:
        raise DigestMismatchError(digest, sums.digest, sums.size)
    return sums


def _hash(summer: Summer | None, pieces: Sequence[bytes]) -> None:
    if summer is not None:
        for piece in pieces:
            summer.update(piece)


def _lock_file(fd: int, path: Path, session_id: str) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UploadBusyError(f"upload {session_id} is being written to by another request") from None
    # Whoever held the lock may have finished: the file is then a blob in the spool, or gone.
    if not _is_at(fd, path):
        raise UploadUnknownError(session_id)


def _is_at(fd: int, path: Path) -> bool:
    """Whether an open file is the one of that name."""
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False
