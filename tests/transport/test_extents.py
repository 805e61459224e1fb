"""The clients of the extents stream: verified, resumed, and honest about what cannot be had."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import httpx
import pytest

from pagepool.digest import Digest, blake3_raw
from pagepool.errors import (
    CorruptError,
    ExtentUnknownError,
    PagepoolError,
    ResponseError,
    TreeUnknownError,
    UnreachableError,
)
from pagepool.extents import EXTENT_SIZE, Role, encode_frame
from pagepool.extents.wire import (
    DIGEST_SIZE,
    EndRecord,
    FailureRecord,
    encode_end,
    encode_failure,
    encode_frame_head,
    parse_wanted,
)
from pagepool.transport import RetryPolicy
from pagepool.transport.extents import AsyncExtentClient, ExtentClient
from tests.store.helpers import noise, text
from tests.support.objects import object_service
from tests.transport.scripted import Reply, Request, Script, scripted_server, session, trickling_server

TREE = blake3_raw(b"tree")
CONTENTS = {blake3_raw(data): data for data in (text(9000, number) for number in range(12))}
WANTED = list(CONTENTS)

Run = Callable[[str, bytes, Sequence[bytes], str], dict[bytes, bytes]]


def run_sync(url: str, tree: bytes, wanted: Sequence[bytes], name: str = "app") -> dict[bytes, bytes]:
    with session(url) as opened:
        return {digest: bytes(view) for digest, view in ExtentClient(opened, name, tree)(wanted)}


def run_async(url: str, tree: bytes, wanted: Sequence[bytes], name: str = "app") -> dict[bytes, bytes]:
    async def run() -> dict[bytes, bytes]:
        async with httpx.AsyncClient(base_url=url, timeout=30) as client:
            policy = RetryPolicy(attempts=4, base_s=0.001)
            fetch = AsyncExtentClient(client, name, Digest("blake3", tree), policy)
            return {digest: bytes(view) async for digest, view in fetch(wanted)}

    return asyncio.run(run())


@pytest.fixture(params=[run_sync, run_async], ids=["sync", "async"])
def run(request: pytest.FixtureRequest) -> Run:
    """Fetch with either client."""
    chosen: Run = request.param
    return chosen


def records_of(wanted: Sequence[bytes], contents: dict[bytes, bytes]) -> list[bytes]:
    records = []
    for digest in wanted:
        payload = encode_frame([(digest, contents[digest])], Role.FILES).payload
        records.append(encode_frame_head(len(payload)) + payload)
    end = EndRecord(len(wanted), len(wanted), 0, sum(len(contents[digest]) for digest in wanted))
    return [*records, encode_end(end)]


def answers(request: Request) -> Reply:
    return Reply(200, b"".join(records_of(parse_wanted(request.body), CONTENTS)))


def in_turn(*scripts: Script) -> Script:
    """Each request is answered by the next; the last answers all that follow."""
    left = list(scripts)
    return lambda request: (left.pop(0) if len(left) > 1 else left[0])(request)


def test_everything_comes_from_a_real_service(tmp_path: Path, run: Run) -> None:
    with object_service(tmp_path / "data") as service:
        content = noise(9 * EXTENT_SIZE + 5, 1)
        tree = service.image("some/app", {"file": content} | {f"f{n}": text(3000, n) for n in range(200)})
        wanted = [bytes(tree.extents[at : at + 32]) for at in range(0, len(tree.extents), 32)]
        found = run(service.url, tree.digest, wanted, "some/app")
        assert sorted(found) == wanted
        assert (
            b"".join(found[blake3_raw(content[at : at + EXTENT_SIZE])] for at in range(0, len(content), EXTENT_SIZE))
            == content
        )
        with pytest.raises(ExtentUnknownError):
            run(service.url, tree.digest, [blake3_raw(b"nowhere")], "some/app")
        with pytest.raises(TreeUnknownError):
            run(service.url, TREE, wanted, "some/app")


def test_a_stream_of_what_nobody_asked_for_has_an_end(run: Run) -> None:
    """Each frame brings something that was asked for, or whoever waits for it might wait for ever."""
    more = {blake3_raw(data): data for data in (text(100, number) for number in range(100))}

    with scripted_server(lambda _: Reply(200, b"".join(records_of(list(more), more)))) as server:
        with pytest.raises(CorruptError, match="more than was asked for"):
            run(server.url, TREE, WANTED[:3], "app")
        assert len(server.requests) > 1


@pytest.mark.parametrize("others", [3, 4])
def test_two_records_for_each_extent_are_enough(run: Run, others: int) -> None:
    """One of them brings it; what comes along is kept."""
    more = {blake3_raw(data): data for data in (text(100, number) for number in range(others))}
    asked = dict(list(CONTENTS.items())[:3])
    sent = more | asked
    with scripted_server(lambda _: Reply(200, b"".join(records_of(list(sent), sent)))) as server:
        if others == 3:
            assert run(server.url, TREE, list(asked), "app") == sent
        else:
            with pytest.raises(CorruptError, match="more than was asked for"):
                run(server.url, TREE, list(asked), "app")


def test_a_stream_without_its_end_is_asked_for_again(run: Run) -> None:
    """Also where the answer itself is whole: a proxy may have cut it. Not for ever, if it brings nothing."""

    def cut(request: Request) -> Reply:
        return Reply(200, b"".join(records_of(parse_wanted(request.body), CONTENTS)[:5]))

    with scripted_server(in_turn(cut, answers)) as server:
        assert run(server.url, TREE, WANTED, "app") == CONTENTS
    assert [parse_wanted(request.body) for request in server.requests] == [WANTED, WANTED[5:]]
    nothing: list[Script] = [lambda _: Reply(200)] * 4
    with scripted_server(in_turn(*nothing, answers)) as server, pytest.raises(CorruptError, match="breaks off"):
        run(server.url, TREE, WANTED, "app")


def test_a_stream_that_breaks_off_is_resumed_without_what_came(run: Run) -> None:
    def cut(request: Request) -> Reply:
        records = records_of(parse_wanted(request.body), CONTENTS)
        return Reply(200, b"".join(records), cut=sum(map(len, records[:5])) + 10)

    with scripted_server(in_turn(cut, lambda _: None, cut, answers)) as server:
        assert run(server.url, TREE, WANTED, "app") == CONTENTS
    asked = [parse_wanted(request.body) for request in server.requests]
    assert asked == [WANTED, WANTED[5:], WANTED[5:], WANTED[10:]]
    assert all(request.path == f"/v1/app/trees/{Digest('blake3', TREE)}/extents" for request in server.requests)


@pytest.mark.parametrize("place", [0, 3, 40, 5000])
def test_a_stream_that_cannot_be_read_is_asked_for_again(run: Run, place: int) -> None:
    def flip(request: Request) -> Reply:
        data = bytearray(b"".join(records_of(parse_wanted(request.body), CONTENTS)))
        data[place] ^= 0x80
        return Reply(200, bytes(data))

    with scripted_server(in_turn(flip, answers)) as server:
        if place < 17:
            assert run(server.url, TREE, WANTED, "app") == CONTENTS
        else:  # the flip hit a digest or data: a frame that still can be decoded, or not
            assert _found_or_named(lambda: run(server.url, TREE, WANTED, "app"))


def _found_or_named(fetch: Callable[[], dict[bytes, bytes]]) -> bool:
    """Whether what came is right, or the error names an extent."""
    try:
        return fetch() == CONTENTS
    except CorruptError as error:
        return error.kind == "extent" and bytes.fromhex(error.name) in CONTENTS


def test_wrong_bytes_are_never_given(run: Run) -> None:
    wrong = {**CONTENTS, WANTED[4]: b"something else"}

    def lie(request: Request) -> Reply:
        return Reply(200, b"".join(records_of(parse_wanted(request.body), wrong)))

    with scripted_server(lie) as server:
        with pytest.raises(CorruptError) as caught:
            run(server.url, TREE, WANTED, "app")
        assert (caught.value.kind, caught.value.name) == ("extent", WANTED[4].hex())
        assert len(server.requests) == 1, "the caller decides whether to ask again"
        got: dict[bytes, bytes] = {}
        with session(server.url) as opened:
            fetched = ExtentClient(opened, "app", TREE)(WANTED)
            got |= {digest: bytes(view) for digest, view in islice(fetched, len(WANTED) - 1)}
            with pytest.raises(CorruptError):
                next(fetched)
        assert got == {digest: data for digest, data in CONTENTS.items() if digest != WANTED[4]}, "all others came"


def test_what_the_service_cannot_give_is_told(run: Run) -> None:
    def fail(_: Request) -> Reply:
        failure = FailureRecord(True, WANTED[2], "corrupt frame 7: bit rot")
        records = records_of([digest for digest in WANTED if digest != WANTED[2]], CONTENTS)[:-1]
        size = sum(map(len, CONTENTS.values())) - len(CONTENTS[WANTED[2]])
        end = encode_end(EndRecord(len(records), len(records), 1, size))
        return Reply(200, b"".join((encode_failure(failure), *records, end)))

    with scripted_server(fail) as server, pytest.raises(CorruptError, match="bit rot") as caught:
        run(server.url, TREE, WANTED, "app")
    assert caught.value.name == WANTED[2].hex()


def test_an_extent_that_is_left_out_is_told(run: Run) -> None:
    with (
        scripted_server(lambda _: Reply(200, b"".join(records_of(WANTED[1:], CONTENTS)))) as server,
        pytest.raises(CorruptError, match="neither it nor a reason") as caught,
    ):
        run(server.url, TREE, WANTED, "app")
    assert caught.value.name == WANTED[0].hex()


def test_a_service_that_is_busy_is_asked_again_and_one_that_is_gone_is_unreachable(run: Run) -> None:
    with scripted_server(in_turn(lambda _: Reply(503), answers)) as server:
        assert run(server.url, TREE, WANTED, "app") == CONTENTS
    with scripted_server(lambda _: None) as server:
        with pytest.raises(UnreachableError):
            run(server.url, TREE, WANTED, "app")
        assert len(server.requests) == 4
    with pytest.raises(UnreachableError):
        run(server.url, TREE, WANTED, "app")


@pytest.mark.parametrize("status", ["200 OK", "418 I'm a teapot"])
@pytest.mark.parametrize("part", ["head", "body"])
def test_an_answer_that_trickles_is_given_up(status: str, part: str) -> None:
    """By the asynchronous client, too; it bounds only its own requests."""
    head = f"HTTP/1.1 {status}\r\nContent-Length: 60\r\n\r\n".encode()
    at_once = head if part == "body" else b""
    body = (encode_frame_head(1000) + bytes(60))[:60]

    async def run(url: str) -> None:
        async with httpx.AsyncClient(base_url=url, timeout=0.2) as client:
            fetch = AsyncExtentClient(client, "app", Digest("blake3", TREE), RetryPolicy(attempts=1))
            with pytest.raises(UnreachableError, match="timed out"):
                await anext(aiter(fetch(WANTED)))

    with trickling_server(at_once, (head + body).removeprefix(at_once)) as url:
        asyncio.run(run(url))


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (Reply(404, b'{"errors":[{"code":"TREE_UNKNOWN"}]}'), TreeUnknownError),
        (Reply(404), TreeUnknownError),
        (Reply(404, b'{"errors":[{"code":"EXTENT_UNKNOWN"}]}'), ExtentUnknownError),
        (Reply(418), ResponseError),
    ],
)
def test_error_answers_are_errors(run: Run, reply: Reply, error: type[PagepoolError]) -> None:
    with scripted_server(lambda _: reply) as server, pytest.raises(error):
        run(server.url, TREE, WANTED, "app")
    assert len(server.requests) == 1


def test_of_an_error_answer_the_beginning_is_read(run: Run) -> None:
    """It is for people; whoever sends more could send any amount."""
    body = bytes(32 << 20)
    with scripted_server(lambda _: Reply(418, body)) as server:
        tracemalloc.start()
        try:
            with pytest.raises(ResponseError):
                run(server.url, TREE, WANTED, "app")
            assert tracemalloc.get_traced_memory()[1] < 8 << 20
        finally:
            tracemalloc.stop()


def test_long_lists_are_asked_for_in_parts(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pagepool.transport.extents.MAX_WANTED", 5)
    with scripted_server(answers) as server:
        assert run(server.url, TREE, WANTED, "app") == CONTENTS
    assert [len(request.body) // DIGEST_SIZE for request in server.requests] == [5, 5, 2]


def test_extents_come_while_the_stream_goes_on() -> None:
    """The first is there before the answer has ended: nothing is gathered."""
    records = records_of(WANTED, CONTENTS)
    with (
        scripted_server(lambda _: Reply(200, b"".join(records), cut=len(records[0]))) as server,
        session(server.url) as opened,
    ):
        fetched: Iterator[tuple[bytes, memoryview]] = ExtentClient(opened, "app", TREE)(WANTED)
        assert next(fetched)[0] == WANTED[0]
        fetched.close()  # type: ignore[attr-defined]
