"""Rebuild a layer from what is stored, to see that it is the tar that came in.

Owns the process that does so beside a maintenance process. It shares no lock of Python's with the threads that read
the layer: on two cores a near-identical image is ready a tenth sooner. It only reads the store. One request at a time:
the recipe's number and the key of its tag, where its chunks begin as they are committed, None; then comes one answer.

When it ends, whatever ended it (pages of the database that are damaged may), the maintenance process ends with an
error, and the job's attempts count that. It ends with the process that started it.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import signal
from dataclasses import dataclass
from multiprocessing import Pipe
from typing import TYPE_CHECKING, Protocol, Self

from pagepool.digest import Digest
from pagepool.errors import PagepoolError
from pagepool_service.allocator import give_back
from pagepool_service.store.checks.findings import CarriedError
from pagepool_service.store.rebuild import rebuild_chunk
from pagepool_service.store.schema import recipe_key
from pagepool_service.store.store import Store
from pagepool_service.streamtag import StreamTag

if TYPE_CHECKING:
    from collections.abc import Iterable
    from multiprocessing.connection import Connection
    from pathlib import Path
    from types import TracebackType

log = logging.getLogger("pagepool.maintenance")

_PR_SET_PDEATHSIG = 1
_IDLE_S = 1.0  # without a layer: then memory is given back


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What was rebuilt from the store: the SHA-256 of the tar, and its tag (`streamtag`)."""

    diff_id: Digest
    tag: bytes


class Verifier(Protocol):
    """What rebuilds a layer."""

    def rebuild(self, recipe: int, key: bytes, starts: Iterable[int]) -> Rebuilt:
        """Rebuild a tar from the store, and hash it.

        Args:
            key: of the tag.
            starts: where the recipe's chunks begin, each once it is committed.

        Raises:
            CorruptError: something it needs is damaged.
        """


class HereVerifier:
    """Rebuilds in the thread that asks."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def rebuild(self, recipe: int, key: bytes, starts: Iterable[int]) -> Rebuilt:
        """See `Verifier`."""
        sha, tag = hashlib.sha256(), StreamTag(key)
        for start in starts:
            for piece in rebuild_chunk(self._store.env, self._store.extents, recipe_key(recipe, start)):
                sha.update(piece)
                tag.update(piece)
        return Rebuilt(Digest("sha256", sha.digest()), tag.tag())


class VerifierProcess:
    """Rebuilds in a process of its own. Make with `start`; one thread at a time may ask."""

    def __init__(self, pid: int, connection: Connection) -> None:
        self.pid = pid
        self._connection = connection

    @classmethod
    def start(cls, data: Path) -> Self:
        """Fork it. Called while this process has one thread and no store open.

        Args:
            data: directory of the store, which is there.
        """
        ours, its = Pipe()
        parent = os.getpid()
        pid = os.fork()
        if not pid:
            _run(data, its, parent)
        its.close()
        return cls(pid, ours)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it, and wait until it has ended."""
        self._connection.close()
        os.waitpid(self.pid, 0)

    def rebuild(self, recipe: int, key: bytes, starts: Iterable[int]) -> Rebuilt:
        """See `Verifier`.

        Raises:
            ChildProcessError: the process has ended.
        """
        try:
            self._connection.send((recipe, key))
            for start in starts:
                self._connection.send(start)
            self._connection.send(None)
            answer: Rebuilt | CarriedError = self._connection.recv()
        except (EOFError, OSError) as error:
            raise ChildProcessError("the process that verifies layers has ended") from error
        if isinstance(answer, CarriedError):
            raise answer.restore()
        return answer


def _run(data: Path, connection: Connection, parent: int) -> None:
    """The process, from the fork to its end."""
    status = 1
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == parent:
            # Above all the lock of the data directory: it must be free as soon as the service has ended.
            os.closerange(3, connection.fileno())
            os.closerange(connection.fileno() + 1, os.sysconf("SC_OPEN_MAX"))
            with Store.open(data) as store:
                _answer_all(HereVerifier(store), connection)
            status = 0
    except Exception:
        log.critical("the process that verifies layers failed", exc_info=True)
    finally:
        os._exit(status)


def _answer_all(verifier: Verifier, connection: Connection) -> None:
    while True:
        try:
            recipe, key = connection.recv()
        except EOFError:
            return
        starts = iter(connection.recv, None)
        try:
            connection.send(verifier.rebuild(recipe, key, starts))
        except PagepoolError as error:
            for _ in starts:
                pass
            connection.send(CarriedError.of(error))
        if not connection.poll(_IDLE_S):
            give_back()
