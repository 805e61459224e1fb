"""Find out which encoder made a blob."""

from __future__ import annotations

import json
import zlib
from itertools import islice
from typing import TYPE_CHECKING

from pagepool.errors import CorruptError
from pagepool_service.encoders.base import PROBE_SIZE, gzip_header
from pagepool_service.encoders.frozen import FrozenEncoder, can_run_programs, frozen_encoders
from pagepool_service.encoders.zlibs import ZlibEncoder, zlib_encoders

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pagepool_service.encoders.base import Encoder

# A beginning of zeros comes to one block of some bytes, from which nothing can be told.
_LEAST_COMPRESSED = 32 << 10
_LARGE_PROBE = 16 << 20
# Counts up with each encoder that is added: blobs that none of fewer made are tried again.
_GENERATION = 1


def tried() -> bytes:
    """What the record of a blob has in the place of an encoder when all that there are here make something else."""
    return b"tried %d" % (_GENERATION if can_run_programs() else 0)


def decode(stored: bytes, name: str) -> Encoder:
    """The encoder of a blob, from its parameters.

    Raises:
        CorruptError: they are no parameters.
    """
    try:
        fields = json.loads(stored)
    except ValueError as error:
        raise CorruptError("blob", name, f"its encoder cannot be read: {error}") from error
    if not isinstance(fields, dict):
        raise CorruptError("blob", name, f"its encoder cannot be read: {fields}")
    return FrozenEncoder.decode(fields, name) if "module" in fields else ZlibEncoder.decode(fields, name)


def probe(read: Callable[[int], bytes], size: int) -> bytes:
    """As much of a tar's beginning as tells encoders apart.

    Args:
        read: gives the first so many bytes.
        size: of all.
    """
    head = read(min(PROBE_SIZE, size))
    if len(head) < size and len(zlib.compress(head, 1)) < _LEAST_COMPRESSED:
        head = read(min(_LARGE_PROBE, size))
    return head


def candidates(
    head: bytes, plain_head: bytes, plain_size: int, look: Callable[[], None] = lambda: None
) -> Iterator[Encoder]:
    """The encoders whose output begins like the blob, the likeliest first.

    Args:
        head: the blob's first bytes; at least as many as `plain_head` can be compressed to, or all.
        plain_head: the tar's first bytes, see `probe`.
        plain_size: bytes of the whole tar.
        look: called before each that is run on the beginning; what it raises ends this.

    Raises:
        EncoderMissingError: what runs one of them fails.
    """
    whole = len(plain_head) == plain_size
    header = gzip_header(head)
    for encoder in zlib_encoders(header) if header is not None else ():
        look()
        made = b"".join(encoder.compress([plain_head]) if whole else islice(encoder.compress([plain_head]), 2))
        if len(made) > len(encoder.header) // 2 and head[: len(made)] == made[: len(head)]:
            yield encoder
    if can_run_programs():
        yield from frozen_encoders(head, plain_head, whole=whole, look=look)
