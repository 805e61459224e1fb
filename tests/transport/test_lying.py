"""Services that lie in what they say, beside contents: what becomes of their answers is bounded, too."""

from __future__ import annotations

import hashlib
import json

import pytest

from pagepool.digest import Digest
from pagepool.errors import LimitError, PagepoolError, ResponseError
from pagepool.oci import mediatypes
from pagepool.transport import ProfileClient, RegistryClient
from pagepool.transport.profiles import MOST_EXTENTS, Profile
from pagepool.transport.trees import TreeClient
from tests.transport.scripted import Reply, Request, scripted_server, session

TREE = Digest.of(b"a tree", "blake3")


def _profile(extents: dict[str, str]) -> Profile | None:
    said = {"objects": [], "extents": extents, "starts": 1, "tree": str(TREE), "updated_ns": 1}
    reply = Reply(body=json.dumps(said).encode())
    with scripted_server(lambda _: reply) as server, session(server.url) as connection:
        return ProfileClient(connection).get("app", TREE)


def test_a_profile_with_more_extents_than_are_learned_is_refused() -> None:
    """Of all objects together: 80 bytes can stand for 65,536 numbers, and 40 KB took more than a gigabyte."""
    names = [Digest.of(bytes([number]), "blake3").hex for number in range(3)]
    half = MOST_EXTENTS // 2
    found = _profile({names[0]: f"0-{half - 1}", names[1]: f"{half}-{MOST_EXTENTS - 1}", names[2]: ""})
    assert found is not None
    assert [len(numbers) for numbers in found.parts.values()] == [half, half, 0]
    with pytest.raises(ResponseError, match="extents are more than"):
        _profile({names[0]: f"0-{half - 1}", names[1]: f"{half}-{MOST_EXTENTS - 1}", names[2]: "0"})


def test_answers_are_no_larger_than_what_they_can_say() -> None:
    """JSON takes up to thirty times its size in memory."""
    reply = Reply(body=json.dumps({"x": "x" * (9 << 20)}).encode())
    with scripted_server(lambda _: reply) as server, session(server.url) as connection:
        with pytest.raises(LimitError):
            ProfileClient(connection).get("app", TREE)
        with pytest.raises(LimitError):
            TreeClient(connection).resolve("app", "1")


def test_a_configuration_that_is_said_to_be_large_is_not_asked_for() -> None:
    """It would be read into memory, whatever its size."""
    config = {"mediaType": mediatypes.OCI_CONFIG, "digest": "sha256:" + "0" * 64, "size": 9 << 20}
    said = {"schemaVersion": 2, "mediaType": mediatypes.OCI_MANIFEST, "config": config, "layers": []}
    manifest = json.dumps(said).encode()

    def script(request: Request) -> Reply:
        assert "/manifests/" in request.path
        return Reply(body=manifest, headers={"Content-Type": mediatypes.OCI_MANIFEST})

    with scripted_server(script) as server, session(server.url) as connection:
        with pytest.raises(PagepoolError, match="configuration of 9437184 is over the limit"):
            RegistryClient(connection).get_config("app", f"sha256:{hashlib.sha256(manifest).hexdigest()}")
        assert len(server.requests) == 1
