"""Compressed layers that are kept once: which are, when they are looked at, and what becomes of their copies."""

from __future__ import annotations

import gzip
import time
from typing import TYPE_CHECKING, Any

import pytest

from pagepool_service.copies import Copies
from pagepool_service.encoders import EncoderMissingError, decode, frozen, tried, zlibs
from pagepool_service.maintenance import Maintenance
from pagepool_service.settling import PutOffError, find_encoder
from pagepool_service.store.collect import Policy
from pagepool_service.store.environment import Table
from pagepool_service.store.fsck import check_store
from pagepool_service.store.schema import ContentKind, JobKind, LayerState
from pagepool_service.store.statistics import collect_totals
from pagepool_service.store.store import Store
from tests.encoders.samples import encoded
from tests.faults import replace_record
from tests.repair.helpers import file_frames, opaque_frames, repair, wreck_all
from tests.store.checking import check
from tests.store.collecting import collect
from tests.store.helpers import gzipped, ingest_all, make_tar, noise, push, read, text, zstd

if TYPE_CHECKING:
    from pathlib import Path

    from pagepool.digest import Digest
    from pagepool_service.store.schema import BlobRecord

TAR = make_tar({f"f{number}": text(10_000, number) + noise(9_000, number) for number in range(20)})
"""Compressed it has more than an extent."""


@pytest.fixture(scope="module")
def pgzip() -> bytes:
    """As podman, buildah and skopeo compress."""
    return encoded(TAR, "klauspost-1.18", "pgzip")


def kind_of(store: Store, blob: Digest) -> ContentKind:
    return store.blobs.stat(blob).content


def test_layers_of_the_go_clients_are_kept_once(store: Store, data: Path, pgzip: bytes) -> None:
    """docker's, podman's, and with zstd; what nobody makes again is kept as it came."""
    made = [pgzip, encoded(TAR, "go-1.26", "gzip"), encoded(TAR, "klauspost-1.20", "zstd", 3)]
    kept = [gzip.compress(TAR[:1000]) + gzip.compress(TAR[1000:]), zstd(TAR)]
    blobs = {push(store, blob): blob for blob in made + kept}
    ingest_all(store, rebuild_compressed=True)
    assert [kind_of(store, blob) for blob in blobs] == [ContentKind.RECIPE] * 3 + [ContentKind.OBJECT] * 2
    for blob, content in blobs.items():
        assert read(store, blob) == content
        assert read(store, blob, 130_000, 140_000) == content[130_000:140_000]
    totals = collect_totals(store)
    assert totals["rebuilt_blobs_bytes"] == sum(map(len, made))
    assert totals["opaque_copies_bytes"] == sum(map(len, kept))
    assert totals["stored"]["spool"] == 0
    assert check_store(data).problems == []


def test_without_being_asked_copies_stay(store: Store, pgzip: bytes) -> None:
    blob = push(store, pgzip)
    ingest_all(store)
    assert kind_of(store, blob) is ContentKind.OBJECT
    assert collect_totals(store)["rebuilt_blobs_bytes"] == 0


def test_copies_that_were_stored_before_go(store: Store, data: Path, pgzip: bytes) -> None:
    """Once a service starts that is asked to; collection takes them, and nothing else."""
    blob, plain = push(store, pgzip), push(store, TAR)
    other, small = push(store, zstd(TAR)), push(store, gzipped(make_tar({"a": b"a"})))
    ingest_all(store)
    Copies(store, 0).queue()
    Copies(store, 0).queue()  # a start after one that was cut off
    with store.env.read() as txn:
        assert store.jobs.count(txn) == 2
    before = collect_totals(store)["stored"]["opaque"]
    assert ingest_all(store, rebuild_compressed=True) == 2
    assert [kind_of(store, one) for one in (blob, plain, other, small)] == [
        ContentKind.RECIPE,
        ContentKind.RECIPE,
        ContentKind.OBJECT,
        ContentKind.OBJECT,
    ]
    collect(store, Policy())
    assert before - collect_totals(store)["stored"]["opaque"] >= len(pgzip)
    assert (read(store, blob), read(store, other)) == (pgzip, zstd(TAR))
    assert check_store(data).problems == []
    # What no encoder makes is looked at again only when there is another.
    assert store.blobs.stat(other).encoder == tried()
    Copies(store, 0).queue()
    with store.env.read() as txn:
        assert store.jobs.count(txn) == 0


def test_new_encoders_are_tried_on_what_was_tried_before(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Those of a store that was looked at without what runs them, for one."""
    blob = push(store, encoded(TAR, "go-1.26", "gzip"))
    with monkeypatch.context() as missing:
        missing.setattr(frozen, "_RUNTIME", "no_such_package")
        ingest_all(store, rebuild_compressed=True)
        assert kind_of(store, blob) is ContentKind.OBJECT
        Copies(store, 0).queue()
        assert "pip install 'pagepool[rebuild]'" in caplog.text
    Copies(store, 0).queue()
    ingest_all(store, rebuild_compressed=True)
    assert kind_of(store, blob) is ContentKind.RECIPE


def test_a_service_that_keeps_copies_drops_such_jobs(store: Store, pgzip: bytes) -> None:
    blob = push(store, pgzip)
    ingest_all(store)
    Copies(store, 0).queue()
    ingest_all(store)
    with store.env.read() as txn:
        assert store.jobs.count(txn) == 0
    assert kind_of(store, blob) is ContentKind.OBJECT


def test_a_layer_that_waits_is_read_first(store: Store, pgzip: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often that happens: the blob is settled as it came in the end, and looked at when there is time."""
    monkeypatch.setattr("pagepool_service.copies._LOOK_S", 0.0)
    blob = push(store, pgzip)
    maintenance = Maintenance(store, rebuild_compressed=True)
    assert maintenance.run_one()  # reads it
    for number in range(3):
        with store.env.read() as txn:  # begun, and meanwhile somebody pushes
            waiting = store.blobs.record(txn, blob)
        assert waiting.content is ContentKind.SPOOL
        _interrupted(store, maintenance, number)
    assert maintenance.run_all() > 0
    assert kind_of(store, blob) is ContentKind.RECIPE
    assert read(store, blob) == pgzip


def _interrupted(store: Store, maintenance: Maintenance, number: int) -> None:
    """Begin the first job, push a layer while it is worked on, and see that this is what is done next."""
    copies = maintenance._copies
    assert copies is not None
    seen = store.jobs.peek()
    assert seen is not None
    assert seen.kind is JobKind.SETTLE
    later: list[Digest] = []
    peek = store.jobs.peek

    def push_once(*arguments: Any) -> object:
        if not later:
            later.append(push(store, make_tar({"late": noise(1000, number)})))
        return peek(*arguments)

    job = store.jobs.begin_next(0)
    assert job is not None
    store.jobs.peek = push_once  # type: ignore[method-assign, assignment]
    try:
        assert maintenance._run(job)
    finally:
        store.jobs.peek = peek  # type: ignore[method-assign]
    assert maintenance.run_one()
    assert store.blobs.stat(later[0]).state is LayerState.READY


def test_a_damaged_layer_does_not_leave_its_blob_in_the_spool(data: Path, pgzip: bytes) -> None:
    """It is settled as it came."""
    with Store.open(data) as store:
        blob = push(store, pgzip)
        assert Maintenance(store).run_one()  # reads it
    wreck_all(data, file_frames(data))
    with Store.open(data) as store:
        ingest_all(store, rebuild_compressed=True)
        assert kind_of(store, blob) is ContentKind.OBJECT
        assert read(store, blob) == pgzip
        assert not store.blobs.spool_path(blob).exists()


def test_a_blob_that_the_disk_does_not_read_is_not_waited_for(
    store: Store, pgzip: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pagepool_service.copies._LOOK_S", 0.0)
    blob = push(store, pgzip)
    maintenance = Maintenance(store, rebuild_compressed=True)
    assert maintenance.run_one()  # reads it
    bad = push(store, noise(200_000))
    maintenance._later[bad] = time.monotonic() + 1000
    assert maintenance.run_one()
    assert kind_of(store, blob) is ContentKind.RECIPE


def test_looking_stops_when_it_is_told_to(store: Store, pgzip: bytes) -> None:
    blob = push(store, pgzip)
    ingest_all(store)
    with pytest.raises(PutOffError):
        find_encoder(store, blob, store.blobs.stat(blob), lambda: True)
    assert kind_of(store, blob) is ContentKind.OBJECT


def test_a_push_of_what_is_rebuilt_is_compared_without_its_encoder(
    store: Store, pgzip: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = push(store, pgzip)
    ingest_all(store, rebuild_compressed=True)

    def refuse(*_: object) -> None:
        raise AssertionError("it was run")

    monkeypatch.setattr(frozen, "_run", refuse)
    assert push(store, pgzip, repository="another") == blob
    assert ingest_all(store, rebuild_compressed=True) == 0
    assert kind_of(store, blob) is ContentKind.RECIPE


def test_a_push_brings_what_cannot_be_rebuilt_here(
    store: Store, data: Path, pgzip: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What makes it is not installed any more: who pushes it again has its bytes, and they are kept."""
    blob = push(store, pgzip)
    ingest_all(store, rebuild_compressed=True)
    monkeypatch.setattr(frozen, "_RUNTIME", "no_such_package")
    assert push(store, pgzip, repository="another") == blob
    ingest_all(store, rebuild_compressed=True)
    assert kind_of(store, blob) is ContentKind.OBJECT
    assert read(store, blob) == pgzip
    assert check_store(data).problems == []


def test_another_zlib_is_tried_and_what_it_makes_compared(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An update of the system's zlib takes no layer away; one that makes other bytes is no damage."""
    content = gzip.compress(TAR, mtime=0)
    with Store.open(data) as store:
        with monkeypatch.context() as before:
            before.setattr(zlibs, "_ZLIB", "zlib 0.9.9")
            blob = push(store, content)
            ingest_all(store, rebuild_compressed=True)
        record = store.blobs.stat(blob)
        assert record.content is ContentKind.RECIPE
        assert read(store, blob) == content
    assert check(data).problems == []
    with Store.open(data) as store:
        other = record.settled_as(ContentKind.RECIPE, record.encoder.replace(b'"level":9', b'"level":1'))
        with store.env.write() as txn:
            store.blobs.update(txn, blob, other)
        with pytest.raises(EncoderMissingError, match=r"needs zlib 0\.9\.9:1; what is here makes other bytes"):
            read(store, blob)
    repair(data)
    with Store.open(data) as store:
        assert store.blobs.stat(blob) == other


def test_a_push_mends_what_is_rebuilt_from_a_damaged_layer(data: Path, pgzip: bytes) -> None:
    with Store.open(data) as store:
        blob = push(store, pgzip)
        ingest_all(store, rebuild_compressed=True)
    wreck_all(data, file_frames(data))
    with Store.open(data) as store:
        assert push(store, pgzip) == blob
        assert kind_of(store, blob) is ContentKind.SPOOL
        ingest_all(store, rebuild_compressed=True)
        assert read(store, blob) == pgzip
    assert check(data).problems == []


def test_where_the_encoder_is_missing_repair_leaves_the_blob(
    data: Path, pgzip: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be all right, and cannot be served here; fsck says so."""
    with Store.open(data) as store:
        blob = push(store, pgzip)
        ingest_all(store, rebuild_compressed=True)
        before = store.blobs.stat(blob)
    with monkeypatch.context() as missing:
        missing.setattr(frozen, "_RUNTIME", "no_such_package")
        (problem,) = check(data).problems
        assert (problem.kind, problem.name) == ("blob", str(blob))
        assert "pip install 'pagepool[rebuild]'" in problem.reason
        repair(data)
        with Store.open(data) as store, pytest.raises(EncoderMissingError):
            read(store, blob)
    with Store.open(data) as store:
        assert store.blobs.stat(blob) == before
        assert read(store, blob) == pgzip
    assert check(data).problems == []


def test_a_damaged_copy_is_made_again_by_a_frozen_encoder(data: Path, pgzip: bytes) -> None:
    with Store.open(data) as store:
        blob = push(store, pgzip)
        ingest_all(store)
    frame = opaque_frames(data, pgzip)[-1]
    replace_record(data, Table.FRAMES, frame.key, frame.value[:-2000] + bytes(2000))
    done = repair(data)
    assert any(action.how == "it was compressed again from its layer" for action in done.actions), done.actions
    with Store.open(data) as store:
        assert read(store, blob) == pgzip


def test_what_is_removed_leaves_nothing_in_the_cache(store: Store, pgzip: bytes) -> None:
    blob = push(store, pgzip)
    ingest_all(store, rebuild_compressed=True)
    store.blobs.rebuilt.limit = 1 << 30
    assert read(store, blob) == pgzip
    store.blobs.rebuilt.close()
    assert collect_totals(store)["stored"]["rebuilt"] >= len(pgzip)
    store.registry.delete_blob("some/repository", blob)
    collect(store)
    assert not store.blobs.exists(blob)
    assert list(store.rebuilt.iterdir()) == []


def test_the_record_says_by_what(store: Store, pgzip: bytes) -> None:
    blob = push(store, pgzip)
    ingest_all(store, rebuild_compressed=True)
    record: BlobRecord = store.blobs.stat(blob)
    encoder = decode(record.encoder, str(blob))
    assert str(encoder) == "klauspost-1.18 pgzip:-1"
