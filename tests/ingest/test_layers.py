"""Layers of real shape are understood, stored once, and rebuilt bit for bit."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
import zstandard

from pagepool.digest import Digest, blake3_raw
from pagepool.extents import EXTENT_SIZE
from pagepool.image import Limits
from pagepool_service.store.environment import Table
from pagepool_service.store.rebuild import rebuild
from pagepool_service.store.schema import ContentKind, LayerState
from pagepool_service.store.totals import Totals
from tests.fault.pushing import real_files
from tests.ingest.sparse import expand, sparse_tar
from tests.store.helpers import gzipped, ingest_all, make_tar, noise, push, read, text, zstd

if TYPE_CHECKING:
    from collections.abc import Callable

    from pagepool_service.store.store import Store


def real_tar(first: int, count: int, format: int = tarfile.GNU_FORMAT) -> bytes:
    """A tar of files of this Python's library."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as archive:
        for path in real_files()[first : first + count]:
            content = path.read_bytes()
            member = tarfile.TarInfo(str(path).lstrip("/"))
            member.size = len(content)
            member.mtime = 1_700_000_000.25 if format == tarfile.PAX_FORMAT else 1_700_000_000
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


def members(data: bytes) -> bytes:
    """Several gzip members, as pigz and concatenation make them, one of them empty."""
    cuts = [0, len(data) // 3, len(data) // 3, 2 * len(data) // 3 + 7, len(data)]
    return b"".join(gzip.compress(data[start:end], 3, mtime=0) for start, end in pairwise(cuts))


def frames(data: bytes) -> bytes:
    """Several zstd frames, with skippable ones before, between and behind."""
    skippable = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"12345"
    middle = len(data) // 2
    compressor = zstandard.ZstdCompressor(write_checksum=True)
    parts = (
        compressor.compress(data[:middle]),
        zstandard.ZstdCompressor(write_content_size=False).compress(data[middle:]),
    )
    return skippable + skippable.join(parts) + skippable


PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzipped,
    "gzip, stored": lambda data: gzip.compress(data, 0, mtime=0),
    "gzip members": members,
    "gzip, zeros behind": lambda data: gzipped(data) + bytes(512),
    "zstd": zstd,
    "zstd frames": frames,
}


def layer_of(store: Store, digest: Digest) -> tuple[bytes, int]:
    """What a layer's recipe rebuilds to, and the recipe."""
    with store.env.read() as txn:
        layer = store.blobs.layer(txn, store.blobs.record(txn, digest))
    assert layer is not None
    return b"".join(rebuild(store.env, store.extents, layer.recipe, 0, layer.plain_size)), layer.recipe


def count(store: Store, table: Table) -> int:
    with store.env.read() as txn:
        return txn.count(table)


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_a_layer_is_rebuilt_bit_for_bit(store: Store, packing: str, format: int) -> None:
    tar = real_tar(100, 60, format)
    blob = PACKINGS[packing](tar)
    digest = push(store, blob)
    ingest_all(store)
    record = store.blobs.stat(digest)
    assert (record.state, record.diff_id, record.reason) == (LayerState.READY, Digest.of(tar), "")
    assert record.content is (ContentKind.RECIPE if packing == "plain" else ContentKind.OBJECT)
    assert layer_of(store, digest)[0] == tar
    assert read(store, digest) == blob
    with store.env.read() as txn:
        layer = store.blobs.layer(txn, record)
    assert layer is not None
    assert layer.plain_size == len(tar)
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        assert layer.members == len(archive.getmembers())
    sizes = [path.stat().st_size for path in real_files()[100:160]]
    assert layer.file_bytes == sum(sizes)


def test_a_layer_of_many_batches(store: Store) -> None:
    """More than several batches hold, with files of all sizes, some of them several times."""
    randomness = random.Random(5)
    files = {}
    for number in range(100):
        size = randomness.choice((0, 1, 511, 512, 513, 4096, 131_071, 131_072, 131_073, 262_144, 3_000_000))
        files[f"dir/{number}"] = noise(size, number % 40)
    files["large"] = text(24_000_000)
    files["again"] = noise(3_000_000, 1)
    tar = make_tar(files)
    assert len(tar) > 40 << 20
    digest = push(store, zstd(tar))
    ingest_all(store)
    assert store.blobs.stat(digest).diff_id == Digest.of(tar)
    assert layer_of(store, digest)[0] == tar
    with store.env.read() as txn:
        totals = Totals.load(txn)
        assert totals.extents == txn.count(Table.EXTENTS)
    distinct = {
        content[start : start + 131_072] for content in files.values() for start in range(0, len(content), 131_072)
    }
    assert totals.files_plain == sum(map(len, distinct))


def test_a_second_layer_of_the_same_files_stores_no_extent(store: Store) -> None:
    files = {f"a/{number}": text(random.Random(number).randrange(1, 300_000), number) for number in range(30)}
    push(store, gzipped(make_tar(files)))
    ingest_all(store)
    before = [count(store, table) for table in (Table.EXTENTS, Table.OBJECTS)]
    with store.env.read() as txn:
        plain = Totals.load(txn).files_plain
    # Other names, other order, another dialect, another compression.
    other = make_tar({f"b/{name}": files[name] for name in sorted(files, reverse=True)}, format=tarfile.PAX_FORMAT)
    digest = push(store, other)
    ingest_all(store)
    assert layer_of(store, digest)[0] == other
    with store.env.read() as txn:
        assert Totals.load(txn).files_plain == plain
    # The plain blob's own list of extents is one more object.
    assert [count(store, table) for table in (Table.EXTENTS, Table.OBJECTS)] == [before[0], before[1] + 1]


def test_the_same_tar_in_two_compressions_has_one_recipe(store: Store) -> None:
    tar = real_tar(0, 30)
    digests = [push(store, blob) for blob in (gzipped(tar), zstd(tar), tar)]
    ingest_all(store)
    assert count(store, Table.LAYERS) == 1
    assert {layer_of(store, digest)[1] for digest in digests} == {layer_of(store, digests[0])[1]}
    with store.env.read() as txn:
        recipes = {key[:8] for key, _ in txn.scan(Table.RECIPES)}
    assert len(recipes) == 1
    for digest, blob in zip(digests, (gzipped(tar), zstd(tar), tar), strict=True):
        assert read(store, digest) == blob


@pytest.mark.parametrize(
    "tar",
    [b"", bytes(1024), bytes(10240), make_tar({}), make_tar({"empty": b""}), make_tar({"a": b"x"})[:1024]],
    ids=["no byte", "end blocks", "a record", "no member", "an empty file", "no end blocks"],
)
@pytest.mark.parametrize("pack", [bytes, gzipped, zstd])
def test_empty_and_bare_layers_are_ready(store: Store, tar: bytes, pack: Callable[[bytes], bytes]) -> None:
    digest = push(store, pack(tar))
    ingest_all(store)
    record = store.blobs.stat(digest)
    assert (record.state, record.diff_id) == (LayerState.READY, Digest.of(tar)), record.reason
    assert read(store, digest) == pack(tar)
    assert layer_of(store, digest)[0] == tar


def test_garbage_behind_the_end_is_kept(store: Store) -> None:
    tar = make_tar({"a": text(5000)}) + noise(3_000_000) + bytes(5_000_000)
    digest = push(store, zstd(tar))
    ingest_all(store)
    assert layer_of(store, digest)[0] == tar


def test_every_kind_of_member(store: Store) -> None:
    extra = []
    for kind, name in (
        (tarfile.DIRTYPE, "dir"),
        (tarfile.SYMTYPE, "link"),
        (tarfile.LNKTYPE, "hard"),
        (tarfile.CHRTYPE, "dev/null"),
        (tarfile.BLKTYPE, "dev/sda"),
        (tarfile.FIFOTYPE, "fifo"),
        (tarfile.REGTYPE, ".wh.gone"),
        (tarfile.REGTYPE, "dir/.wh..wh..opq"),
        (tarfile.REGTYPE, "dup"),
        (tarfile.REGTYPE, "n" * 200 + "/" + "m" * 200),
    ):
        member = tarfile.TarInfo(name)
        member.type = kind
        member.linkname = "file" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
        member.uid = 3_000_000
        member.devmajor, member.devminor = 1, 3
        extra.append(member)
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        tar = make_tar({"file": text(3000), "dup": b"first"}, format=format, extra=extra)
        digest = push(store, gzipped(tar))
        ingest_all(store)
        record = store.blobs.stat(digest)
        assert (record.state, record.reason) == (LayerState.READY, "")
        assert layer_of(store, digest)[0] == tar


def test_a_compressed_layer_can_be_dropped_for_its_encoder(store: Store) -> None:
    """Only where asked for; the blob is then rebuilt from the recipe, and every range of it is right."""
    tar = real_tar(50, 40)
    blobs = [gzipped(tar, level) for level in (1, 9)]
    digests = [push(store, blob) for blob in blobs]
    ingest_all(store, rebuild_compressed=True)
    assert [store.blobs.stat(digest).content for digest in digests] == [ContentKind.RECIPE] * 2
    for digest, blob in zip(digests, blobs, strict=True):
        assert read(store, digest) == blob
        for start, end in ((0, 1), (1, 100_000), (131_072, 131_073), (len(blob) - 5, len(blob))):
            assert read(store, digest, start, end) == blob[start:end]


@pytest.mark.parametrize("seed", range(8))
def test_holes_wherever_they_are(store: Store, seed: int) -> None:
    """Beginning and ending within extents and between them: the object is what it would be if they were written."""
    randomness = random.Random(seed)
    size = randomness.choice((EXTENT_SIZE, randomness.randrange(EXTENT_SIZE))) + randomness.randrange(20 * EXTENT_SIZE)
    some = {randomness.choice((1, EXTENT_SIZE)) * randomness.randrange(20) for _ in range(seed)}
    places = sorted(some & set(range(size)))
    ends = [randomness.randrange(at + 1, after + 1) for at, after in pairwise([*places, size])]
    pieces = [(at, b"x" * (end - at)) for at, end in zip(places, ends, strict=True)]
    tar = sparse_tar("file", size, pieces)
    digest = push(store, tar)
    ingest_all(store)
    assert store.blobs.stat(digest).state is LayerState.READY
    assert read(store, digest) == tar
    whole = expand(size, pieces)
    with store.env.read() as txn:
        record = store.extents.object_record(txn, blake3_raw(whole), size)
        found = b"".join(store.extents.extent(txn, name) for _, name in record.extents())
    assert found == whole


def test_a_file_that_is_nearly_all_hole_may_have_all_of_the_layers_limit(store: Store) -> None:
    """As a log by user number has it, or a disk of a virtual machine: nothing of a hole is stored."""
    digest = push(store, sparse_tar("lastlog", 3 << 30, [(0, b"first"), (2 << 30, b"x" * 292)]))
    ingest_all(store, limits=Limits(3 << 30, 3 << 30))
    record = store.blobs.stat(digest)
    assert (record.state, record.reason) == (LayerState.READY, "")
    assert (store.data / "store/data.mdb").stat().st_blocks * 512 < 16 << 20
