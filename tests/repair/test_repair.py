"""fsck --repair: every kind of damage is mended where it can be, else quarantined; what is whole stays as it is."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from pagepool.digest import Digest
from pagepool.errors import BlobUnknownError
from pagepool.oci import Index, parse_manifest
from pagepool_service.repair import frames
from pagepool_service.repair import run as running
from pagepool_service.store.catalogue import FORWARD, holder_key
from pagepool_service.store.checks import findings
from pagepool_service.store.checks.naming import is_reverse
from pagepool_service.store.environment import Table
from pagepool_service.store.store import Store
from tests.backup.helpers import blobs_of, content
from tests.faults import flip_record, records, replace_record
from tests.repair.helpers import ROUNDS, repair, wreck
from tests.store.checking import check
from tests.store.helpers import ingest_all, push
from tests.store.samples import SPOOLED

if TYPE_CHECKING:
    from pathlib import Path

    from tests.backup.conftest import Made
    from tests.store.samples import Sample

SEEDS = 1 + ROUNDS // 20
KINDS = (
    Table.EXTENTS, Table.FRAMES, Table.OBJECTS, Table.RECIPES, Table.LAYERS, Table.BLOBS, Table.LINKS, Table.MANIFESTS,
    Table.MANIFEST_LINKS, Table.TAGS, Table.REFERRERS, Table.JOBS, Table.LEASES, Table.META,
)  # fmt: skip


@pytest.fixture(autouse=True)
def checked_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """fsck in this process."""
    monkeypatch.setattr(running, "check_store", lambda data, quick, watch: check(data, quick=quick))  # noqa: ARG005


@pytest.mark.parametrize("table", KINDS, ids=lambda table: table.label)
@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_flipped_byte_in_any_record(data: Path, made: Made, table: Table, seed: int) -> None:
    before = content(data)
    found = [record for record in records(data, table) if record.key != b"format" and len(record.value) > 8]
    randomness = random.Random(f"{table.label} {seed}")
    record = randomness.choice(found)
    flip_record(data, record, randomness.randrange(len(record.value)))
    done = repair(data)
    print(done.actions)
    assert check(data).problems == []
    if table is Table.FRAMES and record.value[1] == 1 and not done.clean:
        # Bytes of a blob as it came, and nothing else has them.
        assert {action.outcome for action in done.actions} == {"set aside", "quarantined"}
        return
    assert done.clean, done
    assert blobs_of(data, made.sample.blobs) == made.sample.blobs
    # Frames and recipes may have other numbers now, and jobs are done; nothing else has gone.
    renumbered = {Table.FRAMES, Table.RECIPES, Table.JOBS}
    assert {key for key in before if key[0] not in renumbered} <= content(data).keys()
    assert repair(data).actions == []


@pytest.mark.parametrize("table", KINDS, ids=lambda table: table.label)
@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_wrecked_record(data: Path, table: Table, seed: int) -> None:
    found = [record for record in records(data, table) if record.key != b"format"]
    randomness = random.Random(f"wreck {table.label} {seed}")
    wreck(data, randomness.choice(found), randomness)
    done = repair(data)
    print(*done.actions, sep="\n")
    assert done.after.problems == []
    assert check(data).problems == []
    assert repair(data).actions == []


# -- any damage ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Whole:
    """What a store held before it was damaged: manifests and tags as they have to be pushed again."""

    manifests: dict[tuple[str, Digest], bytes]
    tags: dict[tuple[str, str], Digest]
    holders: dict[Digest, list[str]]

    @classmethod
    def of(cls, data: Path, sample: Sample) -> Whole:
        """Read it off a sound store."""
        found: dict[tuple[str, Digest], bytes] = {}
        with Store.open(data, readonly=True) as store, store.env.read() as txn:
            for key, _ in txn.scan(Table.MANIFEST_LINKS, start=FORWARD):
                repository, digest = key.partition(b"\0")[0].decode(), Digest.from_key(key.partition(b"\0")[2])
                found[repository, digest] = store.registry.find_manifest(txn, repository, digest).raw
            tags = {(image.repository, image.tag): image.digest for image in store.registry.listings.images(100)[0]}
            blobs = {Digest.from_key(key) for key, _ in txn.scan(Table.BLOBS)}
            return cls(
                found, tags, {digest: store.registry.holders(txn, digest) for digest in blobs | set(sample.blobs)}
            )


def damage(data: Path, randomness: random.Random) -> str:
    """Damage some record in some way. Returns what was done."""
    table = randomness.choice(KINDS)
    found = [record for record in records(data, table) if record.key != b"format"]
    if not found:
        return "nothing"
    record = randomness.choice(found)
    how = randomness.choice(("flip", "wreck", "wreck", "remove", "cut"))
    if how == "flip":
        value = bytearray(record.value)
        value[randomness.randrange(len(value))] ^= 1 << randomness.randrange(8)
        replace_record(data, table, record.key, bytes(value))
    elif how == "wreck":
        wreck(data, record, randomness)
    elif how == "remove":
        replace_record(data, table, record.key, None)
    else:
        replace_record(data, table, record.key, record.value[: randomness.randrange(1, len(record.value) + 1)])
    return f"{how} {table.label} {record.key.hex()[:40]}"


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_any_damage_is_mended_or_named_and_a_push_heals_the_rest(data: Path, made: Made, seed: int) -> None:
    randomness = random.Random(f"any {seed}")
    before = Whole.of(data, made.sample)
    done_to = [damage(data, randomness) for _ in range(randomness.randrange(1, 6))]
    print(*done_to, sep="\n")
    done = repair(data)
    print(*done.actions, sep="\n")
    assert done.after.problems == []
    assert repair(data).actions == []
    lost = {action.name for action in done.actions if action.outcome == "quarantined"}
    concerned = {image for action in done.actions for image in action.images}
    with Store.open(data) as store:
        for digest, blob in made.sample.blobs.items():
            if store.blobs.exists(digest):
                assert b"".join(store.blobs.read(digest)) == blob
            elif before.holders[digest] and digest != Digest.of(SPOOLED):
                assert lost
                assert concerned
    # What any client does: ask for each blob, upload what is not there, put the manifests.
    with Store.open(data) as store:
        _push_all(store, made.sample, before)
        ingest_all(store)
        for (repository, tag), digest in before.tags.items():
            assert store.registry.manifest(repository, tag).raw == before.manifests[repository, digest]
    assert check(data).problems == []
    assert blobs_of(data, made.sample.blobs) == made.sample.blobs


def _push_all(store: Store, sample: Sample, whole: Whole) -> None:
    for (repository, digest), raw in sorted(whole.manifests.items(), key=lambda item: b"manifests" in item[1]):
        document = parse_manifest(raw)
        if not isinstance(document, Index):
            for entry in document.blobs:
                _push_blob(store, repository, entry.digest, sample)
        tags = [tag for (where, tag), target in whole.tags.items() if (where, target) == (repository, digest)]
        store.registry.put_manifest(repository, digest, document, tags)
    _push_blob(store, "waiting", Digest.of(SPOOLED), sample)


def _push_blob(store: Store, repository: str, digest: Digest, sample: Sample) -> None:
    try:
        store.registry.stat_blob(repository, digest)
    except BlobUnknownError:
        data = sample.blobs.get(digest) or CONFIGS[digest]
        push(store, data, repository=repository)


CONFIGS = {
    Digest.of(config): config
    for config in (json.dumps({"architecture": "amd64", "os": "linux", "of": [tag]}).encode() for tag in ("1", ""))
}


@pytest.mark.parametrize("listed", [1, 2])
def test_more_problems_than_are_listed(data: Path, made: Made, monkeypatch: pytest.MonkeyPatch, listed: int) -> None:
    """fsck stops listing; repair looks by itself, or comes back for the rest. Which come first depends on digests."""
    monkeypatch.setattr(findings, "LISTED", listed)
    monkeypatch.setattr(frames, "LISTED", listed)
    for record in records(data, Table.EXTENTS):
        replace_record(data, Table.EXTENTS, record.key, None)
    for table in (Table.LINKS, Table.MANIFEST_LINKS):
        for record in records(data, table):
            if not is_reverse(record.key):
                replace_record(data, table, record.key, None)
    done = repair(data)
    assert done.clean
    assert {action.outcome for action in done.actions} == {"repaired"}
    assert blobs_of(data, made.sample.blobs) == made.sample.blobs


def test_a_blob_and_one_direction_of_its_link_are_lost(data: Path) -> None:
    """Nothing but the other direction says that the repository had it."""
    digest = Digest.of(SPOOLED)
    replace_record(data, Table.BLOBS, digest.key, None)
    replace_record(data, Table.LINKS, holder_key("waiting", digest), None)
    done = repair(data)
    assert [action.outcome for action in done.actions] == ["quarantined"]
    assert check(data).problems == []
