"""Collection: each kind of root keeps what it needs, and everything else goes."""

from __future__ import annotations

import json
import time
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from blake3 import blake3

from pagepool.digest import Digest
from pagepool.errors import BlobUnknownError, BusyError, CorruptError, ManifestUnknownError
from pagepool.extents import Role, encode_frame
from pagepool_service.store import cycle
from pagepool_service.store.clock import Moment
from pagepool_service.store.collect import Collector, Policy, Report, TagRule, estimate_garbage
from pagepool_service.store.collect.collector import drop_cut_off, lock_collection
from pagepool_service.store.collect.frames import plan_threshold
from pagepool_service.store.collect.marks import Marks
from pagepool_service.store.collect.policy import plan_manifests, plan_tags
from pagepool_service.store.environment import Table
from pagepool_service.store.fsck import check_store
from pagepool_service.store.schema import u64
from pagepool_service.store.statistics import collect_totals
from pagepool_service.store.store import Store
from tests.faults import flip_record, records
from tests.store.collecting import (
    AT_ONCE,
    FILES,
    REPOSITORY,
    assert_whole,
    collect,
    gone,
    keys,
    layer,
    push_image,
    push_index,
)
from tests.store.helpers import ingest_all, noise, push

if TYPE_CHECKING:
    from pathlib import Path


def test_what_was_deleted_goes_and_the_rest_stays(data: Path) -> None:
    with Store.open(data) as store:
        lost = push_image(store, REPOSITORY, [layer(*range(0, 19)), layer(13, packed=True)], tags=["1"], note="a")
        kept = push_image(store, REPOSITORY, [layer(*range(0, 21, 2)), layer(3, 6, packed=True)], tags=["2"], note="b")
        ingest_all(store)
        store.registry.delete_manifest(REPOSITORY, lost.digest)
        assert not estimate_garbage(store), "its blobs are the repository's still"
        told = Collector(store, AT_ONCE).forecast()
        done = collect(store)
        assert_whole(store, REPOSITORY, kept)
        assert gone(store, lost)
        assert keys(store, Table.EXTENTS) == kept.extents
        for kind in ("links", "blobs", "layers", "recipes", "objects"):
            assert told.freed[kind] == done.freed[kind] > 0, kind
        assert done.freed["blobs"] == 3
        assert told.compacted == done.compacted > 0
        assert done.longest_hold_s > 0
        again = collect(store)
        assert not +again.freed
        assert collect_totals(store)["last_collection"]["ended"]
    assert check_store(data).problems == []


def test_a_dry_run_changes_nothing_and_needs_no_writing(data: Path) -> None:
    with Store.open(data) as store:
        lost = push_image(store, REPOSITORY, [layer(5, 6)], tags=["1"])
        ingest_all(store)
        store.registry.delete_manifest(REPOSITORY, lost.digest)
    before = (data / "store" / "data.mdb").read_bytes()
    with Store.open(data, readonly=True, shared=True) as store:
        told = Collector(store, AT_ONCE).forecast()
    assert told.freed["blobs"] == 2
    assert told.frame_bytes > 0
    assert (data / "store" / "data.mdb").read_bytes() == before


def test_what_nothing_needs_is_estimated_by_what_is_stored_of_it(store: Store) -> None:
    """By which the service decides whether to collect."""
    push_image(store, REPOSITORY, [layer(4)], tags=["1"])
    plain, opaque = push(store, layer(5, 11).blob, repository="x"), push(store, noise(200_000), repository="x")
    ingest_all(store)
    diff_id = store.blobs.stat(plain).diff_id
    assert diff_id is not None
    store.registry.delete_blob("x", plain)
    dead = estimate_garbage(store)
    assert 131_072 < dead < 300_000, "of its files, some are noise"
    store.registry.delete_blob("x", opaque)
    both = estimate_garbage(store)
    assert dead + 150_000 < both < dead + 250_000
    store.leases.take(REPOSITORY, bytes(32), "node", 3600, (plain, [diff_id]))
    assert estimate_garbage(store) <= both - 131_072
    collect(store)
    assert estimate_garbage(store) == 0


# -- roots ---------------------------------------------------------------------------------------------------


def test_an_index_keeps_what_it_lists(store: Store) -> None:
    children = [push_image(store, REPOSITORY, [layer(4, 5 + number)], note=str(number)) for number in range(2)]
    outer = push_index(store, REPOSITORY, [push_index(store, REPOSITORY, children)], tags=["all"])
    stray = push_image(store, REPOSITORY, [layer(4, 11)], note="stray")
    ingest_all(store)
    report = collect(store)
    assert_whole(store, REPOSITORY, outer)
    assert gone(store, stray)
    assert report.kept["manifests: index"] == 3
    store.registry.delete_tag(REPOSITORY, "all")
    collect(store)
    assert all(gone(store, one) for one in (*children, outer))
    assert not keys(store, Table.FRAMES)


def test_a_subject_keeps_its_referrers_and_a_referrer_its_subject(store: Store) -> None:
    subject = push_image(store, REPOSITORY, [layer(4)], tags=["1"])
    signature = push_image(store, REPOSITORY, [layer(5)], subject=subject.digest, note="signature")
    of_that = push_image(store, REPOSITORY, [layer(6)], subject=signature.digest, note="of the signature")
    untagged = push_image(store, REPOSITORY, [layer(11)], note="untagged")
    named = push_image(store, REPOSITORY, [layer(12)], tags=["sha256-x.sig"], subject=untagged.digest, note="named")
    dangling = push_image(store, REPOSITORY, [layer(18)], subject=Digest.of(b"nothing"), note="dangling")
    ingest_all(store)
    collect(store)
    for image in (subject, signature, of_that, untagged, named):
        assert_whole(store, REPOSITORY, image)
    assert gone(store, dangling)
    store.registry.delete_tag(REPOSITORY, "1")
    collect(store)
    assert all(gone(store, one) for one in (subject, signature, of_that))
    assert_whole(store, REPOSITORY, untagged)


def test_a_lease_keeps_the_layers_of_a_deleted_image(store: Store, data: Path) -> None:
    image = push_image(store, REPOSITORY, [layer(4, 6, 13), layer(5, packed=True)], tags=["1"])
    ingest_all(store)
    records = [store.blobs.stat(digest) for digest in image.blobs]
    layers = [record.diff_id for record in records if record.diff_id is not None]
    assert len(layers) == 2
    lease = store.leases.take(REPOSITORY, bytes(32), "node", 3600, (image.digest, layers))
    store.registry.delete_manifest(REPOSITORY, image.digest)
    report = collect(store)
    assert gone(store, image)
    assert report.kept["leases"] == 1
    assert len(keys(store, Table.LAYERS)) == 2
    assert check_store(data).problems == []
    with store.env.read() as txn:
        found = [store.blobs.find_layer(txn, diff_id) for diff_id in layers]
    assert all(found)
    store.leases.release(REPOSITORY, bytes(32), lease.id)
    collect(store)
    assert not keys(store, Table.LAYERS) | keys(store, Table.RECIPES) | keys(store, Table.EXTENTS)


def test_a_push_in_flight_is_kept(store: Store) -> None:
    """Blobs without a manifest: for their time, and as long as somebody uploads to the repository."""
    pushed = [push(store, one.blob, repository=REPOSITORY) for one in (layer(4), layer(6, 13))]
    ingest_all(store)
    collect(store, Policy(grace_s=60, untagged_s=0))
    assert all(map(store.blobs.exists, pushed))
    session = store.uploads / f"{uuid.uuid4()}.json"
    session.write_text(json.dumps({"repository": REPOSITORY, "algorithm": "sha256"}))
    report = collect(store)
    assert report.kept["blobs: of a repository that is uploaded to"] == 2
    assert all(map(store.blobs.exists, pushed))
    session.unlink()
    collect(store)
    assert not any(map(store.blobs.exists, pushed))


def test_what_waits_to_be_read_is_kept(store: Store, data: Path) -> None:
    """A blob that was not read as a layer yet, and one that was read and is in the spool still."""
    one, other = layer(*range(10)), layer(*range(8, 16), packed=True)
    image = push_image(store, REPOSITORY, [one, other], tags=["1"])
    collect(store)
    assert_whole(store, REPOSITORY, image)
    ingest_all(store)
    collect(store)
    assert_whole(store, REPOSITORY, image)
    assert check_store(data).problems == []


def test_who_asked_for_a_blob_finds_it_when_the_manifest_comes(store: Store) -> None:
    """A client that finds its layers with HEAD does not push them; it has the grace time to push the manifest."""
    image = push_image(store, REPOSITORY, [layer(4)], tags=["1"])
    store.registry.delete_manifest(REPOSITORY, image.digest)
    later = Moment.now().at(time.time_ns() + 10 * 10**9)
    store.registry.renewed_after_ns = 0
    for digest in image.blobs:
        assert store.registry.find_blob(REPOSITORY, digest)[1]
        store.registry.renew_blob(REPOSITORY, digest)
    Collector(store, Policy(grace_s=60, untagged_s=0), clock=lambda: later).run()
    again = push_image(store, REPOSITORY, [layer(4)], tags=["1"])
    assert_whole(store, REPOSITORY, again)
    store.registry.delete_manifest(REPOSITORY, again.digest)
    Collector(store, Policy(grace_s=5, untagged_s=0), clock=lambda: later).run()
    assert gone(store, again)


def test_who_asks_for_what_goes_at_that_moment_is_told(store: Store) -> None:
    """Between looking and noting that somebody did; else the client would push a manifest of what is not there."""
    image = push_image(store, REPOSITORY, [layer(4)])
    store.registry.renewed_after_ns = 0
    assert all(store.registry.find_blob(REPOSITORY, digest)[1] for digest in image.blobs)
    assert store.registry.ask_manifest(REPOSITORY, image.digest)[1]
    collect(store, Policy(grace_s=0, untagged_s=0))
    for digest in image.blobs:
        with pytest.raises(BlobUnknownError):
            store.registry.renew_blob(REPOSITORY, digest)
    with pytest.raises(ManifestUnknownError):
        store.registry.renew_manifest(REPOSITORY, image.digest)


# -- retention -----------------------------------------------------------------------------------------------


def test_the_newest_tags_stay(store: Store) -> None:
    names = [f"v{number}" for number in (3, 1, 4, 1, 5, 9, 2, 6)]
    images = {
        name: push_image(store, "ci/app", [layer(4, 5 + n)], tags=[name], note=name) for n, name in enumerate(names)
    }
    other = push_image(store, "lib/app", [layer(11)], tags=["old", "new"])
    rules = (TagRule("ci/*", 2), TagRule("*", 0))
    told = Collector(store, Policy(grace_s=0, untagged_s=0, tags=rules)).forecast()
    done = collect(store, Policy(grace_s=0, untagged_s=0, tags=rules))
    assert told.freed["tags"] == done.freed["tags"] == 5
    assert store.registry.listings.tags("ci/app", 100).names == ["v2", "v6"]
    assert store.registry.listings.tags("lib/app", 100).names == ["new", "old"]
    assert_whole(store, "ci/app", images["v2"])
    assert_whole(store, "lib/app", other)
    assert gone(store, images["v3"], "ci/app")


def test_a_tag_made_of_a_digest_stays_and_goes_with_the_manifest_of_that_digest(store: Store) -> None:
    """cosign names signatures so, ko its SBOMs, and clients without the referrers API their lists of referrers."""
    images, signatures = [], []
    for number in range(3):
        image = push_image(store, REPOSITORY, [layer(4, 5 + number)], tags=[f"v{number}"], note=f"image {number}")
        name = f"sha256-{image.digest.hex}.sig"
        signatures.append(push_image(store, REPOSITORY, [layer(11 + number)], tags=[name], note=f"of {number}"))
        images.append(image)
    of_signature = f"sha256-{signatures[2].digest.hex}.sig"
    counter = push_image(store, REPOSITORY, [layer(14)], tags=[of_signature], note="of the signature")
    referrer = push_image(store, REPOSITORY, [layer(15)], subject=images[1].digest, note="referrer")
    listed = push_index(store, REPOSITORY, [referrer], tags=[f"sha256-{images[1].digest.hex}"])
    stray = push_image(store, REPOSITORY, [layer(16)], tags=["sha256-" + "0" * 64 + ".sig"], note="of nothing")
    ingest_all(store)
    # v2 is not the newest tag: the list of referrers of v1 is, and that of nothing.
    policy = Policy(grace_s=0, untagged_s=0, tags=(TagRule("*", 1),))
    told = Collector(store, policy).forecast()
    done = collect(store, policy)
    assert store.registry.listings.tags(REPOSITORY, 100).names == sorted(
        ["v2", f"sha256-{images[2].digest.hex}.sig", of_signature, "sha256-" + "0" * 64 + ".sig"]
    )
    for image in (images[2], signatures[2], counter, stray):
        assert_whole(store, REPOSITORY, image)
    assert all(gone(store, one) for one in (*images[:2], *signatures[:2], referrer, listed))
    assert told.freed["tags"] == done.freed["tags"] == 5
    assert told.kept["tags"] == done.kept["tags"] == 4
    assert told.freed["manifests"] == done.freed["manifests"] == 6


def test_a_signature_outlives_its_image_no_longer_than_untagged_manifests_do(store: Store) -> None:
    image = push_image(store, REPOSITORY, [layer(4)], tags=["1"])
    signature = push_image(store, REPOSITORY, [layer(5)], tags=[f"sha256-{image.digest.hex}.sig"], note="signature")
    seconds = 10**9

    def after(age_s: float, *, dry: bool = False) -> Report:
        now = Moment.now().at(time.time_ns() + int(age_s * seconds))
        policy = Policy(grace_s=0, untagged_s=60, tags=(TagRule("*", 1),))
        collector = Collector(store, policy, clock=lambda: now)
        return collector.forecast() if dry else collector.run()

    assert after(3600, dry=True).kept["tags"] == 2
    push_image(store, REPOSITORY, [layer(6)], tags=["2"], note="newer")
    assert after(30).freed["tags"] == 1
    assert_whole(store, REPOSITORY, signature)
    assert len(store.registry.listings.tags(REPOSITORY, 100).names) == 2
    assert after(90).freed["manifests"] == 2
    assert gone(store, image, REPOSITORY)
    assert gone(store, signature, REPOSITORY)
    assert store.registry.listings.tags(REPOSITORY, 100).names == ["2"]


def test_a_signature_stays_whose_image_is_asked_for_at_that_moment(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = push_image(store, REPOSITORY, [layer(4)], tags=["1"])
    signature = push_image(store, REPOSITORY, [layer(5)], tags=[f"sha256-{image.digest.hex}.sig"], note="signature")
    push_image(store, REPOSITORY, [layer(6)], tags=["2"], note="newer")
    store.registry.renewed_after_ns = 0

    def ask(*arguments: Any) -> Any:
        planned = plan_manifests(*arguments)
        store.registry.renew_manifest(REPOSITORY, image.digest)
        return planned

    monkeypatch.setattr("pagepool_service.store.collect.catalogue.plan_manifests", ask)
    collect(store, Policy(grace_s=0, untagged_s=0, tags=(TagRule("*", 1),)))
    assert_whole(store, REPOSITORY, image)
    assert_whole(store, REPOSITORY, signature)
    assert len(store.registry.listings.tags(REPOSITORY, 100).names) == 2


def test_untagged_manifests_stay_for_their_time_from_when_they_lost_their_tag(store: Store) -> None:
    image = push_image(store, REPOSITORY, [layer(4)], tags=["1"])
    seconds = 10**9
    policy = Policy(grace_s=0, untagged_s=60)

    def after(age_s: float, *, dry: bool = False) -> Report:
        now = Moment.now().at(time.time_ns() + int(age_s * seconds))
        collector = Collector(store, policy, clock=lambda: now)
        return collector.forecast() if dry else collector.run()

    assert after(3600, dry=True).kept["manifests: tag"] == 1
    push_image(store, REPOSITORY, [layer(5)], tags=["1"], note="newer")
    assert after(30).kept["manifests: untagged, in its time"] == 1
    assert_whole(store, REPOSITORY, image)
    assert after(90, dry=True).freed["manifests"] == 1
    for _ in range(2):
        Collector(
            store, Policy(grace_s=0, untagged_s=None), clock=lambda: Moment.now().at(time.time_ns() + 80 * seconds)
        ).run()
    assert_whole(store, REPOSITORY, image)
    assert after(90).freed["manifests"] == 1
    assert gone(store, image)


def test_plans() -> None:
    assert plan_tags([("a", 1), ("b", 3), ("c", 2), ("d", 2)], 2) == {"a", "d"}
    assert plan_tags([("a", 1)], 0) == set()
    assert plan_threshold([10, 0, 50, 40], 1000) == 2
    assert plan_threshold([10, 5], 1000) == 2
    assert plan_threshold([30, 0], 1000) == 0
    assert plan_threshold([1], 0) == 0


def test_marks_never_lose_one() -> None:
    digests = [noise(32, number) for number in range(5000)]
    marks = Marks(len(digests))
    marks.update(digests[::2])
    assert all(digest in marks for digest in digests[::2])
    assert not any(digest in marks for digest in digests[1::2])
    crowded = Marks(0, salt=7)
    crowded.update(digests)
    assert all(digest in crowded for digest in digests)


# -- damage, and cycles that were cut off --------------------------------------------------------------------


@pytest.mark.parametrize("table", [Table.BLOBS, Table.LAYERS, Table.RECIPES, Table.OBJECTS, Table.LEASES])
def test_nothing_goes_when_nobody_knows_what_a_record_keeps(data: Path, table: Table) -> None:
    with Store.open(data) as store:
        image = push_image(store, REPOSITORY, [layer(6, 13)], tags=["1"])
        push(store, layer(20, 19).blob, repository="other")
        ingest_all(store)
        layers = [one.diff_id for one in map(store.blobs.stat, image.blobs) if one.diff_id is not None]
        store.leases.take(REPOSITORY, bytes(32), "node", 3600, (image.digest, layers))
        extents = keys(store, Table.EXTENTS)
    found = records(data, table)
    used = [one for one in found if one.key == blake3(FILES[13]).digest()] or found  # of the objects, one of a layer
    flip_record(data, used[0], -20)
    with Store.open(data) as store:
        with pytest.raises(CorruptError):
            collect(store, Policy())
        assert keys(store, Table.EXTENTS) == extents


def test_a_manifest_that_cannot_be_read_keeps_the_blobs_of_its_repository(data: Path) -> None:
    with Store.open(data) as store:
        push_image(store, REPOSITORY, [layer(6)], tags=["1"])
        stray = push(store, layer(11).blob, repository=REPOSITORY)
        other = push(store, layer(12).blob, repository="other")
        ingest_all(store)
    flip_record(data, records(data, Table.MANIFESTS)[0], 40)
    with Store.open(data) as store:
        report = collect(store)
        assert store.blobs.exists(stray)
        assert not store.blobs.exists(other)
        assert REPOSITORY in report.problems[0]


@pytest.mark.parametrize("how", ["damaged", "lost"])
def test_a_lost_index_keeps_what_it_lists(data: Path, how: str) -> None:
    """It may be fetched again, or pushed: then its parts have to be there."""
    with Store.open(data) as store:
        children = [push_image(store, REPOSITORY, [layer(4, 5 + number)], note=str(number)) for number in range(2)]
        outer = push_index(store, REPOSITORY, children, tags=["all"])
        ingest_all(store)
        with store.env.write() as txn:
            raw = bytes(txn.get(Table.MANIFESTS, outer.digest.key) or b"")
            txn.delete(Table.MANIFESTS, outer.digest.key)
            if how == "damaged":
                txn.put_as_is(Table.MANIFESTS, outer.digest.key, raw)
        assert REPOSITORY in collect(store).problems[0]
        push_index(store, REPOSITORY, children, tags=["all"])
        assert store.registry.manifest(REPOSITORY, "all").digest == outer.digest
        assert_whole(store, REPOSITORY, outer)
        assert not collect(store).problems
        assert_whole(store, REPOSITORY, outer)


def test_a_damaged_frame_is_left_where_it_is(data: Path) -> None:
    with Store.open(data) as store:
        image = push_image(store, REPOSITORY, [layer(4, 6)], tags=["1"])
        ingest_all(store)
        store.registry.delete_manifest(REPOSITORY, image.digest)
        frames = keys(store, Table.FRAMES)
    flip_record(data, records(data, Table.FRAMES)[0], -20)
    with Store.open(data) as store:
        report = collect(store)
        assert "damaged" in report.problems[0]
    assert len(records(data, Table.FRAMES)) == 1 < len(frames)


def test_an_extent_that_the_index_has_lost_is_kept_if_it_is_needed(store: Store) -> None:
    """Its frame is the only place that it can be found in again; one that is moved is in the index again."""
    image = push_image(store, REPOSITORY, [layer(4), layer(11)], tags=["1"])
    lost = push_image(store, REPOSITORY, [layer(18, 3)], tags=["2"])
    ingest_all(store)
    with store.env.write() as txn:
        needed = [blake3(FILES[number]).digest() for number in (4, 11)]
        places = [store.extents.find(txn, name) for name in needed]
        dead = [blake3(FILES[number]).digest() for number in (18, 3)]
        data = {name: bytes(store.extents.extent(txn, name)) for name in (*needed, *dead)}
        for name in data:
            txn.delete(Table.EXTENTS, name)
        for place in places:
            assert place is not None
            txn.delete(Table.FRAMES, u64(place.frame))
        store.extents.put_frames(txn, [encode_frame(list(data.items()), Role.FILES)])
        txn.delete(Table.EXTENTS, needed[0])
    store.registry.delete_manifest(REPOSITORY, lost.digest)
    assert collect(store).compacted == 1
    assert_whole(store, REPOSITORY, image)
    assert store.blobs.exists(layer(4).digest)


def test_a_copy_that_was_stored_wrong_goes_once_there_is_a_right_one(store: Store, data: Path) -> None:
    """The index leads to the other frame: what is needed is not needed here."""
    name = blake3(FILES[4]).digest()
    for content in (bytes(len(FILES[4])), FILES[4]):
        with store.env.write() as txn:
            store.extents.forget_unsound(txn, [name])
            store.extents.put_frames(txn, [encode_frame([(name, content)], Role.FILES)])
    image = push_image(store, REPOSITORY, [layer(4)], tags=["1"])
    ingest_all(store)
    assert collect_totals(store)["dead_bytes"] == len(FILES[4])
    collect(store)
    assert u64(1) not in keys(store, Table.FRAMES)
    assert collect_totals(store)["dead_bytes"] == 0
    assert_whole(store, REPOSITORY, image)
    assert check_store(data).problems == []


def test_a_cycle_that_was_cut_off_is_dropped(store: Store, data: Path) -> None:
    with store.env.write() as txn:
        cycle.Cycle.begin(txn, 1)
    push_image(store, REPOSITORY, [layer(4)], tags=["1"])
    ingest_all(store)
    with store.env.read() as txn:
        assert cycle.last_note(txn) > 0
    with lock_collection(data):
        assert not drop_cut_off(store), "somebody collects"
    assert drop_cut_off(store)
    assert not drop_cut_off(store)
    with store.env.read() as txn:
        assert cycle.last_note(txn) == 0
    assert not collect(store).freed["blobs"]


def test_one_collector_at_a_time(store: Store, data: Path) -> None:
    with lock_collection(data), pytest.raises(BusyError, match="collects"):
        collect(store)
    collect(store)


def test_a_deleted_blob_is_unknown(store: Store) -> None:
    digest = push(store, layer(4).blob, repository=REPOSITORY)
    collect(store)
    with pytest.raises(BlobUnknownError):
        store.registry.stat_blob(REPOSITORY, digest)
