"""The tree files and metadata images of a node: how long they are kept, and what they take while they come."""

from __future__ import annotations

import json
import os
import time
import tracemalloc
from typing import TYPE_CHECKING

import httpx
import pytest

from pagepool.digest import Digest
from pagepool.errors import DigestMismatchError, UnreachableError
from pagepool.node.images import Images, Resolved
from pagepool.node.links import Links
from pagepool.transport import RetryPolicy, Session
from tests.oci.samples import simple
from tests.transport.scripted import Reply, scripted_server, session

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pagepool.node.places import NodePlaces
    from pagepool.node.records import SourceRecord

_SIZE = 1000


def _make(places: NodePlaces, name: str, hours_ago: float) -> Path:
    path = places.tree_files / name
    path.write_bytes(bytes(_SIZE))
    then = time.time() - hours_ago * 3600
    os.utime(path, (then, then))
    return path


def test_what_no_tree_needs_is_kept_within_a_bound(places: NodePlaces) -> None:
    """Every image that a node had ever mounted left its tree file and metadata image on the disk, for good."""
    needed, oldest, older, old, young = (letter * 64 for letter in "abcde")
    for tree, hours_ago in ((needed, 9), (oldest, 8), (older, 7), (old, 6), (young, 0.5)):
        _make(places, tree, hours_ago)
        _make(places, f"{tree}.{tree}.erofs", hours_ago)
    cut_off, coming = _make(places, f".{old}.17.erofs", 2), _make(places, f".{young}.18.erofs", 0)
    images = Images(places, Links())
    images.forget_unused({needed}, 3 * _SIZE)
    kept = {path.name[:64] for path in places.tree_files.iterdir() if path.name[0] != "."}
    assert kept == {needed, old, young}
    assert not cut_off.exists()
    assert coming.exists()
    images.forget_unused({needed}, 0)
    assert {path.name[:64] for path in places.tree_files.iterdir() if path.name[0] != "."} == {needed, young}


def test_what_is_noted_of_images_is_kept_within_a_bound(places: NodePlaces) -> None:
    """Each name that was ever mounted left a small file, and each image its configuration, for good."""
    directory, hours_ago = places.state / "images", iter(range(20, 0, -1))
    directory.mkdir()
    needed = "a" * 64

    def make(name: str, tree: str) -> None:
        path, then = directory / name, time.time() - 3600 * next(hours_ago)
        path.write_text(json.dumps({"tree": f"blake3:{tree}", "manifest": "sha256:" + "b" * 64}))
        os.utime(path, (then, then))

    for name in ("needed.json", "old.json", f"{needed}.config", f"{'c' * 64}.config", "young.json", ".cut-off"):
        make(name, needed if name == "needed.json" else "d" * 64)
    (directory / "now.json").write_text("not JSON")
    each = (directory / "old.json").stat().st_blocks * 512
    images = Images(places, Links())
    images.forget_notes({needed}, 4 * each)
    assert {path.name for path in directory.iterdir()} == {"needed.json", f"{needed}.config", "young.json", "now.json"}
    images.forget_notes((), 0)
    assert {path.name for path in directory.iterdir()} == {"now.json"}


def test_what_is_used_is_not_the_oldest(places: NodePlaces, record: SourceRecord) -> None:
    """Mounting an image once more counts as use; nothing is fetched for that, nor verified once more."""
    path, images = places.tree_files / record.tree, Images(places, Links())
    os.utime(path, (0, 0))
    with Session(record.url) as session:
        for _ in range(2):
            images.tree(session, record.repository, Digest("blake3", bytes.fromhex(record.tree)))
            assert images._is_verified(path)
            images.forget_unused((), 0)
            assert path.exists()


def test_a_tree_file_takes_no_memory_while_it_comes(places: NodePlaces) -> None:
    """It may be of gigabytes, and of some service's making; the node is everybody's. Nothing is left of a wrong one."""
    body = bytes(32 << 20)
    reply = Reply(body=body, headers={"ETag": f'"{Digest.of(body, "blake3")}"'})
    before, images = sorted(places.tree_files.iterdir()), Images(places, Links())
    with scripted_server(lambda _: reply) as server, session(server.url) as connection:
        tracemalloc.start()
        try:
            with pytest.raises(DigestMismatchError):
                images.tree(connection, "app", Digest.of(b"another", "blake3"))
            assert tracemalloc.get_traced_memory()[1] < 8 << 20
        finally:
            tracemalloc.stop()
    assert sorted(places.tree_files.iterdir()) == before


@pytest.fixture
def app() -> Iterator[tuple[Session, str, str, list[str]]]:
    """A service with one image: its session, the digest of the manifest, the configuration, and what was asked for."""
    sample = simple()
    config = next(data for data in sample.content.values() if b"diff_ids" in data).decode()
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        kind, digest = request.url.path.rsplit("/", 2)[-2:]
        asked.append(kind)
        media_type = sample.root().media_type if kind == "manifests" else "application/octet-stream"
        stream = httpx.ByteStream(sample.content[Digest.parse(digest)])
        return httpx.Response(200, stream=stream, headers={"Content-Type": media_type})

    with Session("http://127.0.0.1", transport=httpx.MockTransport(answer)) as session:
        yield session, str(sample.root().digest), config, asked


@pytest.fixture
def gone() -> Iterator[Session]:
    """Of a service that cannot be reached."""

    def answer(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    transport = httpx.MockTransport(answer)
    with Session("http://127.0.0.1", transport=transport, retry=RetryPolicy(attempts=1)) as session:
        yield session


@pytest.mark.parametrize("found", [b"", b"{", bytes(100), b"null", b"{}", b"\xff"], ids=range(6))
def test_a_configuration_that_was_torn_is_fetched_again(
    places: NodePlaces, app: tuple[Session, str, str, list[str]], found: bytes
) -> None:
    """After a loss of power a file may be there without its content: no container of the image could be started."""
    images, (session, manifest, config, asked) = Images(places, Links()), app
    assert images.config(session, "app", manifest) == config
    (note,) = (places.state / "images").iterdir()
    note.write_bytes(found)
    assert images.config(session, "app", manifest) == note.read_text() == config
    assert images.config(session, "app", manifest) == config
    assert asked == ["manifests", "blobs"] * 2


def test_a_configuration_that_cannot_be_noted(places: NodePlaces, app: tuple[Session, str, str, list[str]]) -> None:
    """It is fetched each time, and containers start."""
    images, (session, manifest, config, _) = Images(places, Links()), app
    (places.state / "images").touch()
    assert images.config(session, "app", manifest) == config


@pytest.mark.parametrize("found", ["", "null", "[]", "{}", '{"tree": "torn", "manifest": ""}'], ids=range(5))
def test_what_a_name_meant_that_cannot_be_read_is_not_known(places: NodePlaces, gone: Session, found: str) -> None:
    """What is wrong is that the service is gone."""
    images = Images(places, Links())
    note = images._note(gone.where, "app", "1", None)
    note.parent.mkdir()
    note.write_text(found)
    with pytest.raises(UnreachableError):
        images.resolve(gone, "app", "1", None, 1.0)
    tree, manifest = Digest("blake3", bytes(32)), "sha256:" + "b" * 64
    note.write_text(json.dumps({"tree": str(tree), "manifest": manifest}))
    assert images.resolve(gone, "app", "1", None, 1.0) == Resolved(tree, manifest, offline=True)


def test_what_a_name_meant_is_known_of_each_number_of_layers(places: NodePlaces) -> None:
    """Without the service an image would be mounted without its last layers, or with them."""
    manifest, is_down = "sha256:" + "b" * 64, False

    def tree_of(layers: int | None) -> Digest:
        return Digest.of(str(layers).encode(), "blake3")

    def answer(request: httpx.Request) -> httpx.Response:
        if is_down:
            raise httpx.ConnectError("refused", request=request)
        layers = int(request.url.params["layers"]) if "layers" in request.url.params else None
        said = {"image": manifest, "tree": str(tree_of(layers)), "size": 1, "cache": None, "layers": layers}
        return httpx.Response(200, stream=httpx.ByteStream(json.dumps(said).encode()))

    images, transport = Images(places, Links()), httpx.MockTransport(answer)
    with Session("http://127.0.0.1", transport=transport, retry=RetryPolicy(attempts=1)) as session:
        for is_down in (False, True):
            for layers in (1, None, 12):
                found = images.resolve(session, "app", "1", None, 1.0, layers=layers)
                assert found == Resolved(tree_of(layers), manifest, offline=is_down)
        with pytest.raises(UnreachableError):
            images.resolve(session, "app", "1", None, 1.0, layers=2)
