"""Leases on trees that somebody has mounted: what keeps them, and what they are made of, when their image is deleted.

A lease is of one tree in one repository, for one holder, until a time; the holder renews it. It names the layers of the
tree, so that the tree can be made again without the manifest, and so that collection knows what to keep: the layers of
every lease that has not expired are roots, beside those of manifests. A lease is committed only if all its layers are
there, in the same transaction: whoever removes a layer has to look for leases in the transaction that removes it.

Time is the machine's clock, since leases outlive processes; what that skips when it is set, or while the machine is
off, ends none (`clock`). Thread-safe; everything blocks.

Format: docs/format/store.md.
"""

from __future__ import annotations

import logging
import secrets
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pagepool.digest import Digest
from pagepool.errors import CorruptError, LeaseUnknownError, LimitError, TreeUnknownError
from pagepool_service.store.clock import Clock, Moment, Timeline, note_clock, read_timeline, watch_clock
from pagepool_service.store.cycle import NoteKind, note
from pagepool_service.store.environment import Table
from pagepool_service.store.schema import LeaseName, LeaseRecord, lease_prefix

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pagepool_service.store.environment import Environment, Reader, Writer

log = logging.getLogger("pagepool.leases")

MOST_LEASES = 65_536
"""Of the whole store."""
_ID_SIZE = 16
_REMOVED_AT_ONCE = 1000
_NARROW_NS = 60 * 10**9  # a commit takes less


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease as its holder knows it: its id, and the Unix time at which it ends."""

    id: bytes
    expires_ns: int


class Leases:
    """The table `leases`. Trees and ids are raw bytes.

    Args:
        clock: says what time it is; tests replace it.
    """

    def __init__(self, env: Environment, clock: Clock = Moment.now) -> None:
        self._env = env
        self._clock = clock

    def take(
        self, repository: str, tree: bytes, holder: str, ttl_s: int, origin: tuple[Digest, Sequence[Digest]]
    ) -> Lease:
        """Take a new lease. On return it is durable.

        Args:
            tree: the caller has made sure that the repository has it.
            origin: the manifest that the tree came from, and the diff_ids of its layers, lowest first.

        Raises:
            TreeUnknownError: a layer of it is gone.
            LimitError: there are too many leases.
            StoreFullError, ReadOnlyError: none was taken.
        """
        manifest, layers = origin
        moment = self._clock()
        now = moment.wall_ns
        name = LeaseName(repository, tree, secrets.token_bytes(_ID_SIZE))
        record = LeaseRecord(now, now + ttl_s * 10**9, manifest, tuple(layers), holder)
        payload = record.encode()
        with self._env.write(reserve=len(payload) + 4096) as txn:
            if any(not txn.has(Table.LAYERS, layer.key) for layer in record.layers):
                raise TreeUnknownError(Digest("blake3", tree))
            count = txn.count(Table.LEASES)
            if count >= MOST_LEASES:
                raise LimitError("number of leases", count + 1, MOST_LEASES)
            _timeline(txn, moment)
            txn.put(Table.LEASES, name.key, payload)
            note(txn, NoteKind.LAYER, [layer.key for layer in record.layers])
        return Lease(name.id, record.expires_ns)

    def renew(self, repository: str, tree: bytes, lease: bytes, holder: str, ttl_s: int) -> Lease:
        """Have a lease end `ttl_s` from now, sooner or later than it would have. On return that is durable.

        Takes hardly more room than the lease has, so that it can be done when the quota is reached.

        Raises:
            LeaseUnknownError: there is none, or it has expired.
            StoreFullError, ReadOnlyError: it is as it was.
        """
        name = LeaseName(repository, tree, lease)
        with self._env.write() as txn:
            timeline = _timeline(txn, self._clock())  # it may expire while this waits for the writer's lock
            now = timeline.now.wall_ns
            payload = txn.get(Table.LEASES, name.key)
            known = None if payload is None else LeaseRecord.decode(payload, lease.hex())
            if known is None or timeline.lease_end_ns(known.expires_ns) <= now:
                raise LeaseUnknownError(lease.hex())
            record = replace(known, expires_ns=now + ttl_s * 10**9, holder=holder)
            txn.put(Table.LEASES, name.key, record.encode())
            # A collector that looks before this is committed may find it expired.
            if timeline.lease_end_ns(known.expires_ns) - now < _NARROW_NS:
                note(txn, NoteKind.LAYER, [layer.key for layer in record.layers])
        return Lease(lease, record.expires_ns)

    def release(self, repository: str, tree: bytes, lease: bytes) -> None:
        """End a lease.

        Raises:
            LeaseUnknownError: there is none.
            StoreFullError, ReadOnlyError: it goes on.
        """
        with self._env.write() as txn:
            if not txn.delete(Table.LEASES, LeaseName(repository, tree, lease).key):
                raise LeaseUnknownError(lease.hex())

    def find(self, repository: str, tree: bytes) -> LeaseRecord | None:
        """A lease on a tree in a repository that has not expired, if there is any."""
        now = self._clock()
        with self._env.read() as txn:
            timeline = read_timeline(txn, now)
            leases = _readable(txn, lease_prefix(repository, tree))
            return next((record for _, record in leases if not has_ended(timeline, record)), None)

    def roots(self, txn: Reader) -> Iterator[tuple[LeaseName, LeaseRecord]]:
        """All leases that have not expired, in a transaction of the caller's: what collection has to keep.

        Raises:
            CorruptError: one cannot be read. Then it is not known what has to be kept.
        """
        timeline = read_timeline(txn, self._clock())
        for key, payload in txn.scan(Table.LEASES):
            record = LeaseRecord.decode(payload, key.hex())
            if not has_ended(timeline, record):
                yield LeaseName.parse(key), record

    def remove_expired(self) -> int:
        """Remove leases that have expired. Returns how many.

        Writes nothing if there are none, and nobody has set the machine's clock. One whose record is damaged stays:
        what it says of its end cannot be believed.
        """
        moment = self._clock()
        watch_clock(self._env, moment)
        with self._env.read() as txn:
            timeline = read_timeline(txn, moment)
            found = [key for key, record in _readable(txn) if has_ended(timeline, record)]
        removed = 0
        for start in range(0, len(found), _REMOVED_AT_ONCE):
            with self._env.write() as txn:
                for key in found[start : start + _REMOVED_AT_ONCE]:
                    payload = txn.get(Table.LEASES, key)  # it may have been renewed meanwhile
                    if payload is not None and has_ended(timeline, LeaseRecord.decode(payload, key.hex())):
                        removed += txn.delete(Table.LEASES, key)
        return removed


def has_ended(timeline: Timeline, record: LeaseRecord) -> bool:
    """Whether a lease has expired."""
    return timeline.lease_end_ns(record.expires_ns) <= timeline.now.wall_ns


def _timeline(txn: Writer, now: Moment) -> Timeline:
    """Counts ages; a record that cannot be read is no reason to take none."""
    try:
        return note_clock(txn, now)
    except CorruptError as error:
        log.error("%s", error)
        return Timeline(now)


def _readable(txn: Reader, prefix: bytes = b"") -> Iterator[tuple[bytes, LeaseRecord]]:
    """Leases by their keys; a damaged one is passed over, since it must not keep the others from counting."""
    for key, _ in txn.scan(Table.LEASES, prefix, check=False):
        try:
            payload = txn.get(Table.LEASES, key)
            if payload is not None:
                yield key, LeaseRecord.decode(payload, key.hex())
        except CorruptError as error:
            log.error("%s", error)
