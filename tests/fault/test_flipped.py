"""One flipped byte anywhere: the right bytes or an error that names the record, never wrong bytes.

The first half damages each record of a store that has one of everything, and reads everything through the store's own
interface. The second does it through a running service. The third damages pages of the database below the records,
which may kill the process that reads them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from pagepool.digest import Digest
from pagepool.errors import (
    BlobUnknownError,
    BusyError,
    CorruptError,
    ManifestUnknownError,
    NameUnknownError,
    PagepoolError,
    StoreFormatError,
)
from pagepool.oci.mediatypes import OCI_LAYER_GZIP
from pagepool_service.store.catalogue import holder_key, tag_key
from pagepool_service.store.environment import Table
from pagepool_service.store.store import Store
from tests.faults import Record, flip_file, flip_key, flip_pages, flip_record, in_child, records
from tests.store.collecting import collect
from tests.store.helpers import gzipped
from tests.store.samples import APP, BASE, OPAQUE, SPOOLED, Sample, make_sample, push_image
from tests.support.server import Service, ServiceError, running_service

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pagepool_service.store.listings import Page

READ_TABLES = (
    Table.EXTENTS, Table.FRAMES, Table.OBJECTS, Table.RECIPES, Table.LAYERS, Table.BLOBS, Table.MANIFESTS, Table.TAGS,
    Table.MANIFEST_LINKS, Table.LINKS, Table.REFERRERS, Table.JOBS,
)  # fmt: skip
MOST_OF_A_TABLE = 12
PAGE_SEEDS = int(os.environ.get("PAGEPOOL_PAGE_SEEDS", "10"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Sample]:
    data = tmp_path_factory.mktemp("made") / "data"
    return data, make_sample(data)


@pytest.fixture
def copy(made: tuple[Path, Sample], tmp_path: Path) -> Path:
    data = tmp_path / "data"
    shutil.copytree(made[0], data)
    return data


def read_everything(data: Path, blobs: dict[str, int], images: dict[str, str]) -> dict[str, str]:
    """Read every blob and image through the store; what became of each: ``right``, ``wrong``, or its error."""
    found: dict[str, str] = {}
    with Store.open(data) as store:
        for name, size in blobs.items():
            digest = Digest.parse(name)
            hasher = hashlib.new(digest.algorithm)
            length = 0
            try:
                for piece in store.blobs.read(digest):
                    hasher.update(piece)
                    length += len(piece)
                found[name] = "right" if (hasher.digest(), length) == (digest.raw, size) else "wrong"
            except PagepoolError as error:
                found[name] = f"{type(error).__name__}: {error}"
        for image, expected in images.items():
            repository, _, tag = image.rpartition(":")
            try:
                stored = store.registry.manifest(repository, tag)
                found[image] = "right" if str(Digest.of(stored.raw)) == expected else "wrong"
            except PagepoolError as error:
                found[image] = f"{type(error).__name__}: {error}"
    return found


def _expected(sample: Sample) -> tuple[dict[str, int], dict[str, str]]:
    blobs = {str(digest): len(blob) for digest, blob in sample.blobs.items()}
    return blobs, {image: str(digest) for image, digest in sample.images.items() if ":" in image}


def _chosen(data: Path, table: Table) -> list[Record]:
    found = [record for record in records(data, table) if len(record.value) > 8]
    return random.Random(table.label).sample(found, min(len(found), MOST_OF_A_TABLE))


@pytest.mark.parametrize("table", READ_TABLES, ids=lambda table: table.label)
def test_a_flipped_byte_of_a_record_gives_no_wrong_bytes(copy: Path, made: tuple[Path, Sample], table: Table) -> None:
    blobs, images = _expected(made[1])
    broken = set()
    for record in _chosen(copy, table):
        for at in (0, len(record.value) // 2, -1):
            flip_record(copy, record, at)
            found = read_everything(copy, blobs, images)
            for name, result in found.items():
                assert result == "right" or result.startswith("CorruptError: corrupt "), (record.key.hex(), at, name)
                if result != "right":
                    broken.add(name)
                    assert len(result.split()[2]) > 0
            # Undone by the same flip, so that the next one is alone.
            data = bytearray(record.value)
            data[at] ^= 1
            flip_record(copy, Record(table, record.key, bytes(data)), at)
    assert set(read_everything(copy, blobs, images).values()) == {"right"}
    # Of the other tables no read of a blob or manifest depends on the bytes, only on the keys.
    if table not in (Table.MANIFEST_LINKS, Table.LINKS, Table.REFERRERS, Table.JOBS):
        assert broken, "none of the damage was met"


@pytest.mark.parametrize("bits", [0x01, 0x80], ids=["a name behind others", "no name"])
def test_a_flipped_byte_of_a_key_hides_no_other_name(copy: Path, bits: int) -> None:
    for table, key in ((Table.MANIFEST_LINKS, b"lib/three"), (Table.TAGS, b"lib/three\x001")):
        record = next(record for record in records(copy, table) if record.key.startswith(key))
        flip_key(copy, record, len("lib/"), bits)  # lib/uhree lies before lib/two, where nobody looks for it
    with Store.open(copy) as store:
        assert store.registry.listings.repositories(100).names == ["lib/one", "lib/two", "multi"]
        tagged, more = store.registry.listings.images(100)
        assert ([image.repository for image in tagged], more) == (["lib/one", "lib/two", "multi"], False)
        assert store.registry.listings.tags("lib/two", 100).names == ["1"]


NAMES = [f"lib/{letter}" for letter in "abcdefgh"]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with some repositories of some tags: the records of each table are in one page, and in order."""
    data = tmp_path_factory.mktemp("many") / "data"
    with Store.open(data) as store:
        for name in NAMES:
            for tag in ("1", "2", "3"):
                push_image(store, name, tag, [])
    return data


def _in_pages(step: Callable[[str], Page]) -> list[str]:
    """The names of a list, page by page."""
    names: list[str] = []
    last = ""
    while True:
        page = step(last)
        names += page.names
        if not page.more:
            return names
        assert page.last > last
        last = page.last


def _listed(data: Path, size: int) -> dict[str, list[str]]:
    with Store.open(data, readonly=True) as store:
        listings = store.registry.listings
        found = {"": _in_pages(lambda last: listings.repositories(size, last))}
        for name in NAMES:
            found[name] = _in_pages(lambda last, name=name: listings.tags(name, size, last))  # type: ignore[misc]
    return found


@pytest.mark.parametrize("table", [Table.MANIFEST_LINKS, Table.TAGS], ids=lambda table: table.label)
def test_a_flipped_byte_of_a_key_hides_no_other_name_behind_it(many: Path, tmp_path: Path, table: Table) -> None:
    """Wherever a search for the beginning of a page of a list may come to it."""
    data = tmp_path / "data"
    shutil.copytree(many, data)
    whole = _listed(data, 100)
    assert whole == {"": NAMES, **{name: ["1", "2", "3"] for name in NAMES}}
    for record in records(data, table):
        if not record.key.startswith(b"lib/"):
            continue
        name, _, rest = record.key.partition(b"\0")
        own = {(name.decode(), rest.decode()) if table is Table.TAGS else ("", name.decode())}
        for bits in (0x80, 0x40, 0x04, 0x1E):
            flip_key(data, record, 0, bits)
            for size in (1, 2, 100):
                listed = _listed(data, size)
                missed = {(of, one) for of, names in whole.items() for one in names if one not in listed[of]}
                assert missed <= own, (record.key, bits, size)
            flipped = Record(table, bytes([record.key[0] ^ bits]) + record.key[1:], record.value)
            flip_key(data, flipped, 0, bits)


@pytest.mark.parametrize("bits", [0x80, 0x40, 0x1E])
def test_a_flipped_byte_of_a_tags_key_has_no_manifest_collected(many: Path, tmp_path: Path, bits: int) -> None:
    """Of whose tags none is seen: that of the key itself, and those that a search for them is led past."""
    chosen = [record for record in records(many, Table.TAGS) if record.key.endswith(b"2")]
    links = {record.key for record in records(many, Table.MANIFEST_LINKS)}
    for number, record in enumerate(chosen):
        data = tmp_path / str(number)
        shutil.copytree(many, data)
        flip_key(data, record, 0, bits)
        with Store.open(data) as store, contextlib.suppress(CorruptError):
            collect(store)
        assert {one.key for one in records(data, Table.MANIFEST_LINKS)} == links, record.key
        shutil.rmtree(data)


@pytest.mark.parametrize("bits", [0x01, 0x80])
def test_a_flipped_byte_of_a_links_key_has_nothing_removed_that_others_have(
    many: Path, tmp_path: Path, bits: int
) -> None:
    """By a repository that lets go of it."""
    shutil.copytree(many, tmp_path / "data")
    with Store.open(tmp_path / "data") as store:
        digest = store.registry.manifest(NAMES[0], "1").digest
    for number, record in enumerate(one for one in records(many, Table.MANIFEST_LINKS) if one.key[0] == digest.key[0]):
        data = tmp_path / str(number)
        shutil.copytree(many, data)
        flip_key(data, record, 1, bits)
        with Store.open(data) as store:
            found = set()
            for name in NAMES:
                with contextlib.suppress(ManifestUnknownError, CorruptError):
                    found.add(store.registry.manifest(name, digest).digest)
            with contextlib.suppress(ManifestUnknownError, CorruptError):
                store.registry.delete_manifest(NAMES[0], digest)
        assert found == {digest}
        assert digest.key in {one.key for one in records(data, Table.MANIFESTS)}, record.key
        shutil.rmtree(data)


def test_a_flipped_byte_of_a_spool_file(copy: Path, made: tuple[Path, Sample]) -> None:
    blobs, images = _expected(made[1])
    (path,) = (copy / "spool").iterdir()
    for at in (0, 131_071, 131_072, 200_000, len(SPOOLED) - 1):
        flip_file(path, at)
        found = read_everything(copy, blobs, images)
        spooled = str(Digest.of(SPOOLED))
        assert found.pop(spooled).startswith("CorruptError: corrupt extent")
        assert set(found.values()) == {"right"}
        flip_file(path, at)


# -- through the service ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def serving(data: Path) -> Iterator[tuple[Service, httpx.Client]]:
    with running_service(data) as service, httpx.Client(base_url=service.url, timeout=30) as http:
        yield service, http


def get_blob(http: httpx.Client, repository: str, blob: bytes) -> tuple[int, bytes, str]:
    """(status, the bytes that came, what is wrong with the answer) of a blob."""
    got = b""
    try:
        with http.stream("GET", f"/v2/{repository}/blobs/{Digest.of(blob)}") as answer:
            for piece in answer.iter_raw():
                got += piece
            return answer.status_code, got, ""
    except httpx.RemoteProtocolError as error:
        return 200, got, str(error)


# Which table, which of its records, whose blob cannot be read then.
THROUGH_HTTP: dict[str, tuple[Table, str, bytes]] = {
    "frame": (Table.FRAMES, "lib/one", OPAQUE),
    "extent": (Table.EXTENTS, "lib/one", OPAQUE),
    "object": (Table.OBJECTS, "lib/one", OPAQUE),
    "recipe": (Table.RECIPES, "lib/two", APP),
    "layer": (Table.LAYERS, "lib/two", APP),
    "blob": (Table.BLOBS, "lib/two", APP),
}


@pytest.mark.parametrize("name", THROUGH_HTTP)
def test_the_service_answers_damage_with_an_error(copy: Path, name: str) -> None:
    table, repository, blob = THROUGH_HTTP[name]
    for record in records(copy, table):
        flip_record(copy, record, len(record.value) // 2)
    with serving(copy) as (service, http):
        status, got, problem = get_blob(http, repository, blob)
        assert status == 500 or problem
        if status == 500:
            error = json.loads(got)["errors"][0]
            assert error["code"] == "CORRUPT"
            assert error["detail"]["kind"]
            assert error["detail"]["name"]
        else:
            assert blob.startswith(got)
            assert len(got) < len(blob)
        assert "corrupt" in service.log()
        # It goes on serving.
        assert http.get("/v2/").status_code == 200
        assert http.get("/healthz").status_code == 200


def test_damage_behind_the_first_megabyte_breaks_the_answer_off(tmp_path: Path) -> None:
    from tests.store.helpers import ingest_all, noise, push

    content = noise(6_000_000)
    data = tmp_path / "data"
    with Store.open(data) as store:
        push(store, content)
        ingest_all(store)
    flip_record(data, records(data, Table.FRAMES)[-1], -500)
    with serving(data) as (service, http):
        status, got, problem = get_blob(http, "some/repository", content)
        assert status == 200
        assert problem, "the body came to its end"
        assert content.startswith(got)
        assert "corrupt frame" in service.log()
        headers = {"Range": "bytes=0-1999999"}
        answer = http.get(f"/v2/some/repository/blobs/{Digest.of(content)}", headers=headers)
        assert (answer.status_code, answer.content) == (206, content[:2_000_000])


@pytest.mark.parametrize(
    ("table", "path"),
    [(Table.MANIFESTS, "/v2/lib/one/manifests/1"), (Table.TAGS, "/v2/lib/one/manifests/1")],
    ids=["manifest", "tag"],
)
def test_a_damaged_manifest_or_tag_is_an_error(copy: Path, table: Table, path: str) -> None:
    for record in records(copy, table):
        flip_record(copy, record, len(record.value) // 2)
    with serving(copy) as (_, http):
        answer = http.get(path)
        assert answer.status_code == 500
        assert answer.json()["errors"][0]["code"] == "CORRUPT"


def test_a_service_starts_with_damaged_records_of_any_kind(copy: Path) -> None:
    """And takes new images: what is damaged is nobody's problem but its own."""
    from tests.service.pushes import push_image as push_over_http

    for table in READ_TABLES:
        record = records(copy, table)[0]
        if len(record.value) > 8:
            flip_record(copy, record, len(record.value) // 2)
    with serving(copy) as (_, http):
        push_over_http(http, "new/image", "1")
        assert http.get("/v2/new/image/manifests/1").status_code == 200


def _flip(data: Path, table: Table, key: bytes) -> None:
    (record,) = (record for record in records(data, table) if record.key == key)
    flip_record(data, record, -1)


def test_a_damaged_record_keeps_nothing_else_from_being_deleted(copy: Path, made: tuple[Path, Sample]) -> None:
    shared = Digest.of(gzipped(BASE))
    with Store.open(copy) as store:
        other = store.registry.manifest("lib/one", "1").digest
        push_image(store, "lib/copy", "1", [(gzipped(BASE), OCI_LAYER_GZIP)])
        push_image(store, "lib/one", "2", [])
        gone = store.registry.manifest("lib/one", "2").digest
    assert other == made[1].images["lib/one:1"]
    _flip(copy, Table.TAGS, tag_key("lib/one", "1"))
    _flip(copy, Table.MANIFEST_LINKS, holder_key("lib/copy", other))
    _flip(copy, Table.LINKS, holder_key("lib/two", shared))
    with serving(copy) as (service, http):
        for path in (f"lib/one/manifests/{gone}", f"lib/one/manifests/{other}", f"lib/one/blobs/{shared}"):
            assert http.delete(f"/v2/{path}").status_code == 202
        assert http.get("/v2/lib/one/manifests/2").status_code == 404  # the tag went with its manifest
        assert http.get("/v2/lib/one/manifests/1").status_code == 500
        # What may be somebody else's stays.
        assert http.get(f"/v2/lib/copy/manifests/{other}").status_code == 200
        assert http.get(f"/v2/lib/two/blobs/{shared}").content == gzipped(BASE)
        assert "is left, whether it points to" in service.log()


def test_a_damaged_manifest_can_be_deleted(copy: Path, made: tuple[Path, Sample]) -> None:
    """With its entry among the referrers of its subject."""
    about, subject = made[1].images["about"], made[1].images["lib/one:1"]
    _flip(copy, Table.MANIFESTS, about.key)
    with serving(copy) as (_, http):
        url = f"/v2/lib/one/referrers/{subject}"
        assert len(http.get(url).json()["manifests"]) == 1
        assert http.delete(f"/v2/lib/one/manifests/{about}").status_code == 202
        assert http.get(url).json()["manifests"] == []
        assert http.get(f"/v2/lib/one/manifests/{subject}").status_code == 200


def test_a_blob_is_mounted_past_a_damaged_link(copy: Path) -> None:
    """From whoever else has it; if nobody has, it is to be uploaded."""
    shared, alone = Digest.of(gzipped(BASE)), Digest.of(OPAQUE)
    _flip(copy, Table.LINKS, holder_key("lib/one", shared))
    _flip(copy, Table.LINKS, holder_key("lib/one", alone))
    with serving(copy) as (_, http):
        for digest, status in ((shared, 201), (alone, 202)):
            answer = http.post("/v2/new/blobs/uploads/", params={"mount": str(digest)})
            assert answer.status_code == status, answer.text
        assert http.get(f"/v2/new/blobs/{shared}").content == gzipped(BASE)


# -- pages of the database -------------------------------------------------------------------------------------


@pytest.mark.parametrize("trees", [False, True], ids=["any page", "trees"])
@pytest.mark.parametrize("seed", range(PAGE_SEEDS))
def test_damaged_pages_give_no_wrong_bytes(copy: Path, made: tuple[Path, Sample], seed: int, trees: bool) -> None:
    """B-tree pages and free pages too; the reader may die of it, or be told that things are not there."""
    randomness = random.Random(f"pages {seed}")
    offsets = flip_pages(copy, randomness, randomness.choice((1, 5, 50, 400)), trees=trees)
    outcome = in_child(read_everything, copy, *_expected(made[1]))
    print(f"seed {seed}, {len(offsets)} bytes changed: {outcome.signal or outcome.value or outcome.error}")
    if outcome.value is None:
        # Dead, or an error before anything was read; no other exception than ours.
        assert outcome.signal is not None or "pagepool.errors" in outcome.error.splitlines()[-1], outcome.error
        return
    kinds = (CorruptError, BlobUnknownError, ManifestUnknownError, NameUnknownError, BusyError, StoreFormatError)
    allowed = tuple(kind.__name__ for kind in kinds)
    for name, result in outcome.value.items():
        assert result == "right" or result.startswith(allowed), name


@pytest.mark.parametrize("seed", range(3))
def test_a_service_over_damaged_pages_serves_no_wrong_bytes(copy: Path, seed: int) -> None:
    """Its workers may die and be started again; whoever asks gets the right bytes, an error, or no answer."""
    print("offsets", flip_pages(copy, random.Random(f"service {seed}"), 20 * seed + 2, trees=True))
    try:
        with serving(copy) as (_, http):
            for repository, blob in (("lib/one", OPAQUE), ("lib/two", APP), ("multi", gzipped(APP))):
                for _ in range(2):
                    try:
                        status, got, problem = get_blob(http, repository, blob)
                    except httpx.TransportError:
                        continue
                    assert status in (200, 404, 500, 503)
                    if status == 200:
                        assert got == blob or (problem and blob.startswith(got))
    except ServiceError:
        return  # a database that cannot even be opened: the service says so and does not start
