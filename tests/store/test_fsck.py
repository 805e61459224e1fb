"""fsck: a whole store is clean in every state, and every kind of damage is found, named, and traced to its images."""

from __future__ import annotations

import functools
import json
import os
import random
import shutil
import signal
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from pagepool.digest import Digest
from pagepool.errors import ManifestUnknownError, NameUnknownError, ReferenceInvalidError, StoreFormatError
from pagepool.extents import EXTENT_SIZE
from pagepool_service.commands.fsck import fsck
from pagepool_service.repair.run import Plan, repair_store
from pagepool_service.store import fsck as fsck_module
from pagepool_service.store.catalogue import holder_key, link_key
from pagepool_service.store.checks import CONCERN, STAGES, Message, Problem, Request, run_stages
from pagepool_service.store.checks.naming import name_record
from pagepool_service.store.environment import Table, checksum
from pagepool_service.store.fsck import Report, check_store
from pagepool_service.store.schema import BlobRecord, ContentKind, LayerRecord, LayerState, Location, ObjectRecord, u64
from pagepool_service.store.store import Store
from tests.faults import Record, flip_file, flip_pages, flip_record, records, replace_record
from tests.ingest.sparse import sparse_tar
from tests.store.checking import check
from tests.store.helpers import gzipped, ingest_all, noise, push
from tests.store.samples import ALONE, APP, BASE, OPAQUE, SPOOLED, Sample, make_sample

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

SHARING = ("lib/one:1", "lib/three:1", "lib/two:1", "multi:1")
BASED = ("lib/one:1", "lib/two:1", "multi:1")


@dataclass(frozen=True)
class Made:
    """A sample that tests copy."""

    data: Path
    sample: Sample


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    data = tmp_path_factory.mktemp("made") / "data"
    return Made(data, make_sample(data))


@pytest.fixture
def copy(made: Made, data: Path) -> Path:
    """A copy of the sample to damage."""
    shutil.copytree(made.data, data)
    return data


def kinds(report: Report) -> dict[str, list[Problem]]:
    found: dict[str, list[Problem]] = {}
    for problem in report.problems:
        found.setdefault(problem.kind, []).append(problem)
    return found


def resum(data: Path, table: Table, key: bytes, payload: bytes) -> None:
    """Put a record whose checksum is right."""
    replace_record(data, table, key, payload + checksum(table, key, payload))


# -- whole stores --------------------------------------------------------------------------------------------


def test_an_empty_store_is_clean(data: Path) -> None:
    Store.open(data).close()
    report = check_store(data)
    assert (report.problems, report.notes) == ([], [])


@pytest.mark.parametrize("quick", [False, True])
def test_the_sample_is_clean_and_everything_was_looked_at(made: Made, quick: bool) -> None:
    before = (made.data / "store" / "data.mdb").read_bytes()
    report = check_store(made.data, quick=quick)
    assert (report.problems, report.notes) == ([], [])
    with Store.open(made.data, readonly=True) as store, store.env.read() as txn:
        for table in Table:
            if table not in (Table.RECIPES, Table.FRAMES):
                assert report.checked[table.label.replace("_", " ")] == txn.count(table), table
        assert report.checked["frames"] == txn.count(Table.FRAMES)
        assert report.checked["recipe chunks"] == txn.count(Table.RECIPES)
        if not quick:
            assert report.checked["extents hashed"] >= txn.count(Table.EXTENTS)
            assert report.checked["layers rebuilt"] == txn.count(Table.LAYERS) == 4
            # All but the plain layers, which their layers' rebuilding has verified.
            assert report.checked["blobs read back"] >= len(made.sample.blobs) - 1
    assert (made.data / "store" / "data.mdb").read_bytes() == before


def test_it_is_clean_at_every_step_of_the_work(data: Path) -> None:
    from pagepool_service.maintenance import Maintenance
    from tests.store.samples import push_image

    with Store.open(data) as store:
        push_image(store, "some", "1", [(gzipped(BASE), "x/y"), (APP, "x/y"), (gzipped(APP), "x/y"), (OPAQUE, "x/y")])
        maintenance = Maintenance(store)
        while maintenance.run_one():
            report = check_store(data, quick=True)  # in another process
            assert report.problems == []


def test_it_may_run_beside_a_service(data: Path) -> None:
    """Pushes, work and removals go on at full speed while several checks run: nothing is ever reported."""
    done = threading.Event()
    failures: list[BaseException] = []
    rounds: list[int] = []

    def serve() -> None:
        try:
            with Store.open(data) as store:
                while not done.is_set():
                    number = len(rounds)
                    blobs = [gzipped(BASE), APP, noise(200_000, number % 3), noise(500, number % 5)]
                    for blob in blobs:
                        push(store, blob)
                    ingest_all(store)
                    for blob in blobs:
                        store.registry.delete_blob("some/repository", Digest.of(blob))
                    rounds.append(number)
        except BaseException as error:
            failures.append(error)
            raise

    Store.open(data).close()
    thread = threading.Thread(target=serve)
    thread.start()
    try:
        checks = 0
        while (checks < 4 or len(rounds) < 8) and not failures:
            report = check_store(data, quick=checks % 2 == 1)  # in another process than the writer
            assert report.problems == []
            checks += 1
    finally:
        done.set()
        thread.join()
    assert failures == []


def test_interrupted_ingests_are_notes(data: Path) -> None:
    with Store.open(data) as store:
        push(store, gzipped(BASE))
        ingest_all(store)
    (chunk,) = records(data, Table.RECIPES)
    resum(data, Table.RECIPES, u64(99) + u64(0), chunk.value[:-8])
    (data / "spool" / f"sha256-{Digest.of(b'left').hex}").write_bytes(b"left")
    report = check(data)
    # The totals count the chunk that this test has put in by hand.
    assert [problem.name for problem in report.problems] == ["recipes_stored"]
    assert sorted(note.split()[0] for note in report.notes) == ["1", "1"]


# -- damage: one flipped byte in every kind of record ----------------------------------------------------------

FLIPS: dict[Table, tuple[str, ...]] = {
    Table.EXTENTS: ("extent",),
    Table.FRAMES: ("frame",),
    Table.OBJECTS: ("object",),
    Table.RECIPES: ("recipe",),
    Table.LAYERS: ("layer",),
    Table.BLOBS: ("blob",),
    Table.LINKS: ("link",),
    Table.MANIFESTS: ("manifest",),
    Table.MANIFEST_LINKS: ("manifest link",),
    Table.TAGS: ("tag",),
    Table.REFERRERS: ("referrer",),
    Table.JOBS: ("job",),
    Table.LEASES: ("lease",),
    Table.META: ("meta",),
}


@pytest.mark.parametrize("table", FLIPS, ids=lambda table: table.label)
@pytest.mark.parametrize("quick", [False, True])
def test_a_flipped_byte_in_any_record_is_found_and_named(copy: Path, table: Table, quick: bool) -> None:
    found = [record for record in records(copy, table) if record.key != b"format" and len(record.value) > 8]
    record = random.Random(f"{table.label}").choice(found)
    flip_record(copy, record, len(record.value) // 2)
    report = check(copy, quick=quick)
    named = name_record(table, record.key)
    assert named in {(problem.kind, problem.name) for problem in report.problems}, report.problems
    assert named[0] in FLIPS[table]


def test_every_table_that_is_used_is_tested() -> None:
    unused = {Table.TREES, Table.CORRECTIONS}
    assert set(FLIPS) | unused == set(Table)


@pytest.mark.parametrize("table", [Table.TREES, Table.CORRECTIONS])
def test_records_of_tables_to_come_are_checked_too(copy: Path, table: Table) -> None:
    replace_record(copy, table, b"key", b"no checksum")
    report = check(copy, quick=True)
    assert [problem.name for problem in report.problems] == [b"key".hex()]


def test_a_flipped_byte_in_a_frame_concerns_the_images_that_share_it(copy: Path) -> None:
    frame = next(record for record in records(copy, Table.FRAMES) if record.value[1] == 0)  # of files, in BASE
    flip_record(copy, frame, -500)
    report = check(copy)
    problems = kinds(report)
    (problem,) = problems["frame"]
    assert "extents lie in it" in problem.reason
    assert problem.images == SHARING
    assert {problem.name for problem in problems["layer"]} >= {str(Digest.of(BASE))}
    for problem in problems["layer"]:
        assert "frame" in problem.reason
        assert set(problem.images) <= set(SHARING)
    assert "the totals were not compared: there is damage" in report.notes


def test_a_frame_of_a_blob_as_it_came(copy: Path) -> None:
    with Store.open(copy) as store, store.env.read() as txn:
        record = store.blobs.record(txn, Digest.of(OPAQUE))
        extents = store.extents.object_record(txn, record.object, record.size)
        number = store.extents.frame_of(txn, extents.runs[0][1]).number
    frame = next(record for record in records(copy, Table.FRAMES) if record.key == u64(number))
    flip_record(copy, frame, -500)
    problems = kinds(check(copy))
    assert [problem.name for problem in problems["frame"]] == [str(number)]
    assert str(Digest.of(OPAQUE)) in [problem.name for problem in problems["blob"]]
    # An image without a tag is named by its digest.
    assert all(image.startswith("lib/one@sha256:") for image in problems["frame"][0].images)


def test_a_chunk_of_a_recipe(copy: Path) -> None:
    layer = next(record for record in records(copy, Table.LAYERS) if record.key == Digest.of(ALONE).key)
    recipe = LayerRecord.decode(layer.value[:-8]).recipe
    chunk = next(record for record in records(copy, Table.RECIPES) if record.key[:8] == u64(recipe))
    flip_record(copy, chunk, 10)
    for quick in (False, True):
        problems = kinds(check(copy, quick=quick))
        assert [(problem.name, problem.images) for problem in problems["recipe"]] == [
            (f"{recipe} at 0", ("lib/three:1",))
        ]
        assert ("layer" in problems) != quick


def test_a_spool_file(copy: Path) -> None:
    path = next((copy / "spool").iterdir())
    flip_file(path, 200_000)
    assert check(copy, quick=True).clean  # no content is read
    problems = kinds(check(copy))
    assert [problem.name for problem in problems["blob"]] == [str(Digest.of(SPOOLED))]
    path.write_bytes(SPOOLED[:-1])
    assert "279999 bytes" in kinds(check(copy, quick=True))["blob"][0].reason
    path.unlink()
    assert "not there" in kinds(check(copy, quick=True))["blob"][0].reason


# -- damage: contradictions between records that are each right ------------------------------------------------


def _first(data: Path, table: Table, wanted: Callable[[Record], bool] = lambda _: True) -> Record:
    return next(record for record in records(data, table) if wanted(record))


def _blob(data: Path, digest: Digest) -> tuple[bytes, BlobRecord]:
    record = _first(data, Table.BLOBS, lambda record: record.key == digest.key)
    return record.key, BlobRecord.decode(memoryview(record.value[:-8]), str(digest))


def _drop(table: Table, wanted: Callable[[Record], bool] = lambda _: True) -> Callable[[Path], None]:
    return lambda data: replace_record(data, table, _first(data, table, wanted).key, None)


def _with_wrong_content(data: Path) -> None:
    """A frame whose bytes are not those its head names."""
    frame = _first(data, Table.FRAMES, lambda record: record.value[0] == 0)
    payload = bytearray(frame.value[:-8])
    payload[-1] ^= 1
    resum(data, Table.FRAMES, frame.key, bytes(payload))


def _with_moved_extent(data: Path) -> None:
    extent = _first(data, Table.EXTENTS)
    location = Location.decode(extent.value[:-8])
    moved = Location(location.frame, location.offset + 1, location.length)
    resum(data, Table.EXTENTS, extent.key, moved.encode())


def _with_extent_elsewhere(data: Path) -> None:
    extent = _first(data, Table.EXTENTS)
    location = Location.decode(extent.value[:-8])
    resum(data, Table.EXTENTS, extent.key, Location(9999, location.offset, location.length).encode())


def _with_swapped_extents(data: Path) -> None:
    """An object whose extents are all there, of the right lengths, in the wrong order."""
    record = _first(data, Table.OBJECTS, lambda record: int.from_bytes(record.value[:8], "big") == 400_000)
    runs = [record.value[8:-8][start : start + 36] for start in range(0, len(record.value) - 16, 36)]
    resum(data, Table.OBJECTS, record.key, record.value[:8] + runs[1] + runs[0] + b"".join(runs[2:]))


def _with_shorter_object(data: Path) -> None:
    record = _first(data, Table.OBJECTS, lambda record: int.from_bytes(record.value[:8], "big") == 400_000)
    resum(data, Table.OBJECTS, record.key, (399_999).to_bytes(8, "big") + record.value[8:-8])


def _with_gap_in_recipe(data: Path) -> None:
    chunk = _first(data, Table.RECIPES)
    replace_record(data, Table.RECIPES, chunk.key, None)
    resum(data, Table.RECIPES, chunk.key[:8] + u64(512), chunk.value[:-8])


def _with_exchanged_recipes(data: Path) -> None:
    """Two layers with each other's recipe: everything is there, and it rebuilds to other bytes."""
    one, two = records(data, Table.LAYERS)[:2]
    resum(data, Table.LAYERS, one.key, two.value[:-8])
    resum(data, Table.LAYERS, two.key, one.value[:-8])


def _with_longer_layer(data: Path) -> None:
    """As where the last chunk of its recipe is lost."""
    record = _first(data, Table.LAYERS)
    layer = LayerRecord.decode(record.value[:-8])
    resum(data, Table.LAYERS, record.key, replace(layer, plain_size=layer.plain_size + 512).encode())


def _with_other_diff_id(data: Path) -> None:
    key, record = _blob(data, Digest.of(APP))
    resum(data, Table.BLOBS, key, replace(record, diff_id=Digest.of(b"another")).encode())


def _with_pending_without_job(data: Path) -> None:
    replace_record(data, Table.JOBS, _first(data, Table.JOBS).key, None)


def _with_other_manifest(data: Path) -> None:
    manifest = _first(data, Table.MANIFESTS)
    resum(data, Table.MANIFESTS, manifest.key, manifest.value[:-8] + b" ")


def _with_lying_referrer(data: Path) -> None:
    record = _first(data, Table.REFERRERS)
    resum(data, Table.REFERRERS, record.key, json.dumps({"digest": str(Digest.of(b"other"))}).encode())


def _with_wrong_totals(data: Path) -> None:
    record = _first(data, Table.META, lambda record: record.key == b"totals")
    payload = bytearray(record.value[:-8])
    payload[8 * 3 + 7] ^= 1  # frames
    resum(data, Table.META, b"totals", bytes(payload))


def _unlinked(data: Path) -> None:
    replace_record(data, Table.LINKS, holder_key("lib/two", Digest.of(APP)), None)


def _half_linked(data: Path) -> None:
    replace_record(data, Table.LINKS, link_key("lib/two", Digest.of(APP)), None)


def _is_large(record: Record) -> bool:
    return Location.decode(record.value[:16]).length == 131072


# What is done, the kinds that must be reported, whether the quick check sees it, and a word of the reason.
CONTRADICTIONS: dict[str, tuple[Callable[[Path], None], set[str], bool, str]] = {
    "frame gone": (_drop(Table.FRAMES), {"extent"}, True, "does not have it"),
    "frame with other bytes": (_with_wrong_content, {"extent"}, False, "other bytes"),
    "index record gone": (_drop(Table.EXTENTS, _is_large), {"extent"}, True, "the index does not have it"),
    "index moved": (_with_moved_extent, {"extent"}, True, "contradicts"),
    "index into no frame": (_with_extent_elsewhere, {"extent"}, True, "frame 9999"),
    "object gone": (_drop(Table.OBJECTS), {"recipe", "layer", "blob"}, True, "not there"),
    "object in another order": (_with_swapped_extents, {"object"}, False, "BLAKE3"),
    "object shorter": (_with_shorter_object, {"object"}, True, "bytes"),
    "recipe gone": (_drop(Table.RECIPES), {"recipe"}, True, "not there"),
    "recipe with a gap": (_with_gap_in_recipe, {"recipe"}, True, "the chunk before it ends at 0"),
    "recipe shorter than its layer": (_with_longer_layer, {"recipe"}, True, "and its layer has"),
    "recipes exchanged": (_with_exchanged_recipes, {"layer"}, False, "rebuilds to"),
    "layer gone": (_drop(Table.LAYERS), {"blob"}, True, "its layer"),
    "another diff_id": (_with_other_diff_id, {"blob"}, True, "its layer"),
    "blob gone": (_drop(Table.BLOBS), {"link"}, True, "is not there"),
    "job gone": (_with_pending_without_job, {"blob"}, True, "no job"),
    "link in one direction": (_unlinked, {"link"}, True, "one direction"),
    "link in the other direction": (_half_linked, {"link"}, True, "one direction"),
    "manifest gone": (_drop(Table.MANIFESTS), {"manifest link"}, True, "is not there"),
    "manifest of another digest": (_with_other_manifest, {"manifest"}, True, "digest"),
    "manifest link gone": (_drop(Table.MANIFEST_LINKS), {"manifest link"}, True, "one direction"),
    "referrer gone": (_drop(Table.REFERRERS), {"referrer"}, True, "is not there, and its manifest"),
    "referrer of another": (_with_lying_referrer, {"referrer"}, True, "describes"),
    "wrong totals": (_with_wrong_totals, {"totals"}, True, "was counted"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_contradictions_are_found(copy: Path, name: str) -> None:
    damage, expected, quick_sees, word = CONTRADICTIONS[name]
    damage(copy)
    report = check(copy)
    assert expected & {problem.kind for problem in report.problems}, report.problems
    assert any(word in problem.reason for problem in report.problems), report.problems
    assert check(copy, quick=True).clean != quick_sees


def test_a_hole_that_became_something_else_is_found(data: Path) -> None:
    """The layer is rebuilt without the holes of sparse files: nothing but the file itself tells."""
    with Store.open(data) as store:
        push(store, sparse_tar("file", 3 * EXTENT_SIZE, [(0, b"data")]))
        ingest_all(store)
    (record,) = [one for one in records(data, Table.OBJECTS) if one.value[:8] == u64(3 * EXTENT_SIZE)]
    first, hole = ObjectRecord.decode(memoryview(record.value)[:-8], "").runs
    assert hole[0] == 2
    resum(data, Table.OBJECTS, record.key, record.value[:8] + (3).to_bytes(4, "big") + first[1])
    assert {problem.kind for problem in check(data).problems} == {"object"}


def test_a_frame_that_nothing_refers_to_may_be_damaged(copy: Path) -> None:
    """What healing leaves: its extents have been stored anew elsewhere."""
    flip_record(copy, next(record for record in records(copy, Table.FRAMES) if record.value[1] == 0), -500)
    with Store.open(copy) as store:
        # A layer that brings the same files again, and so mends all images that share them.
        push(store, gzipped(BASE, 1))
        ingest_all(store)
    report = check(copy)
    assert report.problems == []
    assert any("nothing refers to any more" in note for note in report.notes)


def test_a_blob_that_was_deleted_though_an_image_needs_it_is_no_damage(copy: Path) -> None:
    """The specification lets clients do that; fsck of the image says so, and pulls fail with 404."""
    with Store.open(copy) as store:
        for repository in ("lib/two", "multi"):
            if repository == "lib/two":
                store.registry.delete_blob(repository, Digest.of(APP))
    report = check(copy)
    assert report.problems == []
    report = check(copy, images=("lib/two:1",))
    assert report.problems == []
    assert any(str(Digest.of(APP)) in note for note in report.notes)


# -- only some images ------------------------------------------------------------------------------------------


def test_only_what_the_images_are_made_of_is_checked(copy: Path, made: Made) -> None:
    with Store.open(copy) as store, store.env.read() as txn:
        record = store.blobs.record(txn, Digest.of(gzipped(ALONE)))
        number = store.extents.frame_of(txn, store.extents.object_record(txn, record.object, record.size).runs[0][1])
    flip_record(copy, next(record for record in records(copy, Table.FRAMES) if record.key == u64(number.number)), -500)
    for image in ("lib/one:1", "lib/two:1", f"lib/one@{made.sample.images['lib/one:1']}", "multi:1"):
        report = check(copy, images=(image,))
        assert report.problems == [], image
        assert report.checked["layers rebuilt"] >= 1
        assert report.checked["blobs read back"] >= 1
    report = check(copy, images=("lib/three:1",))
    assert {problem.images for problem in report.problems} == {("lib/three:1",)}


def test_an_image_by_default_is_the_latest(copy: Path) -> None:
    with pytest.raises(ManifestUnknownError, match="manifest lib/one:latest is unknown"):
        check(copy, images=("lib/one",))


@pytest.mark.parametrize(
    ("image", "error"),
    [("no/such:1", NameUnknownError), ("lib/one:2", ManifestUnknownError), ("Not an image", ReferenceInvalidError)],
)
def test_an_image_that_is_not_there(made: Made, image: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        check_store(made.data, images=(image,))


# -- the database below the records ----------------------------------------------------------------------------


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreFormatError, match="holds no pagepool store"):
        check_store(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_store_of_another_format_is_refused(copy: Path) -> None:
    """Its records mean something else: neither damaged nor clean may be said of it, and nothing may be mended."""
    (copy / "format").write_text("pagepool store 99\n")
    database = (copy / "store" / "data.mdb").read_bytes()
    for look in (check_store, functools.partial(repair_store, plan=Plan())):
        with pytest.raises(StoreFormatError, match="pagepool store 99"):
            look(copy)
    assert (copy / "store" / "data.mdb").read_bytes() == database


def test_a_database_that_cannot_be_opened_is_a_problem(copy: Path) -> None:
    path = copy / "store" / "data.mdb"
    with path.open("r+b") as file:
        file.write(bytes(2 * 4096))
    report = check_store(copy)
    assert [(problem.kind, problem.name) for problem in report.problems] == [("database", "data.mdb")]


def test_a_database_that_was_cut_short_is_a_problem(copy: Path) -> None:
    """Reading behind the end of a mapped file is SIGBUS: the process dies, the check goes on with the next table."""
    path = copy / "store" / "data.mdb"
    os.truncate(path, path.stat().st_size // 2 // 4096 * 4096)
    report = check_store(copy)
    assert not report.clean
    assert {problem.kind for problem in report.problems} & {"database", "frame", "extent", "blob", "layer"}


@pytest.mark.parametrize("seed", range(12))
def test_damaged_pages_are_survived_and_told(copy: Path, seed: int) -> None:
    randomness = random.Random(f"pages {seed}")
    print("seed", seed, "offsets", flip_pages(copy, randomness, 60, trees=seed % 3 == 0))
    report = check_store(copy, quick=seed % 2 == 0)
    # So many bytes hit something that is in use; the check itself comes to its end whatever they are.
    assert not report.clean


def _dying_child(stage: int, died: Path, sender: Connection, request: Request) -> None:
    """What the checking process does, but that it dies when a stage begins, once, as damaged pages may make it."""

    def send(message: Message) -> None:
        sender.send(message)
        if message.kind == "begin" and message.number == stage and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGSEGV)

    run_stages(request, send)


@pytest.mark.parametrize("stage", range(len(STAGES)), ids=lambda stage: STAGES[stage][0])
def test_a_stage_that_kills_its_process_is_named_and_the_next_ones_run(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int
) -> None:
    monkeypatch.setattr(fsck_module, "_child", functools.partial(_dying_child, stage, tmp_path / "died"))
    report = check_store(made.data)
    (problem,) = report.problems
    assert (problem.kind, problem.name) == ("database", STAGES[stage][0])
    assert "SIGSEGV" in problem.reason
    assert report.checked["tags"] == (0 if STAGES[stage][0] == "tags" else 4)
    assert (report.checked["layers rebuilt"] > 0) == (STAGES[stage][0] != "layers")


def test_a_process_that_dies_while_looking_for_images_loses_nothing(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip_record(copy, records(copy, Table.TAGS)[0], 2)
    monkeypatch.setattr(fsck_module, "_child", functools.partial(_dying_child, CONCERN, tmp_path / "died"))
    report = check_store(copy)
    assert [problem.kind for problem in report.problems] == ["tag", "database"]
    assert report.problems[1].name == "images"


# -- the command -----------------------------------------------------------------------------------------------


def test_the_command_says_that_nothing_was_found(made: Made) -> None:
    result = CliRunner().invoke(fsck, ["--data", str(made.data)])
    assert result.exit_code == 0, result.output
    assert result.stdout.endswith("no problems found\n")
    assert result.stderr == ""


def test_the_command_lists_problems_with_images(copy: Path) -> None:
    flip_record(copy, next(record for record in records(copy, Table.FRAMES) if record.value[1] == 0), -500)
    result = CliRunner().invoke(fsck, ["--data", str(copy), "--quick"])
    assert result.exit_code == 5
    assert ": its checksum does not match its bytes" in result.stdout
    assert f"images: {', '.join(SHARING)}" in result.stdout
    assert "1 problem found" in result.stdout


def test_the_command_prints_only_problems_if_it_is_to_be_quiet(made: Made, copy: Path) -> None:
    assert CliRunner().invoke(fsck, ["--data", str(made.data), "--quiet"]).output == ""
    flip_record(copy, records(copy, Table.TAGS)[0], 2)
    result = CliRunner().invoke(fsck, ["--data", str(copy), "--quick", "-q"])
    assert result.exit_code == 5
    assert all(line.startswith(("tag ", "    images: ")) for line in result.output.splitlines())


def test_the_command_prints_json(copy: Path) -> None:
    flip_record(copy, records(copy, Table.TAGS)[0], 2)
    result = CliRunner().invoke(fsck, ["--data", str(copy), "--json"])
    assert result.exit_code == 5
    report = json.loads(result.stdout)
    assert report["clean"] is False
    (problem,) = report["problems"]
    assert problem["kind"] == "tag"
    assert problem["images"] == [problem["name"]]
    assert report["checked"]["tags"] == 4
    assert json.loads(CliRunner().invoke(fsck, ["--data", str(copy), "--json", "lib/two:1"]).stdout)["clean"]


def test_a_state_that_no_writer_makes(copy: Path) -> None:
    key, record = _blob(copy, Digest.of(APP))
    from dataclasses import replace

    resum(copy, Table.BLOBS, key, replace(record, state=LayerState.UNMOUNTABLE).encode())
    assert record.content is ContentKind.RECIPE
    assert "was not read as one" in kinds(check(copy, quick=True))["blob"][0].reason
