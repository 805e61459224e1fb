"""What every encoder has, and the guard around what it makes."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import count
from typing import TYPE_CHECKING, Protocol

from blake3 import blake3

from pagepool.errors import BusyError, CorruptError
from pagepool.extents import EXTENT_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

log = logging.getLogger("pagepool.store")

PROBE_SIZE = 1 << 20  # plain bytes by which a candidate is judged before the whole blob is compared
GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_MOST_RUNS = 3  # of an encoder that dies, for one reader
_LONGEST_HEADER = 1024  # bytes of a gzip header that are kept in a blob's record, which every request for it reads


_is_background = ContextVar("is_background", default=False)


@contextmanager
def in_background() -> Iterator[None]:
    """Have encoders run in processes that give way to all others."""
    token = _is_background.set(True)
    try:
        yield
    finally:
        _is_background.reset(token)


def is_background() -> bool:
    """Whether nobody waits for what is encoded now."""
    return _is_background.get()


class EncoderMissingError(BusyError):
    """What makes a blob again is not installed here, or did not come to its end. What is stored is all right."""


class EncoderDiedError(EncoderMissingError):
    """What makes a blob again was killed, or failed. Another time it may not."""


class Encoder(Protocol):
    """Makes a compressed blob out of a tar."""

    def encode(self) -> bytes:
        """The parameters as stored: JSON."""

    def is_here(self) -> bool:
        """Whether this machine has exactly what made the blob. If not, others may make the same bytes."""

    def compress(self, plain: Iterable[bytes], look: Callable[[], None] = lambda: None) -> Iterator[bytes]:
        """Compress a tar. The last piece is written once it has ended.

        Args:
            look: called now and then, whether there is something to take or give or not; what it raises ends this.

        Raises:
            EncoderMissingError: it cannot be run here.
            EncoderDiedError: it ended before its time.
        """


def checked(pieces: Iterable[bytes], extents: Iterable[bytes], name: str) -> Iterator[bytes]:
    """Pass a rebuilt blob on by extents, each compared with its digest first.

    Raises:
        CorruptError: it is not what was pushed; nothing of the wrong extent was yielded.
    """
    held = bytearray()
    digests = iter(extents)
    source = iter(pieces)
    ended = False
    while not ended or held:
        while len(held) < EXTENT_SIZE and not ended:
            piece = next(source, None)
            ended = piece is None
            held += piece or b""
        if not held:
            return
        extent = bytes(held[:EXTENT_SIZE])
        del held[:EXTENT_SIZE]
        if blake3(extent).digest() != next(digests, b""):
            raise CorruptError("blob", name, "the encoder makes other bytes than were pushed")
        yield extent


def remake(
    encoder: Encoder,
    plain: Callable[[], Iterable[bytes]],
    extents: Sequence[bytes],
    name: str,
    look: Callable[[], None] = lambda: None,
) -> Iterator[bytes]:
    """Make a blob out of its tar, see `checked`.

    An encoder that dies is run again, a few times. Until it is where it was, empty pieces are yielded.

    Args:
        plain: begins the tar, each time anew.
        look: called now and then; what it raises ends this.

    Raises:
        CorruptError: it is not what was pushed.
        EncoderMissingError: nor can it be said that it should be: what made it is not here.
        EncoderDiedError: it has died too often.
    """
    yielded = 0
    for runs in count(1):
        try:
            for number, extent in enumerate(checked(encoder.compress(plain(), look), extents, name)):
                is_new = number >= yielded
                yielded += is_new
                yield extent if is_new else b""
            return
        except EncoderDiedError as error:
            if runs == _MOST_RUNS:
                raise
            log.warning("blob %s is made again from its beginning: %s", name, error)
        except CorruptError as error:
            if error.kind != "blob" or encoder.is_here():
                raise
            reason = f"rebuilding blob {name} needs {encoder}; what is here makes other bytes"
            raise EncoderMissingError(reason) from error


def gzip_header(head: bytes) -> bytes | None:
    """The header of a gzip member (RFC 1952, section 2.3); None if it is no gzip, or too long."""
    head = head[:_LONGEST_HEADER]
    if len(head) < 10 or head[:2] != GZIP_MAGIC:
        return None
    flags, end = head[3], 10
    if flags & 4:
        end += 2 + int.from_bytes(head[end : end + 2], "little")
    for flag in (8, 16):
        if flags & flag:
            zero = head.find(b"\0", end)
            if zero < 0:
                return None
            end = zero + 1
    end += 2 if flags & 2 else 0
    return head[:end] if end <= len(head) else None
