"""A blob that is removed and pushed again while jobs of its first life are queued or running keeps its bytes."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from pagepool.errors import CorruptError
from pagepool_service.maintenance import Maintenance
from pagepool_service.store.environment import Table
from pagepool_service.store.fsck import check_store
from pagepool_service.store.schema import ContentKind, JobKind, LayerState
from pagepool_service.store.store import Store
from tests.store.helpers import REPOSITORY, gzipped, ingest_all, make_tar, noise, push, read, text

if TYPE_CHECKING:
    from pathlib import Path

    from pagepool.digest import Digest
    from pagepool_service.store.schema import Job

BLOB = gzipped(make_tar({"a": noise(300_000, 1), "b": text(200_000, 2)}))


def run_one_of(store: Store, slot: int, kind: JobKind) -> Job:
    """Let a slot do one job of a kind that must be the next."""
    job = store.jobs.peek(slot)
    assert job is not None
    assert job.kind is kind
    Maintenance(store, slot=slot).run_one()
    return job


def push_again(store: Store, digest: Digest) -> None:
    """Remove the blob and push the same bytes: a new record, and new jobs beside those of the first."""
    store.registry.delete_blob(REPOSITORY, digest)
    assert push(store, BLOB) == digest


def test_a_blob_that_is_removed_while_it_waits_is_no_reason_to_warn(
    data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "pagepool")
    with Store.open(data) as store:
        digest = push(store, BLOB)
        store.registry.delete_blob(REPOSITORY, digest)
        assert Maintenance(store).run_all() == 1
    said = [(record.levelno, record.getMessage()) for record in caplog.records if str(digest) in record.getMessage()]
    assert said == [(logging.DEBUG, f"job on {digest} dropped: the blob was removed")]
    assert check_store(data).clean


def test_a_settle_of_an_earlier_life_does_not_undo_what_ingest_found(data: Path) -> None:
    with Store.open(data) as store:
        digest = push(store, BLOB)
        run_one_of(store, 0, JobKind.INGEST)  # its SETTLE is queued
        push_again(store, digest)
        ingest_all(store)
        record = store.blobs.stat(digest)
        assert (record.state, record.content) == (LayerState.READY, ContentKind.OBJECT)
        assert read(store, digest) == BLOB
        with store.env.read() as txn:
            assert store.jobs.count(txn) == 0
        assert not check_store(data).problems


def test_a_settle_in_the_middle_of_an_ingest_leaves_the_blob_readable(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store.open(data) as store:
        digest = push(store, BLOB)
        run_one_of(store, 0, JobKind.INGEST)
        assert store.jobs.begin_next(1)  # to settle it: slot 1 goes on with that below
        push_again(store, digest)
        first, second = Maintenance(store, slot=0), Maintenance(store, slot=1)
        ready = Maintenance._ready

        def settle_first(self: Maintenance, *arguments: object) -> None:
            assert second.run_one()
            assert store.blobs.stat(digest).state is LayerState.PENDING
            ready(self, *arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(Maintenance, "_ready", settle_first)
        assert first.run_one()
        monkeypatch.setattr(Maintenance, "_ready", ready)
        assert read(store, digest) == BLOB
        ingest_all(store)
        record = store.blobs.stat(digest)
        assert (record.state, record.content) == (LayerState.READY, ContentKind.OBJECT)
        assert read(store, digest) == BLOB


def test_a_push_of_a_blob_that_cannot_be_read_writes_it_anew(data: Path) -> None:
    with Store.open(data) as store:
        digest = push(store, BLOB)
        store.blobs.spool_path(digest).unlink()
        with pytest.raises(CorruptError):
            read(store, digest)
        push(store, BLOB)
        assert read(store, digest) == BLOB
        ingest_all(store)
        assert store.blobs.stat(digest).state is LayerState.READY
        assert read(store, digest) == BLOB


def test_settling_stores_nothing_under_a_name_it_does_not_have(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.open(data) as store:
        digest = push(store, BLOB)
        run_one_of(store, 0, JobKind.INGEST)
        real = store.blobs.read
        monkeypatch.setattr(store.blobs, "read", lambda *arguments: iter([b"".join(real(*arguments))]))
        Maintenance(store).run_one()
        monkeypatch.undo()
        assert read(store, digest) == BLOB
        with store.env.read() as txn:
            for name, _ in txn.scan(Table.EXTENTS):
                assert store.extents.is_sound(txn, name)
