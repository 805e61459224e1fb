"""A large layer, for measuring what memory it takes: real files, repeated, some of them changed or replaced by noise.

Of each three files one comes as it is, which deduplication finds again in the next round; one has a stamp in every
64 KiB, so that it compresses as real files do but is always new; one is random. The last quarter is one single
file. From a seed: the same every time, given the same images.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import tarfile
from typing import TYPE_CHECKING

from pagepool.digest import Digest
from pagepool.errors import ImageInvalidError
from pagepool.oci import Manifest, parse_manifest
from pagepool.oci.mediatypes import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST
from pagepool_service.bench.images import SourceBlob, SourceImage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SIZE = 4 << 30
_POOL_SIZE = 192 << 20  # real content that is repeated; kept in memory
_STAMP_EVERY = 64 << 10


def make_big_image(source: SourceImage, directory: Path, size: int = SIZE) -> SourceImage:
    """Write an image with one plain layer of at least `size` bytes into a directory."""
    layer_path, config_path = directory / "layer.tar", directory / "config.json"
    hasher = hashlib.sha256()
    with layer_path.open("wb") as file:
        for piece in _tar(source, size):
            hasher.update(piece)
            file.write(piece)
    layer = SourceBlob(Digest("sha256", hasher.digest()), layer_path.stat().st_size, layer_path)
    rootfs = {"type": "layers", "diff_ids": [str(layer.digest)]}
    config_path.write_text(json.dumps({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs}))
    config = SourceBlob(Digest.of(config_path.read_bytes()), config_path.stat().st_size, config_path)
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": str(config.digest), "size": config.size},
        "layers": [{"mediaType": OCI_LAYER, "digest": str(layer.digest), "size": layer.size}],
    }
    parsed = parse_manifest(json.dumps(manifest).encode(), OCI_MANIFEST)
    assert isinstance(parsed, Manifest)
    return SourceImage("big", parsed, config, (layer,))


def _tar(source: SourceImage, size: int) -> Iterator[bytes]:
    """The tar, in pieces."""
    rng = random.Random(size)
    real = _real_files(source)
    number = written = 0
    while written < size - size // 4:
        data = _varied(real[number % len(real)], number, number // len(real), rng)
        yield from _member(f"files/{number // 1000:04}/{number:07}", len(data), iter((data,)))
        written += len(data)
        number += 1
    yield from _member("single", size // 4, _endless(rng, real))
    yield bytes(2 * tarfile.BLOCKSIZE)


def _varied(data: bytes, number: int, turn: int, rng: random.Random) -> bytes:
    kind = (number + turn) % 3
    if kind == 1:
        return _stamped(data, number)
    return rng.randbytes(len(data)) if kind == 2 else data


def _endless(rng: random.Random, real: list[bytes]) -> Iterator[bytes]:
    """Noise and stamped real content in turn."""
    for number in itertools.count():
        yield rng.randbytes(_STAMP_EVERY) if number % 2 else _stamped(real[number // 2 % len(real)], -number)


def _member(name: str, size: int, content: Iterator[bytes]) -> Iterator[bytes]:
    """A regular file of a tar: header, as much of the content as it has room for, padding."""
    member = tarfile.TarInfo(name)
    member.size, member.mtime = size, 1735689600
    yield member.tobuf(tarfile.PAX_FORMAT)
    left = size
    while left:
        piece = next(content)[:left]
        left -= len(piece)
        yield piece
    yield bytes(-size % tarfile.BLOCKSIZE)


def _stamped(data: bytes, number: int) -> bytes:
    changed = bytearray(data)
    for at in range(0, len(changed) - 16, _STAMP_EVERY):
        changed[at : at + 16] = hashlib.blake2b(f"{number} {at}".encode(), digest_size=16).digest()
    return bytes(changed)


def _real_files(source: SourceImage) -> list[bytes]:
    """File contents out of an image's layers, up to a bound."""
    found: list[bytes] = []
    total = 0
    for layer in source.layers:
        with tarfile.open(layer.path, mode="r|*") as archive:
            for member in archive:
                content = archive.extractfile(member) if member.isreg() and member.size else None
                if content is not None and total + member.size <= _POOL_SIZE:
                    found.append(content.read())
                    total += member.size
    if not found:
        raise ImageInvalidError(source.name, "there are no files in its layers")
    return found
