"""Push into a store as the service does, without HTTP; and tars to push."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
import uuid
from typing import TYPE_CHECKING

import zstandard

from pagepool.digest import Digest
from pagepool_service.maintenance import Maintenance
from pagepool_service.store.sums import sum_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from pagepool_service.store.store import Store

REPOSITORY = "some/repository"


def push(store: Store, data: bytes, *, repository: str = REPOSITORY, algorithm: str = "sha256") -> Digest:
    """Take bytes in as a blob of a repository, as the end of an upload does."""
    path = store.uploads / str(uuid.uuid4())
    path.write_bytes(data)
    return push_file(store, path, repository=repository, algorithm=algorithm)


def push_file(store: Store, path: Path, *, repository: str = REPOSITORY, algorithm: str = "sha256") -> Digest:
    """Take a file in as a blob; it is gone afterwards."""
    sums = sum_file(path, algorithm).sums()
    store.blobs.admit(path, sums, store.registry.linker(repository, sums.digest))
    return sums.digest


def read(store: Store, digest: Digest, start: int = 0, end: int | None = None) -> bytes:
    """A blob's bytes."""
    return b"".join(store.blobs.read(digest, start, end))


def ingest_all(store: Store, **options: object) -> int:
    """Do all the work that waits."""
    return Maintenance(store, **options).run_all()  # type: ignore[arg-type]


def noise(size: int, seed: object = 0) -> bytes:
    """Bytes that do not compress, the same for the same seed."""
    return random.Random(f"noise {seed}").randbytes(size)


def text(size: int, seed: object = 0) -> bytes:
    """Bytes that compress about as program files do, the same for the same seed."""
    randomness = random.Random(f"text {seed}")
    words = [randomness.randbytes(randomness.randrange(2, 12)) for _ in range(400)]
    parts: list[bytes] = []
    made = 0
    while made < size:
        parts.append(randomness.choice(words))
        made += len(parts[-1])
    return b"".join(parts)[:size]


def make_tar(
    files: Mapping[str, bytes], *, format: int = tarfile.GNU_FORMAT, extra: Iterable[tarfile.TarInfo] = ()
) -> bytes:
    """A tar of regular files, and of members without data."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            member.mtime = 1_700_000_000
            archive.addfile(member, io.BytesIO(content))
        for member in extra:
            archive.addfile(member)
    return out.getvalue()


def gzipped(data: bytes, level: int = 6) -> bytes:
    """One gzip member, the same for the same data."""
    return gzip.compress(data, level, mtime=0)


def zstd(data: bytes) -> bytes:
    """One zstd frame."""
    return zstandard.ZstdCompressor(3).compress(data)
