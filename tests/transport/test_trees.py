"""The client of trees against scripted answers; tests/service has it against a real service."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from pagepool.digest import Digest
from pagepool.errors import UnsupportedError
from pagepool.oci import Platform
from pagepool.transport.trees import TreeClient
from tests.transport.scripted import Reply, Request, scripted_server, session

if TYPE_CHECKING:
    from collections.abc import Mapping

TREE = Digest.of(b"a tree", "blake3")
SAID: dict[str, Any] = {"image": "sha256:" + "0" * 64, "tree": str(TREE), "size": 100, "cache": None}


def resolve(fields: Mapping[str, object], **wanted: Any) -> tuple[Digest, dict[str, str]]:
    """The tree that is taken from an answer with these fields, and the parameters of the request."""
    seen: list[Request] = []

    def script(request: Request) -> Reply:
        seen.append(request)
        return Reply(body=json.dumps(SAID | dict(fields)).encode())

    with scripted_server(script) as server, session(server.url) as connection:
        return TreeClient(connection).resolve("app", "1", **wanted).tree, seen[0].query


def test_the_first_layers_are_asked_for() -> None:
    assert resolve({"layers": 2}, layers=2) == (TREE, {"layers": "2"})
    both = {"platform": "linux/arm64", "layers": "1"}
    assert resolve({"layers": 1}, layers=1, platform=Platform.parse("linux/arm64")) == (TREE, both)
    assert resolve({}) == (TREE, {})


@pytest.mark.parametrize("fields", [{}, {"layers": None}, {"layers": 1}])
def test_a_service_that_gives_other_layers(fields: dict[str, object]) -> None:
    """An earlier version passes over what it does not know, and answers the tree of all."""
    with pytest.raises(UnsupportedError, match=r"all layers of app:1, where the first 2 .* earlier version"):
        resolve(fields, layers=2)
