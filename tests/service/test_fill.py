"""Filling the pool for clients on the same host: bounded work, in the order that was asked for."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from pagepool.digest import Digest, blake3_raw
from pagepool.extents import EXTENT_SIZE
from tests.store.helpers import noise, text
from tests.support.objects import ObjectService, object_service

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pagepool.image.treefile import TreeFile

NAME = "fill/app"
SMALL = text(9000, 1)
LARGE = noise(5 * EXTENT_SIZE + 1, 2)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[ObjectService]:
    with object_service(tmp_path / "data") as running:
        yield running


@pytest.fixture
def tree(service: ObjectService) -> TreeFile:
    return service.image(NAME, {"small": SMALL, "large": LARGE})


def fill(service: ObjectService, tree: TreeFile, body: Any) -> httpx.Response:
    url = f"{service.url}/v1/{NAME}/trees/{Digest('blake3', tree.digest)}/fill"
    return httpx.post(url, content=body if isinstance(body, bytes) else json.dumps(body).encode(), timeout=30)


def test_objects_are_filled(service: ObjectService, tree: TreeFile) -> None:
    names = [blake3_raw(data).hex() for data in (SMALL, LARGE)]
    answer = fill(
        service, tree, {"objects": [{"object": names[1], "extents": [2, 4]}, {"object": f"blake3:{names[0]}"}]}
    )
    assert (answer.status_code, answer.json()) == (200, {"id": "0" * 32, "path": "/nowhere", "present": 2})
    large = bytes.fromhex(names[1])
    assert sorted(service.pool.written) == sorted([(large, 2), (large, 3), (bytes.fromhex(names[0]), 0)])
    assert fill(service, tree, {"objects": [{"object": names[1]}]}).json()["present"] == 1
    assert sorted(service.pool.written[3:]) == [(large, number) for number in (0, 1, 4, 5)]
    assert fill(service, tree, {"objects": []}).json()["present"] == 0
    assert fill(service, tree, {"objects": [{"object": names[0], "extents": [5, 9]}]}).json()["present"] == 1


def test_a_client_says_how_long_it_waits(service: ObjectService, tree: TreeFile) -> None:
    """What is begun is finished; nothing is begun after that time. The client asks again, with the rest."""
    objects = [{"object": blake3_raw(data).hex()} for data in (LARGE, SMALL)]
    assert fill(service, tree, {"objects": objects, "within_s": 0}).json()["present"] == 0
    assert fill(service, tree, {"objects": objects, "within_s": 4.5}).json()["present"] == 2
    for wrong in (-1, "1", True, None, [1]):
        assert fill(service, tree, {"objects": objects, "within_s": wrong}).status_code == 400
    assert fill(service, tree, b'{"objects": [], "within_s": NaN}').status_code == 400


def test_what_the_pool_does_not_take_is_not_said_to_be_there(service: ObjectService, tree: TreeFile) -> None:
    service.pool.full = True
    assert fill(service, tree, {"objects": [{"object": blake3_raw(SMALL).hex()}]}).json()["present"] == 0


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "UNSUPPORTED"),
        (b"[" * 100_000, 400, "UNSUPPORTED"),
        (b"[]", 400, "UNSUPPORTED"),
        ({"objects": 5}, 400, "UNSUPPORTED"),
        ({"objects": [5]}, 400, "UNSUPPORTED"),
        ({"objects": [{}]}, 400, "UNSUPPORTED"),
        ({"objects": [{"object": "x"}]}, 400, "DIGEST_INVALID"),
        ({"objects": [{"object": "0" * 64, "extents": [1]}]}, 400, "UNSUPPORTED"),
        ({"objects": [{"object": "0" * 64, "extents": [True, 2]}]}, 400, "UNSUPPORTED"),
        ({"objects": [{"object": "0" * 64, "extents": [2, 1]}]}, 400, "UNSUPPORTED"),
        ({"objects": [{"object": "0" * 64}]}, 404, "OBJECT_UNKNOWN"),
        ({"objects": [{"object": "0" * 64}] * 16385}, 413, "SIZE_INVALID"),
        (b" " * (5 << 20), 413, "SIZE_INVALID"),
    ],
)
def test_requests_that_cannot_be_are_refused(
    service: ObjectService, tree: TreeFile, body: Any, status: int, code: str
) -> None:
    answer = fill(service, tree, body)
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (status, code)
    assert not service.pool.written
