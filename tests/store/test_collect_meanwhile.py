"""Collection beside writers: what is pushed, leased or read while it runs stays whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from blake3 import blake3

from pagepool.digest import Digest
from pagepool.extents import EXTENT_SIZE
from pagepool.oci import parse_manifest
from pagepool_service.committing import Batch, Committer
from pagepool_service.store import cycle, links
from pagepool_service.store.catalogue import link_key, link_time, referrer_key
from pagepool_service.store.collect import Collector, Policy, catalogue, collector, frames, marking
from pagepool_service.store.collect.collector import CycleLostError
from pagepool_service.store.collect.marking import Marker
from pagepool_service.store.collect.policy import plan_manifests
from pagepool_service.store.environment import Table
from pagepool_service.store.fsck import check_store
from pagepool_service.store.schema import u64
from pagepool_service.store.store import Store
from tests.ingest.sparse import sparse_tar
from tests.store.checking import check
from tests.store.collecting import (
    AT_ONCE,
    FILES,
    REPOSITORY,
    Pushed,
    assert_whole,
    collect,
    cut,
    gone,
    keys,
    layer,
    push_image,
)
from tests.store.helpers import ingest_all, make_tar, noise, push, read, text

if TYPE_CHECKING:
    from pathlib import Path

    from pagepool.oci import Index, Manifest


class Interrupting(Collector):
    """Does something at a step of the cycle."""

    def __init__(self, store: Store, step: str, act: object) -> None:
        super().__init__(store, AT_ONCE, watch=self._see)
        self._at, self._act = step, act

    def _see(self, step: str, _done: int, _all: int) -> None:
        if step == self._at and self._act is not None:
            act, self._act = self._act, None
            act()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("step", "packed"),
    [("repositories", True), ("marking", True), ("records", False), ("frames", True), ("giving space back", False)],
)
def test_what_is_pushed_again_while_it_goes_is_whole(store: Store, data: Path, step: str, packed: bool) -> None:
    """The same layers as an image that is being collected: their extents were found, or are stored anew."""
    parts = [layer(*range(0, 10), packed=packed), layer(6, 13, 20)]
    lost = push_image(store, REPOSITORY, parts, tags=["1"])
    push_image(store, REPOSITORY, [layer(3, 4)], tags=["2"], note="stays")
    ingest_all(store)
    store.registry.delete_manifest(REPOSITORY, lost.digest)
    again: list[Pushed] = []

    def push_again() -> None:
        again.append(push_image(store, REPOSITORY, parts, tags=["3"]))
        ingest_all(store)

    Interrupting(store, step, push_again).run()
    assert_whole(store, REPOSITORY, again[0])
    assert all(store.blobs.stat(part.digest).state == 1 for part in parts)
    assert check_store(data).problems == []
    collect(store)
    assert_whole(store, REPOSITORY, again[0])
    assert keys(store, Table.EXTENTS) == again[0].extents | push_image(store, "x", [layer(3, 4)], note="stays").extents


def test_in_the_smallest_of_snapshots_and_batches(store: Store, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a store of millions of records, where each part goes on behind what the one before has come to."""
    for module, name, value in (
        (marking, "_RECORDS", 1),
        (marking, "_NOTES_AT_ONCE", 1),
        (frames, "_SNAPSHOT_S", 0.0),
        (collector, "_NOTES_AT_ONCE", 1),
    ):
        monkeypatch.setattr(module, name, value)
    kept = push_image(store, REPOSITORY, [layer(3, 4, 20)], tags=["2"], note="stays")
    lost = push_image(store, REPOSITORY, [layer(6, 13, 20)], tags=["1"])
    ingest_all(store)
    store.registry.delete_manifest(REPOSITORY, lost.digest)
    pushed: list[Pushed] = []
    Interrupting(store, "records", lambda: pushed.append(push_image(store, "x", [layer(13)], tags=["1"]))).run()
    assert keys(store, Table.BLOBS) == {digest.key for image in (kept, *pushed) for digest in image.blobs}
    assert not any(key.startswith(b"collecting") for key in keys(store, Table.META))
    for repository, image in ((REPOSITORY, kept), ("x", pushed[0])):
        assert_whole(store, repository, image)
    ingest_all(store)
    assert check_store(data).problems == []
    collect(store)
    assert keys(store, Table.EXTENTS) == kept.extents | pushed[0].extents


@pytest.mark.parametrize("step", ["repositories", "records"])
def test_nothing_more_goes_once_another_collection_has_begun(store: Store, step: str) -> None:
    """Whoever writes from then on tells the other one, and not this one."""
    push_image(store, REPOSITORY, [layer(4)], tags=["1"])
    stray = push(store, layer(6, 13).blob, repository=REPOSITORY)
    ingest_all(store)
    before = {table: keys(store, table) for table in (Table.LAYERS, Table.RECIPES, Table.OBJECTS, Table.FRAMES)}

    def begin() -> None:
        with store.env.write() as txn:
            cycle.Cycle.begin(txn, 1)

    with pytest.raises(CycleLostError):
        Interrupting(store, step, begin).run()
    assert store.blobs.exists(stray) is (step == "repositories")
    assert {table: keys(store, table) for table in before} == before
    assert collect(store).freed["layers"] == 1


def test_a_manifest_that_is_deleted_while_it_looks_is_no_damage(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [push_image(store, REPOSITORY, [layer(4, 5 + n)], tags=[str(n)], note=str(n)) for n in range(2)]
    deleted: list[Pushed] = []

    def delete_first(raw: bytes, media_type: str | None) -> Manifest | Index:
        if not deleted:  # the other of the two
            deleted.extend(image for image in images if image.digest != Digest.of(raw))
            store.registry.delete_manifest(REPOSITORY, deleted[0].digest)
        return parse_manifest(raw, media_type)

    monkeypatch.setattr(catalogue, "parse_manifest", delete_first)
    report = collect(store)
    assert len(deleted) == 1
    assert report.problems == []
    assert gone(store, deleted[0])
    assert_whole(store, REPOSITORY, next(image for image in images if image not in deleted))


@pytest.mark.parametrize("step", ["repositories", "marking", "records"])
def test_a_lease_that_is_taken_while_it_goes(store: Store, data: Path, step: str) -> None:
    """Either there is none, because a layer is gone; or all its layers stay."""
    digest = push(store, layer(4, 6, 13).blob, repository=REPOSITORY)
    ingest_all(store)
    diff_id = store.blobs.stat(digest).diff_id
    assert diff_id is not None
    store.registry.delete_blob(REPOSITORY, digest)
    Interrupting(store, step, lambda: store.leases.take(REPOSITORY, bytes(32), "node", 60, (digest, [diff_id]))).run()
    assert diff_id.key in keys(store, Table.LAYERS)
    assert check_store(data).problems == []


def test_extents_of_a_layer_that_is_half_read_stay(store: Store) -> None:
    """What a job has stored is left alone until it has named it, over any number of cycles."""
    digest = push(store, layer(*range(21)).blob, repository=REPOSITORY)
    job = store.jobs.begin_next()
    assert job is not None
    with store.env.write() as txn:
        begun = store.jobs.begin_recipe(txn, job)
    stray = push(store, noise(100_000), repository=REPOSITORY)  # stands for what the job stores
    store.registry.delete_blob(REPOSITORY, stray)
    for _ in range(2):
        collect(store, Policy())
    assert begun.floor
    assert u64(begun.floor) in keys(store, Table.FRAMES)
    store.jobs.put_back(begun)
    ingest_all(store)
    assert read(store, digest) == layer(*range(21)).blob
    collect(store, Policy())
    assert u64(begun.floor) not in keys(store, Table.FRAMES)


def test_a_layer_whose_extents_were_swept_is_read_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """They were there when they were looked up, and are not when the layer that shares them is verified."""
    files = {f"n/{number}": text(50_000, number) for number in range(30)}
    first = push(store, make_tar(files), repository=REPOSITORY)
    ingest_all(store)
    store.registry.delete_blob(REPOSITORY, first)
    second = push(store, make_tar({**files, "more": b"more"}), repository=REPOSITORY)
    commit = Committer._commit
    swept: list[int] = []

    def after_a_sweep(self: Committer, batch: Batch) -> None:
        if not swept:
            swept.append(collect(store, Policy()).freed["extents"])
        commit(self, batch)

    monkeypatch.setattr(Committer, "_commit", after_a_sweep)
    ingest_all(store)
    assert swept[0] >= 30
    assert store.blobs.stat(second).state == 1
    assert read(store, second) == make_tar({**files, "more": b"more"})


def test_holes_whose_extents_were_swept_are_stored_again(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of a sparse file's holes is read when its layer is verified; at the end is a piece of zeros like another.

    Where it is missing after all, as it could be, fsck says so.
    """
    hole = bytes(100)
    name = blake3(hole).digest()
    commit = Committer._commit
    swept: list[int] = []

    def after_a_sweep(self: Committer, batch: Batch) -> None:
        if not swept:
            store.registry.delete_blob(REPOSITORY, first)
            swept.append(collect(store, Policy()).freed["layers"])
        commit(self, batch)

    with Store.open(data) as store:
        first = push(store, make_tar({"zeros": hole}), repository=REPOSITORY)
        ingest_all(store)
        second = push(store, sparse_tar("file", EXTENT_SIZE + len(hole), [(0, b"data")]), repository=REPOSITORY)
        monkeypatch.setattr(Committer, "_commit", after_a_sweep)
        ingest_all(store)
        assert swept == [1]
        assert store.blobs.stat(second).state == 1
        assert name in keys(store, Table.EXTENTS)
    assert check(data).clean
    with Store.open(data) as store, store.env.write() as txn:
        place = store.extents.find(txn, name)
        assert place is not None
        txn.delete(Table.EXTENTS, name)
        txn.delete(Table.FRAMES, u64(place.frame))
    found = [problem.reason for problem in check(data).problems if problem.kind == "layer"]
    assert found == [f"it cannot be rebuilt: corrupt extent {name.hex()}: it is referred to and not there"]


def test_a_list_of_extents_that_was_swept_and_is_written_anew_keeps_what_it_names(store: Store) -> None:
    """A file is named that was swept after it was looked up; the layer is read again, and finds its extents."""
    digest = push(store, layer(13).blob, repository=REPOSITORY)
    ingest_all(store)
    content = FILES[13]
    name, extents = blake3(content).digest(), cut(content)
    names = [blake3(content[start : start + EXTENT_SIZE]).digest() for start in range(0, len(content), EXTENT_SIZE)]
    store.registry.delete_blob(REPOSITORY, digest)
    with store.env.write() as txn:
        cycle.Cycle.begin(txn, 1)
        txn.delete(Table.OBJECTS, name)
    marker = Marker(store.env, store.leases)
    marker.mark_all()
    with store.env.write() as txn:
        cycle.note(txn, cycle.NoteKind.OBJECT, [name])
    marker.catch_up()
    assert not any(extent in marker.live for extent in extents)
    with store.env.write() as txn:
        store.extents.put_object(txn, name, len(content), names)
        cycle.note(txn, cycle.NoteKind.OBJECT, [name])
    marker.catch_up()
    assert all(extent in marker.live for extent in extents)


def test_a_manifest_that_comes_once_it_is_planned_what_goes_keeps_the_blobs_that_were_there(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its client has found them with HEAD a moment ago, and pushes nothing else."""
    image = push_image(store, REPOSITORY, [layer(4)], tags=["1"])
    raw = store.registry.manifest(REPOSITORY, "1").raw
    store.registry.delete_manifest(REPOSITORY, image.digest)
    push_image(store, REPOSITORY, [layer(5)], tags=["2"], note="other")

    def push_then(*arguments: Any) -> Any:
        planned = plan_manifests(*arguments)
        store.registry.put_manifest(REPOSITORY, image.digest, parse_manifest(raw, None), ["1"])
        return planned

    monkeypatch.setattr(catalogue, "plan_manifests", push_then)
    collect(store)
    assert_whole(store, REPOSITORY, image)


def test_a_push_beside_many_referrers_and_damage_keeps_its_parts(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own parts come before all that is about its subject; and who is damaged keeps nobody from pushing."""
    monkeypatch.setattr(links, "_MOST_RENEWED", 3)
    subject = push_image(store, REPOSITORY, [layer(4)], tags=["1"])
    about = [push_image(store, REPOSITORY, [layer(5)], subject=subject.digest, note=str(number)) for number in range(8)]
    damaged = about[0].digest
    near = [push_image(store, REPOSITORY, [layer(6)], subject=one, note="new") for one in (subject.digest, damaged)]
    long_name = Digest.of(b"{}", "sha512")
    with store.env.write() as txn:
        cycle.Cycle.begin(txn, 1)
        raw = bytes(txn.get(Table.MANIFESTS, damaged.key) or b"")
        txn.put_as_is(Table.MANIFESTS, damaged.key, raw)
        txn.put(Table.REFERRERS, referrer_key(REPOSITORY, subject.digest, long_name), b"{}")
    for image in near:
        with store.env.write() as txn:
            for digest in image.blobs:
                txn.put(Table.LINKS, link_key(REPOSITORY, digest), bytes(8))
            links.renew_around(txn, REPOSITORY, image.digest)
            for digest in image.blobs:
                assert link_time(store.registry.link_record(txn, Table.LINKS, REPOSITORY, digest) or b"")
        with store.env.write() as txn:
            links.renew_around(txn, REPOSITORY, subject.digest)
