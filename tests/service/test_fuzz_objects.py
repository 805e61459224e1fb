"""The description of the routes below a tree is the truth, about a tree that is there, too."""

from __future__ import annotations

from typing import TYPE_CHECKING

import requests
import schemathesis
from schemathesis.core.result import Ok

from pagepool.digest import Digest, blake3_raw
from tests.service.test_fuzz_api import fuzz
from tests.store.helpers import text
from tests.support.objects import object_service

if TYPE_CHECKING:
    from pathlib import Path

REPOSITORY = "fuzz/target"


def test_every_answer_is_as_described(tmp_path: Path) -> None:
    failures: list[str] = []
    paths = set()
    with object_service(tmp_path / "data") as service, requests.Session() as session:
        content = text(9000, 1)
        tree = service.image(REPOSITORY, {"file": content})
        there = {
            "name": REPOSITORY,
            "tree": str(Digest("blake3", tree.digest)),
            "object": str(Digest("blake3", blake3_raw(content))),
        }
        schema = schemathesis.openapi.from_url(f"{service.url}/v1/openapi.json")
        for result in schema.get_all_operations():
            assert isinstance(result, Ok), result
            operation = result.ok()
            if "{tree}/" in operation.path:
                paths.add((operation.method, operation.path.rpartition("{tree}")[2]))
                assert fuzz(operation, there, session, failures)
    assert paths == {
        ("get", "/objects/{object}"),
        ("head", "/objects/{object}"),
        ("post", "/extents"),
        ("post", "/fill"),
        ("get", "/erofs"),
        ("head", "/erofs"),
        ("post", "/lease"),
        ("delete", "/lease/{lease}"),
        ("get", "/profile"),
        ("post", "/profile"),
        ("delete", "/profile"),
    }
    assert not failures, "\n\n".join(failures)
