"""The plain prototype stores what it says: the extents of all files, each once, in frames that can be read."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import lmdb
import pytest
import zstandard

from pagepool.digest import blake3_raw
from pagepool.errors import CorruptError, LayerInvalidError
from pagepool.extents import EXTENT_SIZE
from pagepool_service.bench.images import load_image
from pagepool_service.bench.prototype import Prototype, measure_prototype
from tests.bench.samples import write_layout

if TYPE_CHECKING:
    from pathlib import Path

LONG = f"{'long/' * 40}name"  # has a header of its own before it
FILES = {
    "shared": os.urandom(5 << 20),  # goes over the ends of chunks
    "text": b"some text\n" * 60_000,
    "empty": b"",
    LONG: b"at a long name",
    "exact": os.urandom(2 * EXTENT_SIZE),
}


def extents(*contents: bytes) -> dict[bytes, bytes]:
    pieces = (data[start : start + EXTENT_SIZE] for data in contents for start in range(0, len(data), EXTENT_SIZE))
    return {blake3_raw(piece): piece for piece in pieces}


def stored(directory: Path) -> dict[bytes, bytes]:
    """All extents, read by way of the index."""
    found: dict[bytes, bytes] = {}
    with lmdb.open(str(directory), max_dbs=2, readonly=True) as env, env.begin() as txn:
        index, frames = (env.open_db(name, txn=txn, create=False) for name in (b"extents", b"frames"))
        for digest, place in txn.cursor(index):
            number, offset, size = place[:8], *(int.from_bytes(part, "big") for part in (place[8:12], place[12:]))
            frame = txn.get(number, db=frames)
            assert frame is not None
            found[digest] = zstandard.ZstdDecompressor().decompress(frame)[offset : offset + size]
    return found


def test_extents_are_stored_once(tmp_path: Path) -> None:
    write_layout(tmp_path / "old", FILES)
    newer = {**FILES, "text": b"another text\n" * 60_000}
    write_layout(tmp_path / "new", newer)
    images = [load_image(tmp_path / name) for name in ("old", "new")]
    store = tmp_path / "store"
    store.mkdir()
    with Prototype(store) as prototype:
        first = prototype.read(images[0])
        size = (store / "data.mdb").stat().st_size
        second = prototype.read(images[1])
    assert (store / "data.mdb").stat().st_size < size + (1 << 20)
    assert stored(store) == extents(*FILES.values(), *newer.values())
    assert first.plain_size % 512 == second.plain_size % 512 == 0
    assert first.plain_size > sum(map(len, FILES.values()))
    assert first.seconds > 0


def test_what_it_cannot_read_ends_it(tmp_path: Path) -> None:
    """With the error, not with threads that wait for each other."""
    write_layout(tmp_path / "bad", FILES)
    image = load_image(tmp_path / "bad")
    (layer,) = image.layers
    layer.path.write_bytes(layer.path.read_bytes()[:-1_000_000])
    store = tmp_path / "store"
    store.mkdir()
    with Prototype(store) as prototype, pytest.raises(LayerInvalidError):
        prototype.read(image)
    layer.path.write_bytes(b"no tar " * 1_000_000)
    with Prototype(store) as prototype, pytest.raises(ValueError, match="invalid literal"):
        prototype.read(image)


def test_it_leaves_nothing_behind(tmp_path: Path) -> None:
    write_layout(tmp_path / "image", FILES)
    image = load_image(tmp_path / "image")
    (once,) = measure_prototype([image], tmp_path / "store")
    assert once.name == "image"
    image.layers[0].path.unlink()
    with pytest.raises(CorruptError, match="the prototype"):
        measure_prototype([image], tmp_path / "store")
    assert not (tmp_path / "store").exists()
