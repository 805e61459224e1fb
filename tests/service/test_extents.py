"""The extents route: stored frames where that is allowed, others cut; nothing of anybody else's; clients do no harm."""

from __future__ import annotations

import logging
import queue
import socket
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx
import pytest

from pagepool.digest import Digest, blake3_raw
from pagepool.extents import EXTENT_SIZE, Frame, Role, encode_frame
from pagepool.extents.wire import MAX_WANTED, EndRecord, FailureRecord, StreamDecoder
from pagepool_service.extentstream import ExtentStream, read_extents
from pagepool_service.store.environment import Table
from pagepool_service.store.extents import ExtentStore, FrameCache
from pagepool_service.store.schema import u64
from tests.store.helpers import noise, text
from tests.support.objects import ObjectService, object_service

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pagepool.extents.wire import StreamRecord
    from pagepool.image.treefile import TreeFile
    from pagepool_service.store.store import Store

NAME = "extents/app"


@pytest.fixture
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectService]:
    with object_service(tmp_path_factory.mktemp("extents") / "data", body_timeout_s=1.0) as running:
        yield running


@pytest.fixture
def http(service: ObjectService) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, timeout=30) as client:
        yield client


def url(tree: TreeFile, name: str = NAME) -> str:
    return f"/v1/{name}/trees/{Digest('blake3', tree.digest)}/extents"


def all_extents(tree: TreeFile) -> list[bytes]:
    return [bytes(tree.extents[at : at + 32]) for at in range(0, len(tree.extents), 32)]


def decode(body: bytes) -> list[StreamRecord]:
    decoder = StreamDecoder()
    records = list(decoder.feed(body))
    decoder.close()
    return records


def contents(records: Sequence[StreamRecord]) -> dict[bytes, bytes]:
    """The extents in the frames of an answer, each compared with its name, none twice."""
    found: dict[bytes, bytes] = {}
    for record in records:
        if isinstance(record, Frame):
            for digest, (offset, size) in record.index.items():
                data = bytes(record.view[offset : offset + size])
                assert blake3_raw(data) == digest
                assert digest not in found
                found[digest] = data
    return found


def ask(http: httpx.Client, tree: TreeFile, wanted: Sequence[bytes], name: str = NAME) -> list[StreamRecord]:
    answer = http.post(url(tree, name), content=b"".join(wanted))
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/vnd.pagepool.extents.v1"
    return decode(answer.content)


def stored_frames(service: ObjectService) -> dict[int, bytes]:
    with service.store.env.read() as txn:
        return {int.from_bytes(key, "big"): bytes(value) for key, value in txn.scan(Table.FRAMES)}


def test_a_whole_tree_comes_as_the_store_has_it(service: ObjectService, http: httpx.Client) -> None:
    files = {f"f{number}": text(40_000, number) for number in range(40)} | {"big": noise(5 * EXTENT_SIZE + 9, 1)}
    tree = service.image(NAME, files)
    wanted = all_extents(tree)
    answer = http.post(url(tree), content=b"".join(reversed(wanted)))
    records = decode(answer.content)
    found = contents(records)
    assert sorted(found) == wanted
    assert sum(map(len, found.values())) == tree.object_bytes
    with service.store.env.read() as txn:
        numbers = sorted({service.store.extents.frame_of(txn, digest).number for digest in wanted})
    frames = stored_frames(service)
    for number in numbers:
        assert frames[number] in answer.content, "bytes of the store, untouched"
    assert [len(record.plain) for record in records if isinstance(record, Frame)] == [
        len(Frame.decode(number, memoryview(frames[number])).plain) for number in numbers
    ], "in the order of the store"
    assert records[-1] == EndRecord(len(numbers), len(wanted), 0, tree.object_bytes)


def test_a_short_answer_is_told_to_be_short(service: ObjectService, http: httpx.Client) -> None:
    tree = service.image(NAME, {"small": text(3000, 1)} | {f"f{number}": noise(1 << 20, number) for number in range(4)})
    small = blake3_raw(text(3000, 1))
    short = http.post(url(tree), content=small)
    assert int(short.headers["content-length"]) == len(short.content) < 10_000
    assert contents(decode(short.content)) == {small: text(3000, 1)}
    assert isinstance(decode(short.content)[-1], EndRecord)
    long = http.post(url(tree), content=b"".join(all_extents(tree)))
    assert "content-length" not in long.headers
    assert sorted(contents(decode(long.content))) == all_extents(tree)
    for answer in (short, long):
        assert answer.headers["cache-control"] == "private, no-store"


def test_frames_come_as_asked_if_that_is_asked_for(service: ObjectService, http: httpx.Client) -> None:
    tree = service.image(NAME, {f"f{number}": noise(1 << 20, number) for number in range(4)})
    wanted = all_extents(tree)
    orders = []
    for params, some in (({"order": "asked"}, wanted), ({"order": "asked"}, wanted[::-1]), ({}, wanted[::-1])):
        answer = http.post(url(tree), params=params, content=b"".join(some))
        found = list(contents(decode(answer.content)))
        assert sorted(found) == sorted(wanted)
        orders.append(found)
        if params:
            frames = [list(record.index) for record in decode(answer.content) if isinstance(record, Frame)]
            firsts = [min(map(some.index, frame)) for frame in frames]
            assert firsts == sorted(firsts)
    assert orders[0] != orders[1] != orders[2]
    assert http.post(url(tree), params={"order": "any"}, content=wanted[0]).status_code == 400


def test_a_private_neighbour_is_not_sent(service: ObjectService, http: httpx.Client) -> None:
    public, private = text(9500, "public"), text(3000, "private")
    theirs = service.image("theirs/app", {"a-private": private, "b-public": public})
    mine = service.image("mine/app", {"public": public})
    names = blake3_raw(public), blake3_raw(private)
    with service.store.env.read() as txn:
        assert len({service.store.extents.frame_of(txn, digest).number for digest in names}) == 1, "they share a frame"
    (stored,) = [frame for frame in stored_frames(service).values() if names[1] in frame]
    answer = http.post(url(mine, "mine/app"), content=names[0])
    assert contents(decode(answer.content)) == {names[0]: public}
    assert names[1] not in answer.content
    assert private[:32] not in answer.content
    assert stored not in answer.content
    assert sorted(contents(ask(http, theirs, [names[0]], "theirs/app"))) == sorted(names), "who has both is sent both"


def test_what_is_elsewhere_cannot_be_told_from_what_is_nowhere(service: ObjectService, http: httpx.Client) -> None:
    public, private = text(3000, "public"), text(3000, "private")
    theirs = service.image("theirs/app", {"private": private})
    mine = service.image("mine/app", {"public": public})
    bodies = []
    for other in (blake3_raw(private), blake3_raw(b"nowhere")):
        answer = http.post(url(mine, "mine/app"), content=blake3_raw(public) + other)
        assert answer.status_code == 404
        bodies.append(answer.text.replace(other.hex(), "X"))
        assert answer.json()["errors"][0]["code"] == "EXTENT_UNKNOWN"
    assert bodies[0] == bodies[1]
    for tree in (theirs.digest, blake3_raw(b"nothing")):
        answer = http.post(f"/v1/mine/app/trees/{Digest('blake3', tree)}/extents", content=blake3_raw(public))
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (404, "TREE_UNKNOWN")


def test_a_small_part_of_a_frame_is_cut_out(service: ObjectService, http: httpx.Client) -> None:
    files = {f"f{number}": text(20_000, number) for number in range(10)}
    tree = service.image(NAME, files)
    small = [blake3_raw(files["f3"])]
    assert contents(ask(http, tree, small)) == {small[0]: files["f3"]}
    other = [blake3_raw(files[f"f{number}"]) for number in (1, 4, 7)]
    assert sorted(contents(ask(http, tree, other))) == sorted(other)
    some = [blake3_raw(files[f"f{number}"]) for number in (0, 1, 2, 4, 5, 7, 8, 9)]
    assert sorted(contents(ask(http, tree, some))) == all_extents(tree), "over three quarters: the frame goes as it is"


def test_extents_that_come_several_times_are_sent_once(service: ObjectService, http: httpx.Client) -> None:
    tree = service.image(NAME, {"holes": bytes(3_000_000) + b"end"})
    wanted = all_extents(tree)
    assert len(wanted) == 2
    assert sorted(contents(ask(http, tree, wanted * 5))) == wanted
    assert decode(http.post(url(tree), content=b"").content) == [EndRecord()]


def test_requests_that_cannot_be_are_refused(service: ObjectService, http: httpx.Client) -> None:
    tree = service.image(NAME, {"file": b"content"})
    one = all_extents(tree)[0]
    assert http.post(url(tree), content=one + b"x").status_code == 400
    assert http.post(url(tree), content=one * (MAX_WANTED + 1)).status_code == 413
    assert http.post(url(tree), content=one * MAX_WANTED).status_code == 200
    assert http.post(url(tree).replace("blake3:", "sha256:"), content=one).status_code == 400
    assert http.get(url(tree)).status_code == 405


def break_frame(store: Store, digest: bytes) -> int:
    """Make the record of the frame that holds an extent fail its checksum."""
    with store.env.read() as txn:
        place = store.extents.find(txn, digest)
        assert place is not None
        number = place.frame
        value = bytearray(txn.get_unchecked(Table.FRAMES, u64(number)) or b"")
    value[-1] ^= 1
    with store.env.write() as txn:
        txn._txn.put(u64(number), bytes(value), db=txn._tables[Table.FRAMES])
    store.extents._cache = FrameCache(1 << 20)  # it may have been decoded before
    return number


def test_damage_is_told_and_the_rest_is_sent(service: ObjectService, http: httpx.Client) -> None:
    bad, good, gone = noise(300_000, "bad"), noise(300_000, "good"), text(3000, "gone")
    tree = service.image(NAME, {"bad": bad}, {"good": good}, {"gone": gone})
    damaged = [blake3_raw(bad[at : at + EXTENT_SIZE]) for at in range(0, len(bad), EXTENT_SIZE)]
    number = break_frame(service.store, damaged[1])
    with service.store.env.write() as txn:
        txn.delete(Table.EXTENTS, blake3_raw(gone))
    records = ask(http, tree, all_extents(tree))
    failures = {record.digest: record for record in records if isinstance(record, FailureRecord)}
    assert not failures[blake3_raw(gone)].damaged
    assert failures[damaged[1]].damaged
    assert f"frame {number}" in failures[damaged[1]].reason
    assert set(contents(records)) == set(all_extents(tree)) - set(failures)
    answer = http.get(f"{url(tree).removesuffix('extents')}objects/{Digest('blake3', blake3_raw(bad))}")
    assert answer.status_code == 500
    error = answer.json()["errors"][0]
    assert error["code"] == "CORRUPT"
    assert blake3_raw(bad).hex() in error["message"]
    assert any(digest.hex() in error["message"] for digest in failures), "the extent is named, too"
    assert http.get(f"{url(tree).removesuffix('extents')}objects/{blake3_raw(good).hex()}").content == good
    answer = http.get(f"{url(tree).removesuffix('extents')}objects/{blake3_raw(gone).hex()}")
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (500, "CORRUPT")


def test_an_extent_that_lies_where_another_should_is_not_sent(service: ObjectService) -> None:
    """The index and a frame that contradict each other, with good checksums: the name decides."""
    tree = service.image(NAME, {"a": text(5000, "a"), "b": text(5000, "b")})
    names = blake3_raw(text(5000, "a")), blake3_raw(text(5000, "b"))
    store = service.store
    with store.env.write() as txn:
        places = [bytes(txn.get(Table.EXTENTS, digest) or b"") for digest in names]
        txn.put(Table.EXTENTS, names[0], places[1])
    records = decode(b"".join(ExtentStream(store, tree, names)))
    assert set(contents(records)) == set(names), "the frame itself says where they are"
    records = decode(b"".join(ExtentStream(store, tree, names, cut_below=2.0)))
    assert [record.digest for record in records if isinstance(record, FailureRecord)] == [names[0]]
    assert set(contents(records)) == {names[1]}
    read = dict(read_extents(store, names))
    assert isinstance(read[names[0]], Exception)
    assert bytes(read[names[1]]) == text(5000, "b")  # type: ignore[arg-type]


def test_extents_that_are_moved_while_they_are_read(service: ObjectService) -> None:
    """Collection puts what lives of a frame into another one: whoever looked it up before finds it there."""
    whole = noise(8 * EXTENT_SIZE, "moved")
    pieces = {
        blake3_raw(whole[at : at + EXTENT_SIZE]): whole[at : at + EXTENT_SIZE]
        for at in range(0, len(whole), EXTENT_SIZE)
    }
    service.image(NAME, {"a": whole})
    store = service.store
    store.extents = ExtentStore()  # nothing is kept in memory
    reading = read_extents(store, list(pieces))
    found = [next(reading)]
    with store.env.write() as txn:
        frames = {bytes(key) for key, _ in txn.scan(Table.FRAMES)}
        for digest in pieces:
            txn.delete(Table.EXTENTS, digest)
        for key in frames:
            txn.delete(Table.FRAMES, key)
        store.extents.put_frames(txn, [encode_frame([one], Role.FILES) for one in pieces.items()])
    found += reading
    assert {digest: bytes(data) for digest, data in found if not isinstance(data, Exception)} == pieces
    assert len(found) == len(pieces)


class _BrokenOff(logging.Handler):
    """Keeps what is logged of answers that broke off."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: queue.SimpleQueue[str] = queue.SimpleQueue()

    def emit(self, record: logging.LogRecord) -> None:
        if "broke off" in record.getMessage():
            self.seen.put(record.getMessage())


@pytest.fixture
def broken_off() -> Iterator[queue.SimpleQueue[str]]:
    """What the service logs of answers that broke off."""
    handler, logger = _BrokenOff(), logging.getLogger("pagepool.http")
    logger.addHandler(handler)
    yield handler.seen
    logger.removeHandler(handler)


def test_clients_that_take_nothing_or_vanish_hold_no_transaction(
    service: ObjectService, http: httpx.Client, broken_off: queue.SimpleQueue[str]
) -> None:
    content = noise(64 << 20, "slow")
    tree = service.image(NAME, {"file": content})
    body = b"".join(all_extents(tree))
    where = urlsplit(service.url)
    head = f"POST {url(tree)} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    stuck = [socket.create_connection((str(where.hostname), where.port or 0)) for _ in range(4)]
    try:
        for number, one in enumerate(stuck):
            one.sendall(head + body)
            assert one.recv(12) == b"HTTP/1.1 200"
            if number % 2:
                one.close()
        assert ask(http, tree, all_extents(tree)[:3])[-1], "others are served meanwhile"
        with service.store.env.read() as txn:
            before = txn.version
        service.image(NAME, {"more": text(1000, "more")})
        with service.store.env.read() as txn:
            assert txn.version > before
        readers = [line.split() for line in service.store.env._env.readers().splitlines()[1:]]
        assert readers
        assert all(transaction == "-" for _, _, transaction in readers), "none is held by those that are stuck"
        for _ in stuck[::2]:
            assert "the client took nothing of it" in broken_off.get(timeout=30)
        for one in stuck[::2]:
            one.settimeout(30)
            size = 0
            while piece := one.recv(1 << 20):
                size += len(piece)
            assert size < len(content), "it was let go of before the end"
    finally:
        for one in stuck:
            one.close()
