"""Downloads of what is named by its ETag: a digest, quoted, with ``+zstd`` behind it if the body is compressed.

Streamed into a file. A connection that breaks is tried again from the beginning: ranges of what is compressed are of no
use, and what is loaded this way is small.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO

import httpx
import zstandard
from blake3 import blake3

from pagepool.digest import Digest
from pagepool.errors import DigestMismatchError, InvalidError, LimitError, UnreachableError
from pagepool.transport.http import read_up_to

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pagepool.transport.http import Call, Session

_MOST_BYTES = 16 << 30
_MOST_TOLD = 1 << 16
# One call returns all that its input decompresses to, and 4 bytes can stand for a block of 128 KiB.
_ZSTD_STEP = 2 << 10


class UnmadeError(Exception):
    """What was asked for is still being made (202): never seen by those who do not say that they expect that answer.

    Args:
        body: of the answer.
    """

    def __init__(self, body: bytes) -> None:
        super().__init__("it is still being made")
        self.body = body


def download_verified(session: Session, call: Call, out: BinaryIO, *, limit: int = _MOST_BYTES) -> Digest:
    """Write the answer to a call into a file, plain, and compare it with its ETag. Blocks.

    Args:
        out: written from where it stands; it can be cut.
        limit: most plain bytes.

    Returns:
        the digest, a BLAKE3.

    Raises:
        DigestMismatchError: it is something else, or cannot be decompressed; `out` is cut where it stood.
        LimitError: it is too large; `out` is cut.
        UnreachableError: the connection broke, again and again, or the answer has no digest; `out` is cut.
        UnmadeError: it is still being made, and the call expects 202.
        PagepoolError: the answer is an error.
    """
    start = out.tell()
    failures = 0
    while True:
        try:
            return _download(session, call, out, limit)
        except httpx.TransportError as error:
            _cut(out, start)
            failures += 1
            if failures >= session.retry.attempts:
                raise session.translate(error) from error
            session.retry.sleep(session.retry.delay_s(failures))
        except BaseException:
            _cut(out, start)
            raise


def _download(session: Session, call: Call, out: BinaryIO, limit: int) -> Digest:
    size = 0
    found = blake3()
    with session.stream(call) as response:
        if response.status_code == 202:
            raise UnmadeError(read_up_to(response, _MOST_TOLD)[:_MOST_TOLD])
        expected = _expected(session, response)
        try:
            for piece in _plain(response):
                size += len(piece)
                if size > limit:
                    raise LimitError(call.about.name, size, limit)
                found.update(piece)
                out.write(piece)
        except zstandard.ZstdError as error:
            raise DigestMismatchError(expected, f"what cannot be decompressed ({error})", size) from error
    got = Digest("blake3", found.digest())
    if got != expected:
        raise DigestMismatchError(expected, got, size)
    return got


def _plain(response: httpx.Response) -> Iterator[bytes]:
    if response.headers.get("Content-Encoding", "identity") != "zstd":
        yield from response.iter_raw()
        return
    decoder = zstandard.ZstdDecompressor().decompressobj()
    for piece in response.iter_raw():
        for at in range(0, len(piece), _ZSTD_STEP):
            yield decoder.decompress(piece[at : at + _ZSTD_STEP])
    if not decoder.eof:
        raise zstandard.ZstdError("it ends early")


def _expected(session: Session, response: httpx.Response) -> Digest:
    tag = response.headers.get("ETag", "").removeprefix("W/").strip('"').removesuffix("+zstd")
    try:
        expected = Digest.parse(tag)
    except InvalidError:
        expected = None
    if expected is None or expected.algorithm != "blake3":
        raise UnreachableError(session.where, f"it does not say what it sends: its ETag is {tag[:100]!r}")
    return expected


def _cut(out: BinaryIO, at: int) -> None:
    out.seek(at)
    out.truncate()
