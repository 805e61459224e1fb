"""What cannot be mounted: stored and readable all the same, with the reason; nothing of the attempt is left."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pagepool.digest import Digest
from pagepool.errors import LayerInvalidError
from pagepool.image import Limits
from pagepool_service.inflate import Compression, InflateLimits, inflate
from pagepool_service.store.environment import Table
from pagepool_service.store.fsck import check_store
from pagepool_service.store.schema import LayerState
from pagepool_service.store.store import Store
from tests.ingest.sparse import sparse_tar
from tests.ingest.test_layers import frames, members
from tests.store.helpers import gzipped, ingest_all, make_tar, noise, push, read, text, zstd

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TAR = make_tar({"a": text(900_000, 1), "b": noise(300_000, 2), "c": text(3000, 3)})


def hard_link(name: str, target: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type = tarfile.LNKTYPE
    member.linkname = target
    return member


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :]


# A blob, and a word that the reason must have.
REFUSED: dict[str, tuple[bytes, str]] = {
    "random bytes": (noise(500_000), "tar"),
    "a text": (b"hello world, this is no archive\n" * 40, "tar"),
    "json": (b'{"a": 1}', "tar"),
    "half a header": (TAR[:300], "tar"),
    "gzip of no tar": (gzipped(noise(300_000)), "tar"),
    "gzip cut short": (gzipped(TAR)[:-9], "gzip"),
    "gzip cut in its middle": (gzipped(TAR)[: len(gzipped(TAR)) // 2], "gzip"),
    "gzip cut in its header": (gzipped(TAR)[:5], "gzip"),
    "gzip with a wrong checksum": (flipped(gzipped(TAR), -6), "gzip"),
    "gzip with a flipped byte": (flipped(gzipped(TAR), 100_000), "gzip"),
    "gzip with garbage behind": (gzipped(TAR) + b"garbage", "after its last member"),
    "gzip members, the last cut": (members(TAR)[:-3], "gzip"),
    "zstd cut short": (zstd(TAR)[:-1], "zstd"),
    "zstd cut in its middle": (zstd(TAR)[: len(zstd(TAR)) // 2], "zstd"),
    "zstd cut between frames": (frames(TAR)[:-2], "zstd"),
    "zstd with a flipped byte": (flipped(frames(TAR), 20_000), ""),
    "zstd with garbage behind": (zstd(TAR) + b"garbage, and more", "zstd"),
    "bzip2": (bz2.compress(TAR), "bzip2"),
    "xz": (lzma.compress(TAR), "xz"),
    "a file that is cut short": (TAR[:700_000], "a"),
    "a member that escapes": (make_tar({"../../etc/passwd": b"x"}), "escapes the root"),
    "a hard link that escapes": (make_tar({"a": b""}, extra=[hard_link("b", "../../x")]), "escapes the root"),
}


def assert_nothing_left(store: Store) -> None:
    """No recipe of an attempt that failed, no job, no file, and nothing that refers to what was stored."""
    with store.env.read() as txn:
        for table in (Table.RECIPES, Table.LAYERS, Table.JOBS):
            assert txn.count(table) == 0, table
    assert list((store.data / "spool").iterdir()) == []


@pytest.mark.parametrize("name", REFUSED)
def test_the_reason_is_kept_and_the_blob_stays(store: Store, name: str) -> None:
    blob, word = REFUSED[name]
    digest = push(store, blob)
    ingest_all(store)
    record = store.blobs.stat(digest)
    assert record.state is LayerState.UNMOUNTABLE
    assert word in record.reason
    assert record.diff_id is None
    assert read(store, digest) == blob
    assert_nothing_left(store)


def test_what_was_refused_leaves_a_whole_store(data: Path) -> None:
    with Store.open(data) as store:
        for blob, _ in REFUSED.values():
            push(store, blob)
        ingest_all(store)
    report = check_store(data)
    assert report.problems == []
    # Extents of layers that were given up half-way: collection will take them.
    assert all("totals" not in note for note in report.notes)


def test_the_good_layer_behind_bad_ones_is_read(store: Store) -> None:
    for name in ("random bytes", "gzip cut short", "a file that is cut short"):
        push(store, REFUSED[name][0])
    digest = push(store, gzipped(TAR))
    ingest_all(store)
    assert store.blobs.stat(digest).state is LayerState.READY


# -- bombs ---------------------------------------------------------------------------------------------------


def refused_with(
    store: Store, blob: bytes, *, limits: Limits | None = None, inflating: InflateLimits | None = None
) -> str:
    digest = push(store, blob)
    ingest_all(store, limits=limits, inflate_limits=inflating)
    record = store.blobs.stat(digest)
    assert record.state is LayerState.UNMOUNTABLE
    assert read(store, digest) == blob
    assert_nothing_left(store)
    return record.reason


@pytest.mark.parametrize("pack", [gzipped, zstd, lambda data: gzip.compress(data, 9)])
def test_a_stream_that_grows_too_much_is_a_bomb(store: Store, pack: object) -> None:
    bomb = pack(make_tar({"zeros": bytes(30 << 20)}))  # type: ignore[operator]
    reason = refused_with(store, bomb, inflating=InflateLimits(ratio=200, ratio_from=4 << 20))
    assert "decompression bomb" in reason
    assert "times its size" in reason


def test_a_stream_that_is_too_large_is_a_bomb(store: Store) -> None:
    reason = refused_with(store, gzipped(make_tar({"a": noise(3 << 20)})), inflating=InflateLimits(plain_size=2 << 20))
    assert f"more than {2 << 20} plain bytes" in reason


def test_a_small_archive_of_zeros_is_none(store: Store) -> None:
    tar = make_tar({"zeros": bytes(30 << 20)})
    digest = push(store, gzipped(tar))
    ingest_all(store)
    assert store.blobs.stat(digest).diff_id == Digest.of(tar)


def test_a_bomb_of_gzip_in_many_members(store: Store) -> None:
    member = gzipped(bytes(4 << 20))
    reason = refused_with(store, member * 8, inflating=InflateLimits(ratio=200, ratio_from=4 << 20))
    assert "decompression bomb" in reason


def test_a_zstd_window_that_is_too_large_is_refused(store: Store) -> None:
    """A frame header may ask the reader for any amount of memory."""
    window_4_gib = (22 << 3).to_bytes(1, "little")
    frame = b"\x28\xb5\x2f\xfd\x00" + window_4_gib + b"\x01\x00\x00"
    reason = refused_with(store, frame + bytes(200))
    assert "zstd" in reason


@pytest.mark.parametrize(
    ("limits", "word"),
    [
        (Limits(max_member_size=100_000), "100000"),
        (Limits(max_layer_size=1_000_000), "1000000"),
        (Limits(max_members=2), "2"),
    ],
)
def test_what_the_tar_claims_is_limited(store: Store, limits: Limits, word: str) -> None:
    assert word in refused_with(store, gzipped(TAR), limits=limits)


@pytest.mark.parametrize("claim", [1 << 50, (1 << 63) - 1, 513 << 30])
def test_a_sparse_file_that_claims_too_much_is_refused(store: Store, claim: int) -> None:
    reason = refused_with(store, sparse_tar("huge", claim, [(0, b"x"), (claim - 1, b"y")]))
    assert "huge" in reason


def test_an_extended_header_that_is_too_large_is_refused(store: Store) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("a")
        member.pax_headers = {"comment": "x" * (2 << 20)}
        archive.addfile(member)
    refused_with(store, gzipped(out.getvalue()))


# -- any bytes -----------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(["gzip", "members", "zstd", "frames"]),
    cut=st.integers(0, 4000),
    at=st.integers(0, 4000),
    bit=st.integers(0, 7),
    behind=st.binary(max_size=20),
)
def test_a_changed_stream_inflates_to_the_tar_or_is_refused(
    kind: str, cut: int, at: int, bit: int, behind: bytes
) -> None:
    """Cut, flipped, lengthened: never another exception, never other bytes without an error where there is a CRC."""
    tar = make_tar({"a": text(3000, 1), "b": noise(500, 2)})
    blob = bytearray({"gzip": gzipped, "members": members, "zstd": zstd, "frames": frames}[kind](tar))
    if cut < len(blob):
        del blob[cut:]
    if at < len(blob):
        blob[at] ^= 1 << bit
    changed = bytes(blob) + behind
    try:
        compression, chunks = inflate(iter([changed[:7], changed[7:]]), InflateLimits(plain_size=1 << 20))
        plain = b"".join(chunks)
    except LayerInvalidError:
        return
    if compression is Compression.GZIP and changed[: len(blob)]:
        assert tar.startswith(plain) or plain == tar


@given(pieces=st.lists(st.binary(max_size=50), max_size=8))
def test_any_bytes_are_inflated_or_refused(pieces: list[bytes]) -> None:
    def given_pieces() -> Iterator[bytes]:
        yield from (piece for piece in pieces if piece)

    try:
        _, chunks = inflate(given_pieces(), InflateLimits())
        plain = b"".join(chunks)
    except LayerInvalidError:
        return
    assert isinstance(plain, bytes)
