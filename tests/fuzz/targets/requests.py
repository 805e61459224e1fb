"""What comes with requests: ranges and other headers, queries, JSON bodies, and whole requests of a connection."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from typing import Any

from starlette.datastructures import Headers

from pagepool.errors import InvalidError, LimitError, RangeInvalidError
from pagepool.extents import format_ranges, parse_ranges
from pagepool_service import settings
from pagepool_service.profiles import StartProfile
from pagepool_service.routes.bodies import text_field
from pagepool_service.routes.fill import MOST_OBJECTS, parse_fill
from pagepool_service.routes.images import _after
from pagepool_service.routes.leases import parse_lease
from pagepool_service.routes.objects import parse_object, parse_tree
from pagepool_service.routes.parameters import _limit, byte_range, content_length, next_link, upload_range
from pagepool_service.routes.profiles import _parse_extents, _parse_objects
from pagepool_service.routes.ranges import MOST_RANGES, plan_answer, separate_ranges
from tests.fuzz.target import Reader, Target, blocks
from tests.fuzz.targets.documents import JSON_WORDS

_ETAG = '"blake3:x"'
_NAMES = (b"range", b"if-range", b"if-none-match", b"if-match")
_TREE = bytes(range(32))


def _ranges(data: bytes) -> None:
    """What is sent lies within the content, comes once, and is no more than the content and what is between parts."""
    how = Reader(data)
    size, method = how.number(3), "HEAD" if how.byte() & 1 else "GET"
    headers = dict(zip(_NAMES, how.blocks(len(_NAMES)), strict=False))
    answer = plan_answer({name: value for name, value in headers.items() if value}, method, _ETAG, size)
    assert answer.status in (200, 206, 304, 412)
    assert len(answer.parts) <= MOST_RANGES
    spans = sorted(answer.parts)
    if answer.status == 206:
        assert all(0 <= start < end <= size for start, end in spans)
    assert all(one[1] <= other[0] for one, other in pairwise(spans))
    text = headers.get(b"range", b"").decode("latin-1")
    several = separate_ranges(text, size) or []
    assert all(0 <= start < end <= size for start, end in several)
    assert sum(end - start for start, end in several) <= size
    if found := byte_range(text, size):
        assert 0 <= found[0] < found[1] <= size


def _parameters(data: bytes) -> None:
    """Headers of uploads, numbers and cursors of queries, settings: a value within bounds, or an error about it."""
    parts = [*Reader(data).blocks(3), b"", b"", b""]
    headers = Headers(raw=[(b"content-range", parts[0]), (b"content-length", parts[1])])
    text = parts[2].decode("utf-8", "surrogateescape")
    with suppress(InvalidError):
        assert (content_length(headers) or 0) >= 0
    with suppress(InvalidError):
        found = upload_range(headers)
        assert found is None or 0 <= found[0] < found[1]
    with suppress(InvalidError):
        assert 0 <= asyncio.run(_limit(text)) <= 10_000
    for check in (_after, parse_lease, parse_object, parse_tree):
        with suppress(InvalidError):
            check(text)
    assert "\n" not in next_link("/v2/_catalog", last=text, n=5)["Link"]
    for setting in (settings.parse_size, settings.parse_listen, settings.parse_flag):
        with suppress(settings.SettingInvalidError):
            setting(text)


def _bodies(data: bytes) -> None:
    """JSON bodies of fills, leases and profiles; and a profile's file."""
    how = Reader(data)
    kind, body = how.byte() & 3, how.rest()
    if kind == 0:
        wanted, within_s = parse_fill(body)
        assert 0 <= within_s <= 60
        assert len(wanted) <= MOST_OBJECTS
        assert all(one.first >= 0 and len(one.digest) == 32 for one in wanted)
    elif kind == 1:
        profile = StartProfile.decode(body, _TREE)
        assert profile is None or profile.encode() == body or len(profile.seen) * 44 < len(body)
        if profile is not None:
            profile.urgent()
            for one in profile.seen.values():
                one.parts()
            profile.with_start([_TREE], 5, {_TREE: [0, 9]}).encode()
    else:
        try:
            document: Any = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise InvalidError("body", "it is not JSON") from error
        if isinstance(document, dict):
            _parse_objects(document.get("objects"))
            for text in _parse_extents(document.get("extents")).values():
                numbers = parse_ranges(text, 100, 50)
                assert len(numbers) <= 50
                assert parse_ranges(format_ranges(numbers), 100, 50) == numbers
            assert 0 < len(text_field(document, "holder", 100)) <= 100


def _some_ranges() -> Iterator[bytes]:
    size = (10_000).to_bytes(3, "little") + b"\0"
    yield size + blocks(b"bytes=0-99")
    yield size + blocks(b"bytes=0-0, 5-5 ,500-, -20,9000-9999", _ETAG.encode(), b'W/"a", "b"', b"*")
    yield size + blocks(b"bytes=-1", b"", b'"blake3:x"')
    yield size + blocks(b"bytes=" + b",".join(b"%d-%d" % (at, at) for at in range(0, 9000, 200)))


def _some_parameters() -> Iterator[bytes]:
    digest = b"blake3:" + b"ab" * 32
    yield blocks(b"0-99", b"100", b"100")
    yield blocks(b"0-99", b"", digest)
    yield blocks(b"", b"5", b"some/name:tag")
    yield blocks(b"", b"", b"[::1]:80")
    yield blocks(b"", b"", b"10GiB")


def _some_bodies() -> Iterator[bytes]:
    digest = "blake3:" + "ab" * 32
    fill = {"objects": [{"object": digest}, {"object": digest, "first": 1, "end": 3}], "within_s": 2.5}
    yield b"\0" + json.dumps(fill).encode()
    yield b"\2" + json.dumps({"objects": [digest], "holder": "node", "ttl_s": 5}).encode()
    extents = {digest: "0-3,7", "cd" * 32: "", "ef" * 32: "99"}
    yield b"\2" + json.dumps({"objects": [digest], "extents": extents, "holder": "node"}).encode()
    profile = StartProfile(_TREE, 0, 0, {})
    for number in range(3):
        profile = profile.with_start([_TREE, bytes((number,)) * 32], number, {_TREE: range(number * 3)})
    yield b"\1" + profile.encode()


TARGETS = (
    Target("ranges", _ranges, (RangeInvalidError,), _some_ranges, (b"bytes=", b"-", b",", b"W/", b'"', b"9" * 19)),
    Target(
        "parameters", _parameters, (), _some_parameters, (b"9" * 19, b"\xd9\xa1", b"%", b"\r\n", b"blake3:", b"1e9")
    ),
    Target(
        "bodies",
        _bodies,
        (InvalidError, LimitError),
        _some_bodies,
        (*JSON_WORDS, b'"objects":[', b'"extents":{', b"0-3,7", b"Infinity", b"1e400"),
    ),
)
