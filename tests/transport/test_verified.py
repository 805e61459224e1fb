"""Downloads that are verified by their ETag, over connections that break, and from servers that lie."""

from __future__ import annotations

import io
import tracemalloc

import pytest
import zstandard

from pagepool.digest import Digest
from pagepool.errors import DigestMismatchError, LimitError, TreeUnknownError, UnreachableError
from pagepool.transport.answers import Subject
from pagepool.transport.http import Call
from pagepool.transport.verified import UnmadeError, download_verified
from tests.transport.scripted import Reply, Request, Script, scripted_server, session

DATA = bytes(range(256)) * 4000
CODED = zstandard.ZstdCompressor().compress(DATA)
TAG = f'"{Digest.of(DATA, "blake3")}"'
CODED_HEADERS = {"ETag": f'{TAG[:-1]}+zstd"', "Content-Encoding": "zstd"}


def download(script: Script, *, limit: int = 1 << 30, waits: list[float] | None = None) -> bytes:
    """What is written behind what was there; nothing is left of a download that failed."""
    out = io.BytesIO(b"before")
    out.seek(6)
    call = Call("GET", "/thing", Subject(TreeUnknownError, "it"))
    with scripted_server(script) as server, session(server.url, waits) as connection:
        try:
            assert download_verified(connection, call, out, limit=limit) == Digest.of(DATA, "blake3")
        except BaseException:
            assert out.getvalue() == b"before"
            raise
    return out.getvalue()


@pytest.mark.parametrize(
    "reply",
    [Reply(body=DATA, headers={"ETag": TAG}), Reply(body=CODED, headers=CODED_HEADERS)],
    ids=["plain", "coded"],
)
def test_is_plain_in_the_end(reply: Reply) -> None:
    """Whatever it came as."""
    assert download(lambda _: reply) == b"before" + DATA


def test_begins_again_when_the_connection_breaks() -> None:
    """And keeps nothing of what came before."""
    cuts = iter([0, 1000, len(DATA) - 1, None])
    assert download(lambda _: Reply(body=DATA, headers={"ETag": TAG}, cut=next(cuts))) == b"before" + DATA


def test_gives_up() -> None:
    """When it breaks again and again, as often as anything is tried, with a longer wait each time."""
    asked: list[Request] = []
    waits: list[float] = []

    def script(request: Request) -> Reply:
        asked.append(request)
        return Reply(body=CODED, headers=CODED_HEADERS, cut=100)

    with pytest.raises(UnreachableError):
        download(script, waits=waits)
    assert len(asked) == 4
    assert waits == [0.25, 0.5, 1.0]


@pytest.mark.parametrize(
    "reply",
    [
        Reply(body=DATA[:-1] + b"x", headers={"ETag": TAG}),
        Reply(body=CODED[:-10], headers=CODED_HEADERS),
        Reply(body=DATA, headers=CODED_HEADERS),
        Reply(body=b"", headers={"ETag": TAG}),
    ],
    ids=["other", "torn", "not zstd", "empty"],
)
def test_what_is_something_else_is_refused(reply: Reply) -> None:
    """And not tried again."""
    answers = iter([reply])
    with pytest.raises(DigestMismatchError):
        download(lambda _: next(answers))


@pytest.mark.parametrize("tag", ["", '"sha256:' + "0" * 64 + '"', "W/x"])
def test_an_answer_without_its_digest_is_refused(tag: str) -> None:
    """There is nothing to verify it by."""
    with pytest.raises(UnreachableError, match="ETag"):
        download(lambda _: Reply(body=DATA, headers={"ETag": tag}))


def test_bombs_are_limited() -> None:
    """By plain bytes."""
    assert download(lambda _: Reply(body=CODED, headers=CODED_HEADERS), limit=len(DATA)) == b"before" + DATA
    with pytest.raises(LimitError):
        download(lambda _: Reply(body=CODED, headers=CODED_HEADERS), limit=len(DATA) - 1)


def test_bombs_take_no_memory_before_they_are_limited() -> None:
    """4 bytes of zstd can stand for 128 KiB: what one piece of an answer becomes may be gigabytes."""
    zeros = (131072 << 3 | 1 << 1).to_bytes(3, "little") + b"\0"  # RFC 8878: an RLE block, not the last
    reply = Reply(body=b"\x28\xb5\x2f\xfd\0\x38" + zeros * 1024, headers=CODED_HEADERS)
    tracemalloc.start()
    try:
        with pytest.raises(LimitError):
            download(lambda _: reply, limit=1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 80 << 20
    finally:
        tracemalloc.stop()


def test_what_is_said_of_what_is_not_made_is_limited() -> None:
    """A few numbers are expected."""
    reply = Reply(202, body=bytes(32 << 20))
    call = Call("GET", "/thing", Subject(TreeUnknownError, "it"), expect=(200, 202))
    with scripted_server(lambda _: reply) as server, session(server.url) as connection:
        tracemalloc.start()
        try:
            with pytest.raises(UnmadeError) as caught:
                download_verified(connection, call, io.BytesIO())
            assert tracemalloc.get_traced_memory()[1] < 8 << 20
        finally:
            tracemalloc.stop()
    assert len(caught.value.body) == 1 << 16
