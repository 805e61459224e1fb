"""Where repair gets content from."""

from __future__ import annotations

import io
import os
import random
import shutil
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import bcrypt
import pytest
from blake3 import blake3

from pagepool.digest import Digest
from pagepool.extents import EXTENT_SIZE
from pagepool.pool import Pool
from pagepool.transport import Session
from pagepool_service.backup.repository import open_repository
from pagepool_service.backup.taking import take_backup
from pagepool_service.repair import salvage
from pagepool_service.repair.bits import mend_record
from pagepool_service.repair.sources import BackupSource, RegistrySource
from pagepool_service.store.catalogue import tag_key
from pagepool_service.store.environment import Table, checksum
from pagepool_service.store.schema import ContentKind, LayerState, u64
from pagepool_service.store.store import Store
from tests.backup.helpers import blobs_of, content
from tests.faults import flip_file, flip_pages, records, replace_record
from tests.ingest.sparse import sparse_tar
from tests.repair.helpers import ROUNDS, file_frames, first, opaque_frames, repair, wreck, wreck_all
from tests.store.checking import check
from tests.store.helpers import gzipped, ingest_all, make_tar, noise, push, text
from tests.store.samples import APP, OPAQUE, SPOOLED
from tests.support.certificates import TestAuthority
from tests.support.server import running_service

if TYPE_CHECKING:
    from tests.backup.conftest import Made
    from tests.cli.conftest import Result, Run

pytestmark = pytest.mark.usefixtures("checked_here")


# -- one bit ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_one_bit_anywhere_in_a_record_is_mended(seed: int) -> None:
    randomness = random.Random(f"bit {seed}")
    key, payload = randomness.randbytes(randomness.randrange(1, 60)), randomness.randbytes(randomness.randrange(500))
    whole = bytearray(key + payload + checksum(Table.TAGS, key, payload))
    whole[randomness.randrange(len(whole))] ^= 1 << randomness.randrange(8)
    changed, value = bytes(whole[: len(key)]), bytes(whole[len(key) :])
    assert mend_record(Table.TAGS, changed, value) == (key, payload)
    assert mend_record(Table.LINKS, changed, value) is None
    twice = bytearray(value)
    twice[randomness.randrange(len(twice))] ^= 0xFE
    assert mend_record(Table.TAGS, changed, bytes(twice)) is None


# -- from what is here -----------------------------------------------------------------------------------------


def test_all_frames_of_files_are_lost_and_compressed_layers_bring_them_back(data: Path, made: Made) -> None:
    wreck_all(data, file_frames(data))
    assert repair(data).clean
    assert check(data).problems == []
    assert blobs_of(data, made.sample.blobs) == made.sample.blobs  # APP was pushed compressed, too


@pytest.mark.parametrize("left", [16, 15])
def test_half_of_a_tags_digest_says_which_manifest_it_was(data: Path, made: Made, left: int) -> None:
    record = first(data, Table.TAGS, lambda record: record.key == tag_key("lib/one", "1"))
    time_of, digest, check_sum = record.value[:9], record.value[9:41], record.value[41:]
    wrong = bytes(byte ^ 0xFF for byte in digest[left:])
    replace_record(data, Table.TAGS, record.key, time_of + digest[:left] + wrong + check_sum)
    done = repair(data)
    outcome = "repaired" if left == 16 else "quarantined"
    assert [(action.name, action.outcome) for action in done.actions] == [("lib/one:1", outcome)]
    assert done.after.problems == []
    with Store.open(data) as store:
        tags = store.registry.listings.tags("lib/one", 10).names
        assert tags == (["1"] if left == 16 else [])
        if tags:
            assert store.registry.manifest("lib/one", "1").digest == made.sample.images["lib/one:1"]


@pytest.mark.parametrize("how", ["record", "key"])
def test_a_lost_referrer_is_listed_again(data: Path, made: Made, how: str) -> None:
    """Who asks for signatures must not be told that there are none."""
    record = first(data, Table.REFERRERS)
    replace_record(data, Table.REFERRERS, record.key, None)
    if how == "key":
        replace_record(data, Table.REFERRERS, record.key[:-9] + bytes(9), record.value)
    done = repair(data)
    assert done.clean
    assert {action.kind for action in done.actions} == {"referrer"}
    subject, about = (made.sample.images[name] for name in ("lib/one:1", "about"))
    with Store.open(data) as store:
        (listed,) = store.registry.listings.referrers("lib/one", subject).descriptors
    assert listed["digest"] == str(about)
    assert first(data, Table.REFERRERS) == record


def test_a_manifest_that_is_taken_out_takes_no_referrers_of_others_along(data: Path, made: Made) -> None:
    subject, about = (made.sample.images[name] for name in ("lib/one:1", "about"))
    wreck_all(data, [first(data, Table.MANIFESTS, lambda record: record.key == subject.key)])
    done = repair(data)
    assert [action.outcome for action in done.actions if action.kind == "manifest"] == ["quarantined"]
    assert "referrer" not in {action.kind for action in done.actions}
    with Store.open(data) as store:
        assert store.registry.listings.tags("lib/one", 10).names == []
        (listed,) = store.registry.listings.referrers("lib/one", subject).descriptors
    assert listed["digest"] == str(about)


def test_the_index_is_made_again_from_the_frames(data: Path, made: Made) -> None:
    for record in records(data, Table.EXTENTS):
        replace_record(data, Table.EXTENTS, record.key, None)
    assert repair(data).clean
    assert check(data).problems == []
    assert blobs_of(data, made.sample.blobs) == made.sample.blobs


def test_layers_are_read_again_as_the_settings_say(
    data: Path, made: Made, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a service has taken that may take more than usual could not be mounted after a repair, and was told to be
    repaired. Here that one may take less is easier to see."""
    wreck_all(data, (record for record in records(data, Table.RECIPES)))
    monkeypatch.setenv("PAGEPOOL_MAX_LAYER_SIZE", "1000")
    run("fsck", "--repair", "--data", data)
    with Store.open(data, readonly=True) as store:
        record = store.blobs.stat(Digest.of(gzipped(APP)))
    assert record.state is LayerState.UNMOUNTABLE
    assert "1000" in record.reason
    assert record.size == len(made.sample.blobs[Digest.of(gzipped(APP))])


def test_a_damaged_frame_gives_what_the_index_has_lost(tmp_path: Path) -> None:
    """Both are damaged: what is sound in the frame was taken out with it."""
    data, files = tmp_path / "data", {name: noise(60_000, name) for name in ("a", "b")}
    with Store.open(data) as store:
        push(store, make_tar(files))
        ingest_all(store)
    (frame,) = file_frames(data)
    replace_record(data, Table.FRAMES, frame.key, frame.value[:-40] + bytes(16) + frame.value[-24:])
    names = {name: blake3(content).digest() for name, content in files.items()}
    with Store.open(data) as store, store.env.write() as txn:
        txn.delete(Table.EXTENTS, names["a"])
    repair(data)
    with Store.open(data) as store, store.env.read() as txn:
        assert store.extents.extent(txn, names["a"]) == files["a"]
        assert not txn.has(Table.EXTENTS, names["b"])


def test_the_holes_of_sparse_files_are_zeros(data: Path) -> None:
    """Nothing of a tar is made of their extents, so nothing but the files misses them. Here just these are lost."""
    sizes = (EXTENT_SIZE, 100, 5000, 7)
    with Store.open(data) as store:
        for size in sizes:  # each has a frame of its own
            push(store, make_tar({"zeros": bytes(size)}))
            ingest_all(store)
        blobs = [push(store, sparse_tar("file", 3 * EXTENT_SIZE + 100, [(0, b"data")]))]
        blobs += [push(store, sparse_tar("hole", size, [])) for size in (5000, 2 * EXTENT_SIZE + 7)]
        ingest_all(store)
        names = {blake3(bytes(size)).digest() for size in sizes}
        with store.env.write() as txn:
            for name in names:
                place = store.extents.find(txn, name)
                assert place is not None
                txn.delete(Table.EXTENTS, name)
                txn.delete(Table.FRAMES, u64(place.frame))
    assert len([problem for problem in check(data).problems if problem.kind == "layer"]) == 3 + len(sizes)
    assert repair(data).clean
    with Store.open(data) as store, store.env.read() as txn:
        assert txn.present(Table.EXTENTS, sorted(names)) == names
        assert all(store.blobs.record(txn, blob).content is ContentKind.RECIPE for blob in blobs)


def test_the_pool_has_files_that_the_store_has_lost(alone: Path, tmp_path: Path) -> None:
    with Pool.open(tmp_path / "pool", budget=1 << 30) as pool:
        for file in (text(600_000, "app"), text(500, "app")):
            held = pool.put(blake3(file).digest(), file)
            assert held is not None
            held.close()
    wreck_all(alone, file_frames(alone))
    done = repair(alone, cache=tmp_path / "pool")
    assert any("the pool" in action.how for action in done.actions)
    assert done.clean
    assert check(alone).problems == []
    assert blobs_of(alone, [Digest.of(APP)]) == {Digest.of(APP): APP}


def test_a_compressed_blob_is_made_again_from_its_layer(data: Path, made: Made) -> None:
    """Its first extent is there, and tells how it was compressed."""
    frame = opaque_frames(data, gzipped(APP))[-1]
    replace_record(data, Table.FRAMES, frame.key, frame.value[:-2000] + bytes(2000))
    done = repair(data)
    assert any(action.how == "it was compressed again from its layer" for action in done.actions), done.actions
    assert done.clean
    assert blobs_of(data, made.sample.blobs) == made.sample.blobs


def test_a_file_in_the_spool(data: Path) -> None:
    """What of it is wrong was moved into frames already, as by a settling that was cut off: both together are whole."""
    path = next((data / "spool").iterdir())
    from pagepool.extents import EXTENT_SIZE, Role, encode_frame

    with Store.open(data) as store, store.env.write() as txn:
        second = SPOOLED[EXTENT_SIZE : 2 * EXTENT_SIZE]
        store.extents.put_frames(txn, [encode_frame([(blake3(second).digest(), second)], Role.OPAQUE)])
    flip_file(path, 200_000)
    assert repair(data).clean
    assert blobs_of(data, [Digest.of(SPOOLED)]) == {Digest.of(SPOOLED): SPOOLED}
    assert check(data).problems == []


@pytest.mark.parametrize("opens", [True, False])
def test_a_file_in_the_spool_that_the_disk_does_not_read(
    data: Path, made: Made, tmp_path: Path, *, opens: bool
) -> None:
    """It is of one blob, and no damage of the database, which was replaced for it; the blob was left as it was."""
    spooled = str(Digest.of(SPOOLED))
    with open_repository(tmp_path / "backup", write=True) as repository:
        name = take_backup(data, repository)
    path = next((data / "spool").iterdir())
    path.unlink()
    path.symlink_to("/proc/self/mem" if opens else path)  # nothing is at its beginning: EIO; or ELOOP
    assert {(problem.kind, problem.name) for problem in check(data).problems} == {("blob", spooled)}
    with open_repository(tmp_path / "backup", write=False) as repository:
        done = repair(data, sources=[BackupSource(repository, repository.load(name))])
    assert done.clean
    assert {(action.kind, action.name) for action in done.actions} == {("blob", spooled)}
    assert blobs_of(data, made.sample.blobs) == made.sample.blobs


@pytest.mark.parametrize("damaged", [False, True], ids=["a sound record", "a damaged record"])
@pytest.mark.parametrize("failures", [1, 2, 3])
def test_a_file_that_the_disk_does_not_read_for_a_moment(
    data: Path, made: Made, failures: int, *, damaged: bool
) -> None:
    """It is read again, twice, before the blob is given up."""
    spooled = Digest.of(SPOOLED)
    if damaged:
        wreck_all(data, [record for record in records(data, Table.BLOBS) if record.key == spooled.key])
    path = next((data / "spool").iterdir())
    path.rename(data.parent / "aside")
    path.symlink_to(path if damaged else "/proc/self/mem")  # ELOOP, or EIO: nothing is at its beginning
    told: list[str] = []

    def tell(words: str) -> None:
        told.extend([words] if "the disk does not read" in words else [])
        if len(told) == failures and path.is_symlink():
            path.unlink()
            (data.parent / "aside").rename(path)

    done = repair(data, tell=tell)
    assert done.clean is (failures < 3)
    outcomes = {action.outcome for action in done.actions if action.name == str(spooled)}
    if failures == 3:
        assert outcomes == {"quarantined"}
        return
    assert outcomes == ({"repaired"} if damaged else set())
    assert blobs_of(data, made.sample.blobs) == made.sample.blobs


# -- from elsewhere --------------------------------------------------------------------------------------------


def _ruin(data: Path) -> None:
    """Damage nearly everything: all content, blobs' records, manifests."""
    randomness = random.Random("ruin")
    wreck_all(data, records(data, Table.FRAMES))
    for table in (Table.MANIFESTS, Table.BLOBS, Table.RECIPES, Table.LAYERS, Table.OBJECTS):
        for record in records(data, table):
            wreck(data, record, randomness)


@pytest.mark.parametrize("how", ["registry", "backup"])
def test_everything_is_fetched_again(data: Path, made: Made, tmp_path: Path, how: str) -> None:
    """All that was there has its name again, and its bytes. Frames and recipes are stored anew, under new numbers, and
    the blob whose job waited has been read."""
    renumbered = (Table.FRAMES, Table.RECIPES, Table.JOBS)
    before = {key for key in content(data) if key[0] not in renumbered}
    assert {table for table, _ in before} >= {Table.BLOBS, Table.LINKS, Table.LAYERS, Table.OBJECTS, Table.EXTENTS}
    _ruin(data)
    flip_file(next((data / "spool").iterdir()), 1000)
    if how == "registry":
        shutil.copytree(made.data, tmp_path / "mirror")
        with running_service(tmp_path / "mirror") as service, closing(RegistrySource(Session(service.url))) as mirror:
            done = repair(data, sources=[mirror])
    else:
        with open_repository(tmp_path / "backup", write=True) as repository:
            name = take_backup(made.data, repository)
            done = repair(data, sources=[BackupSource(repository, repository.load(name))])
    assert done.after.problems == []
    assert done.clean
    assert before <= content(data).keys()
    assert blobs_of(data, made.sample.blobs) == made.sample.blobs
    with Store.open(data, readonly=True) as store:
        for image, digest in made.sample.images.items():
            name = image.partition(":")[0] if ":" in image else "lib/one"
            assert Digest.of(store.registry.manifest(name, digest).raw) == digest


def test_a_registry_with_tls_and_users(
    data: Path, made: Made, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who vouches for it and who we are is said as to other commands; a second server is told no password."""
    monkeypatch.setenv("HOME", str(tmp_path))
    _ruin(data)
    authority = TestAuthority(tmp_path / "tls")
    certificate, key = authority.issue("server")
    users = tmp_path / "users"
    users.write_bytes(b"ann:" + bcrypt.hashpw(b"secret", bcrypt.gensalt(5)) + b"\n")
    options = ("--tls-certificate", str(certificate), "--tls-key", str(key), "--htpasswd", str(users))
    shutil.copytree(made.data, tmp_path / "mirror")
    with running_service(tmp_path / "mirror", *options) as service:
        command = ("fsck", "--repair", "--data", data, "--from", service.url)
        user = ("--username", "ann", "--password-stdin")
        trusted = ("--ca-certificate", authority.path)

        def typed(*words: str | Path) -> Result:
            monkeypatch.setattr("sys.stdin", io.StringIO("secret\n"))
            return run(*words)

        refused = typed(*command, *user)
        assert refused.code == 6
        assert "certificate" in refused.err
        assert run(*command, *trusted).code == 7
        second = typed(*command, "--from", "http://127.0.0.1:9", *trusted, *user)
        assert (second.code, "for one only" in second.err) == (2, True)
        assert run("fsck", "--repair", "--data", data, *user).code == 2
        assert run("fsck", "--data", data, *user).code == 2
        assert typed(*command, "--dry-run", "--insecure", *user).code == 5
        done = typed(*command, *trusted, *user)
        assert (done.code, "all repaired" in done.out) == (0, True), done.out
    assert blobs_of(data, made.sample.blobs) == made.sample.blobs


def test_a_backup_that_has_lost_files_gives_what_it_still_has(data: Path, made: Made, tmp_path: Path) -> None:
    """Here its frames: what was in the spool is whole, and nothing that is not is taken."""
    _ruin(data)
    with open_repository(tmp_path / "backup", write=True) as repository:
        snapshot = repository.load(take_backup(made.data, repository))
        for entry in snapshot.tables[Table.FRAMES.label]:
            repository.segment_path(entry.name).unlink()
        done = repair(data, sources=[BackupSource(repository, snapshot)])
    assert done.after.problems == []
    assert not done.clean
    assert blobs_of(data, [Digest.of(SPOOLED)]) == {Digest.of(SPOOLED): SPOOLED}
    with Store.open(data, readonly=True) as store:
        assert not store.blobs.exists(Digest.of(OPAQUE))


# -- pages -----------------------------------------------------------------------------------------------------


def _cut(data: Path) -> None:
    path = data / "store" / "data.mdb"
    os.truncate(path, path.stat().st_size // 2 // 4096 * 4096)


def _zero_heads(data: Path) -> None:
    with (data / "store" / "data.mdb").open("r+b") as file:
        file.write(bytes(2 * 4096))


@pytest.mark.usefixtures("crashing")
@pytest.mark.parametrize("how", ["cut", "heads", *range(ROUNDS // 4)])
def test_a_database_with_damaged_pages_is_saved(
    data: Path, made: Made, monkeypatch: pytest.MonkeyPatch, how: str | int
) -> None:
    monkeypatch.setattr(salvage, "_BATCH", 1 << 16)  # as of a large store: several to a table
    if how == "cut":
        _cut(data)
    elif how == "heads":
        _zero_heads(data)
    else:
        flip_pages(data, random.Random(f"pages {how}"), 30, trees=True)
    damaged = (data / "store" / "data.mdb").read_bytes()
    done = repair(data)
    print(*done.actions, sep="\n")
    assert done.after.problems == []
    if any(action.kind == "database" for action in done.actions):
        assert done.quarantine is not None
        assert (done.quarantine / "store" / "data.mdb").read_bytes() == damaged
    with Store.open(data) as store:
        for digest, blob in made.sample.blobs.items():
            if store.blobs.exists(digest):
                assert b"".join(store.blobs.read(digest)) == blob
            else:
                assert how != "heads"
    if how == "heads":  # nothing but where the trees begin is lost
        assert blobs_of(data, made.sample.blobs) == made.sample.blobs
    assert repair(data).actions == []
