"""A cycle of collection, from its beginning to its end.

    begin     a record in `meta`, durable: from now on writers note what they write (`cycle`)
    catalogue tags beyond the newest, untagged manifests, blobs of no manifest (`catalogue`)
    mark      blobs, leases, jobs -> layers -> recipes -> objects -> extents (`marking`)
    sweep     layers, recipes, objects (`records`), then frames (`frames`), and files of the spool without a record
    end       the record goes, with the notes; then free pages are given back to the file system (`holes`)

One collector at a time has a data directory: it holds a lock on `collection.lock`. It keeps what it knows in memory, so
a cycle that was cut off, at whatever moment, is dropped by the next one, which begins anew: what was removed
was needed by nothing, and each transaction leaves the store whole.

Blocks for as long as it takes; holds the writer's lock for milliseconds at a time (`gate`), and no snapshot for long.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from typing import TYPE_CHECKING

from pagepool.digest import Digest
from pagepool.errors import BusyError, InvalidError
from pagepool_service.store import cycle
from pagepool_service.store.clock import Clock, Moment, note_clock, read_timeline
from pagepool_service.store.collect.catalogue import CatalogueSweep
from pagepool_service.store.collect.frames import FrameSweep
from pagepool_service.store.collect.gate import BUDGET_S, Gate
from pagepool_service.store.collect.holes import give_back
from pagepool_service.store.collect.marking import Marker, batches
from pagepool_service.store.collect.records import RecordSweep
from pagepool_service.store.collect.report import Report
from pagepool_service.store.cycle import Cycle, first_untouched
from pagepool_service.store.environment import Table
from pagepool_service.store.schema import BlobRecord, ContentKind, LayerRecord
from pagepool_service.store.store import Store, check_there
from pagepool_service.store.totals import Totals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pagepool_service.store.clock import Timeline
    from pagepool_service.store.collect.policy import Policy
    from pagepool_service.store.environment import Reader, Writer

    Watch = Callable[[str, int, int], None]

_NOTES_AT_ONCE = 200


class CycleLostError(BusyError):
    """The record of the running cycle is gone or another: somebody else wrote it. Nothing more is removed."""


class Collector:
    """Collects in one store.

    Args:
        policy: what may go.
        budget_s: about how long the writer's lock may be held at a time.
        rest: how long to rest after each snapshot, in parts of the time that it took.
        watch: told of progress: the step, how much of it is done, and how much there is (0: not known).
        clock: says what time it is; tests replace it.
    """

    def __init__(
        self,
        store: Store,
        policy: Policy,
        *,
        budget_s: float = BUDGET_S,
        rest: float = 0.0,
        watch: Watch | None = None,
        clock: Clock = Moment.now,
    ) -> None:
        self._store = store
        self._env = store.env
        self._policy = policy
        self._budget_s = budget_s
        self._rest = rest
        self._watch = watch or (lambda _step, _done, _all: None)
        self._clock = clock
        self._began: Cycle | None = None
        self._began_s = 0.0

    def run(self, *, wait: bool = False) -> Report:
        """Run one cycle. On return what it did is durable.

        Args:
            wait: for another collector to be done, if there is one.

        Raises:
            BusyError: another one collects, and `wait` was not asked for.
            CorruptError: a record cannot be read that says what has to be kept; nothing that it may keep was removed.
            ReadOnlyError, StoreFullError: as writes do.
        """
        with lock_collection(self._store.data, wait=wait):
            report = Report()
            self._began_s = time.monotonic()
            gate = Gate(self._env, self._budget_s)
            try:
                report.space_before = space_of(self._store.data)
                timeline = self._begin(gate)
                gate.check = self._is_ours
                self._sweep(gate, report, timeline)
            finally:
                _note_holds(report, gate)
                report.seconds = time.monotonic() - self._began_s
            return report

    def forecast(self) -> Report:
        """What `run` would do now, about. Changes nothing; the store may be opened read-only."""
        report = Report(dry=True)
        began = time.monotonic()
        report.space_before = report.space_after = space_of(self._store.data)
        with self._env.read() as txn:
            totals = Totals.load(txn)
            limit = first_untouched(txn)
            timeline = read_timeline(txn, self._clock())
        catalogue = CatalogueSweep(self._store, self._policy, None, report, self._uploading, timeline)
        catalogue.run(self._step("repositories"))
        orphans = catalogue.orphans()
        report.freed["blobs"] += len(orphans)
        marker = Marker(self._env, self._store.leases, orphans)
        marker.mark_all(self._step("marking", len(Table)))
        self._count_roots(report, marker)
        RecordSweep(self._env, marker, None, report, totals.next_recipe).run()
        FrameSweep(self._env, self._store.extents, marker, None, report, limit).run(self._step("frames"))
        report.seconds = time.monotonic() - began
        report.ended_ns = self._clock().wall_ns
        return report

    def expires(self) -> bool:
        """Whether the rules take anything out of a repository now."""
        report = Report(dry=True)
        with self._env.read() as txn:
            timeline = read_timeline(txn, self._clock())
        CatalogueSweep(self._store, self._policy, None, report, self._uploading, timeline).run()
        return any(report.freed.values())

    # -- the cycle -------------------------------------------------------------------------------------------

    def _begin(self, gate: Gate) -> Timeline:
        """Drop what was cut off, and note that a cycle begins. Returns from when on ages are counted back."""
        while gate.run(lambda turn: _clear(turn.txn)):
            pass
        timeline = gate.run(lambda turn: note_clock(turn.txn, self._clock()))
        self._began = gate.run(lambda turn: Cycle.begin(turn.txn, timeline.now.wall_ns))
        return timeline

    def _is_ours(self, txn: Reader) -> None:
        if Cycle.running(txn) != self._began:
            raise CycleLostError("another collection has begun in this store")

    def _sweep(self, gate: Gate, report: Report, timeline: Timeline) -> None:
        began = self._began
        assert began is not None
        catalogue = CatalogueSweep(self._store, self._policy, gate, report, self._uploading, timeline)
        catalogue.run(self._step("repositories"))
        marker = Marker(self._env, self._store.leases, rest=self._rest)
        with self._env.read() as txn:
            blobs = txn.count(Table.BLOBS)
        marker.mark_all(self._step("marking", blobs))
        self._count_roots(report, marker)

        def check(txn: Writer) -> None:
            self._is_ours(txn)
            marker.check(txn)

        gate.prepare, gate.check = marker.catch_up, check
        self._step("records")(0)
        RecordSweep(self._env, marker, gate, report, began.recipe_limit).run()
        frames = FrameSweep(self._env, self._store.extents, marker, gate, report, began.frame_limit)
        frames.run(self._step("frames"))
        gate.prepare, gate.check = _nothing, self._is_ours
        report.freed["spool files"] += self._sweep_spool()
        self._end(gate, report)

    def _end(self, gate: Gate, report: Report) -> None:
        while gate.run(lambda turn: cycle.drop_notes(turn.txn, _NOTES_AT_ONCE)):
            pass
        self._write_end(gate, report)
        gate.check = _nothing_of
        try:
            report.punched = give_back(self._env, gate, self._step("giving space back"))
        except OSError as error:
            report.problems.append(f"free pages stay on the disk: {error.strerror}")
        report.space_after = space_of(self._store.data)
        # Again, with what only the last step knows.
        self._write_end(gate, report)

    def _write_end(self, gate: Gate, report: Report) -> None:
        _note_holds(report, gate)
        report.ended_ns = self._clock().wall_ns
        report.seconds = time.monotonic() - self._began_s
        summary = report.to_json()
        gate.run(lambda turn: cycle.end(turn.txn, summary))

    # -- beside the records ----------------------------------------------------------------------------------

    def _uploading(self) -> set[str]:
        """The repositories that somebody uploads to. What is pushed there is on its way to a manifest."""
        found: set[str] = set()
        for path in self._store.uploads.glob("*.json"):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                found.add(json.loads(path.read_bytes())["repository"])
        return found

    def _sweep_spool(self) -> int:
        """Remove files of the spool that no record names: each gets there in the transaction of its record."""
        removed = 0
        for path in list((self._store.data / "spool").iterdir()):
            with contextlib.suppress(InvalidError):
                digest = Digest.parse(path.name.replace("-", ":", 1))
                with self._env.read() as txn:
                    payload = txn.get(Table.BLOBS, digest.key)
                    record = None if payload is None else BlobRecord.decode(payload, str(digest))
                if record is None or record.content is not ContentKind.SPOOL:
                    self._store.blobs.forget_file(digest)
                    removed += not path.exists()
        return removed

    def _count_roots(self, report: Report, marker: Marker) -> None:
        report.kept["blobs"] += marker.roots.blobs
        report.kept["leases"] += marker.roots.leases
        report.kept["jobs"] += marker.roots.jobs
        report.kept["repositories that are uploaded to"] += len(self._uploading())

    def _step(self, name: str, total: int = 0) -> Callable[[int], None]:
        done = 0

        def advance(more: int) -> None:
            nonlocal done
            done += more
            self._watch(name, done, total)

        advance(0)
        return advance


def open_for_collection(data: Path, *, readonly: bool = False) -> Store:
    """Open a store that is there, beside a service that may run.

    Args:
        readonly: for `Collector.forecast`: nothing is written, but for a place in the table of readers.

    Raises:
        StoreFormatError: there is no store.
        ReadOnlyError: it cannot be written to.
    """
    check_there(data)
    if readonly:
        return Store.open(data, readonly=True, shared=True)
    return Store.open(data)


def estimate_garbage(store: Store) -> int:
    """About how many stored bytes nothing needs, by a look at the records of blobs and layers alone.

    Not seen: what repositories still have, and no rule keeps.
    """
    used: set[bytes] = set()
    opaque = 0
    for batch in batches(store.env, Table.BLOBS):
        for key, payload in batch:
            record = BlobRecord.decode(memoryview(payload), key.hex())
            if record.diff_id is not None:
                used.add(record.diff_id.key)
            if record.content is ContentKind.OBJECT:
                opaque += record.size
    with store.env.read() as txn:
        totals = Totals.load(txn)
        for _, lease in store.leases.roots(txn):
            used.update(layer.key for layer in lease.layers)
    whole = dead = 0
    for batch in batches(store.env, Table.LAYERS):
        for key, payload in batch:
            size = LayerRecord.decode(payload).file_bytes
            whole += size
            dead += 0 if key in used else size
    # Layers share files: what one alone needs is less, but not known here.
    files = totals.files_stored * dead // whole if whole else totals.files_stored
    ratio = totals.opaque_stored / totals.opaque_plain if totals.opaque_plain else 0.0
    return files + int(max(0, totals.opaque_plain - opaque) * ratio)


@contextlib.contextmanager
def lock_collection(data: Path, *, wait: bool = False) -> Iterator[None]:
    """Be the only collector of a data directory, for the length of a block.

    Raises:
        BusyError: there is another, and `wait` was not asked for; names its process.
    """
    fd = os.open(data / "collection.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
            raise BusyError(f"process {holder} collects in {data}") from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)


def drop_cut_off(store: Store) -> bool:
    """Drop a cycle that was cut off, unless somebody collects now. Returns whether there was one."""
    with store.env.read() as txn:
        if not cycle.is_collecting(txn):
            return False
    try:
        with lock_collection(store.data):
            gate = Gate(store.env)
            while gate.run(lambda turn: _clear(turn.txn)):
                pass
    except BusyError:
        return False
    return True


def space_of(data: Path) -> int:
    """Bytes that a data directory takes on its disk, holes not counted."""
    total = 0
    for directory, _, files in os.walk(data):
        for name in files:
            with contextlib.suppress(FileNotFoundError):
                total += os.lstat(os.path.join(directory, name)).st_blocks * 512  # noqa: PTH118  (a million files)
    return total


def _clear(txn: Writer) -> bool:
    """Remove some of what a cycle left. Returns whether there is more."""
    if cycle.drop_notes(txn, _NOTES_AT_ONCE):
        return True
    cycle.end(txn, None)
    return False


def _note_holds(report: Report, gate: Gate) -> None:
    report.writes = gate.holds.count
    report.longest_hold_s, report.longest_work_s = gate.holds.longest_s, gate.holds.longest_work_s


def _nothing() -> None:
    """Nothing is to be prepared."""


def _nothing_of(txn: Reader) -> None:
    """Nothing is to be checked."""
