"""Sparse members, written by hand: GNU tar's PAX form 1.0, whose map lies before the data."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence


def sparse_tar(name: str, size: int, pieces: Sequence[tuple[int, bytes]]) -> bytes:
    """A tar of one sparse file of `size` bytes, with these pieces of data at these offsets."""
    return sparse_member(name, size, pieces) + bytes(1024)


def sparse_member(name: str, size: int, pieces: Sequence[tuple[int, bytes]]) -> bytes:
    """The member alone."""
    numbers = [len(pieces), *(number for offset, data in pieces for number in (offset, len(data)))]
    table = b"".join(b"%d\n" % number for number in numbers)
    table += bytes(-len(table) % 512)
    stored = table + b"".join(data for _, data in pieces)
    member = tarfile.TarInfo(f"GNUSparseFile.0/{name}")
    member.size = len(stored)
    member.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": name,
        "GNU.sparse.realsize": str(size),
    }
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(member, io.BytesIO(stored))
        end = archive.offset
    return out.getvalue()[:end]


def expand(size: int, pieces: Sequence[tuple[int, bytes]]) -> bytes:
    """The file's content."""
    content = bytearray(size)
    for offset, data in pieces:
        content[offset : offset + len(data)] = data
    return bytes(content)
