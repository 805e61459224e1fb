"""EROFS images of trees over HTTP: for who may have the tree, whole or in ranges, made again when they are lost."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
import zstandard
from blake3 import blake3

from pagepool.digest import Digest, blake3_raw
from pagepool.errors import CorruptError, TreeUnknownError
from pagepool.image.erofs import INLINE_MAX, write_erofs
from pagepool.transport import Session
from pagepool.transport.trees import TreeClient
from pagepool_service.erofsimages import ErofsImages
from tests.service.test_extents import break_frame
from tests.store.helpers import noise, text
from tests.support.objects import ObjectService, object_service

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pagepool.image.treefile import TreeFile

NAME = "erofs/app"
_SMALL = text(INLINE_MAX, 1)
FILES = {"etc/small": _SMALL, "etc/empty": b"", "bin/large": noise(500_000, 2), "etc/same": _SMALL}
_UNKNOWN = "blake3:" + "0" * 64


@pytest.fixture
def service(tmp_path: Path) -> Iterator[ObjectService]:
    with object_service(tmp_path / "data") as running:
        yield running


@pytest.fixture
def http(service: ObjectService) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, timeout=30, headers={"Accept-Encoding": "identity"}) as client:
        yield client


def url(tree: TreeFile, name: str = NAME) -> str:
    return f"/v1/{name}/trees/{Digest('blake3', tree.digest)}/erofs"


def image_of(tree: TreeFile) -> bytes:
    """The image, made here."""
    known = {blake3_raw(data): data for data in FILES.values()}
    out = io.BytesIO()

    def read(asked: Sequence[int]) -> Iterator[tuple[int, bytes]]:
        return ((index, known[tree.object(index).digest]) for index in asked)

    write_erofs(tree, read, out)
    return out.getvalue()


def test_image_is_the_trees(service: ObjectService, http: httpx.Client) -> None:
    """The same bytes as are written here; the ETag is their digest; HEAD says the same."""
    tree = service.image(NAME, FILES)
    expected = image_of(tree)
    head = http.head(url(tree))
    answer = http.get(url(tree))
    assert (answer.status_code, answer.content) == (200, expected)
    assert FILES["etc/small"] in expected
    assert FILES["bin/large"] not in expected
    for found in (head, answer):
        assert found.headers["etag"] == f'"blake3:{blake3(expected).hexdigest()}"'
        assert found.headers["content-length"] == str(len(expected))
        assert found.headers["content-type"] == "application/vnd.pagepool.erofs.v1"
        assert "immutable" in found.headers["cache-control"]
    for method in ("GET", "HEAD"):
        known = http.request(method, url(tree), headers={"If-None-Match": answer.headers["etag"]})
        assert (known.status_code, known.content) == (304, b"")


def test_ranges(service: ObjectService, http: httpx.Client) -> None:
    """Of the plain image, also when a client takes zstd."""
    tree = service.image(NAME, FILES)
    expected = image_of(tree)
    part = http.get(url(tree), headers={"Range": "bytes=1024-2000", "Accept-Encoding": "zstd"})
    assert (part.status_code, part.content) == (206, expected[1024:2001])
    assert part.headers["content-range"] == f"bytes 1024-2000/{len(expected)}"
    assert http.get(url(tree), headers={"Range": f"bytes={len(expected)}-"}).status_code == 416
    whole = http.get(url(tree), headers={"Range": "bytes=0-1", "If-Range": '"another"'})
    assert (whole.status_code, whole.content) == (200, expected)


def test_compressed(service: ObjectService, http: httpx.Client) -> None:
    """As it lies in the file; its ETag says so."""
    tree = service.image(NAME, FILES)
    expected = image_of(tree)
    with http.stream("GET", url(tree), headers={"Accept-Encoding": "gzip, zstd"}) as answer:
        body = b"".join(answer.iter_raw())
    assert answer.headers["content-encoding"] == "zstd"
    assert answer.headers["etag"] == f'"blake3:{blake3(expected).hexdigest()}+zstd"'
    assert int(answer.headers["content-length"]) == len(body) < len(expected)
    assert zstandard.ZstdDecompressor().decompress(body, max_output_size=len(expected)) == expected


def test_nobody_elses(service: ObjectService, http: httpx.Client) -> None:
    """Also once it was made: another repository's tree and one that does not exist are the same 404."""
    tree = service.image(NAME, FILES)
    assert http.get(url(tree)).status_code == 200
    for path in (url(tree, "erofs/other"), f"/v1/{NAME}/trees/{_UNKNOWN}/erofs"):
        answer = http.get(path)
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (404, "TREE_UNKNOWN")
        assert http.head(path).status_code == 404
    assert http.get(f"/v1/{NAME}/trees/sha256:{'0' * 64}/erofs").status_code == 400
    service.trees.trees.clear()
    assert http.get(url(tree)).status_code == 404


@pytest.mark.parametrize("damage", ["gone", "empty", "first", "last", "torn"])
def test_file_is_a_cache(service: ObjectService, http: httpx.Client, tmp_path: Path, damage: str) -> None:
    """Gone or damaged, the image is made again; a file that is there is used."""
    tree = service.image(NAME, FILES)
    expected = http.get(url(tree)).content
    (path,) = (tmp_path / "data" / "trees" / "erofs").iterdir()
    good = path.read_bytes()
    assert path.name == tree.digest.hex()
    images = ErofsImages(service.store, path.parent)
    assert images.find(tree.digest) is not None
    bad = bytearray(good)
    bad[0 if damage == "first" else -1] ^= 1
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "torn": good[:-1000]}.get(damage, bytes(bad)))
    fresh = ErofsImages(service.store, path.parent)
    assert fresh.find(tree.digest) is None
    assert b"".join(fresh.build(tree).pieces(0, len(expected))) == expected
    assert path.read_bytes() == good


def test_damage_under_an_open_file_is_not_sent(service: ObjectService, http: httpx.Client, tmp_path: Path) -> None:
    """The disk may lose what was good when it was opened."""
    tree = service.image(NAME, FILES)
    expected = http.get(url(tree)).content
    (path,) = (tmp_path / "data" / "trees" / "erofs").iterdir()
    good = path.read_bytes()
    with path.open("r+b") as file:
        file.seek(2000)
        file.write(b"damaged")
    answer = http.get(url(tree))
    assert (answer.status_code, answer.content) == (200, expected)
    assert path.read_bytes() == good


def test_cache_is_bounded(service: ObjectService, tmp_path: Path) -> None:
    """The image used longest ago goes; one that is larger than all may be is served without a file."""
    trees = [service.image(f"{NAME}{number}", {f"f{number}": noise(100, number)}) for number in range(3)]
    size = ErofsImages(service.store, None).build(trees[0]).size
    images = ErofsImages(service.store, tmp_path / "some", size * 3)
    for tree in trees:
        assert images.build(tree).size == size
    kept = {path.name for path in (tmp_path / "some").iterdir()}
    assert kept < {tree.digest.hex() for tree in trees}
    assert trees[-1].digest.hex() in kept
    none = ErofsImages(service.store, tmp_path / "none", size)
    assert none.build(trees[0]).held
    assert not (tmp_path / "none").exists()


def test_damaged_content_is_an_error_that_names_the_object(service: ObjectService, http: httpx.Client) -> None:
    """Of a small file: no image. It is made as soon as the content can be had again."""
    tree = service.image(NAME, FILES)
    small = blake3_raw(FILES["etc/small"])
    break_frame(service.store, small)
    answer = http.get(url(tree))
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (500, "CORRUPT")
    assert f"object {small.hex()}" in answer.json()["errors"][0]["message"]
    with Session(service.url) as session, pytest.raises(CorruptError, match=small.hex()):
        TreeClient(session).fetch_erofs(NAME, Digest("blake3", tree.digest), io.BytesIO())
    break_frame(service.store, small)
    assert http.get(url(tree)).content == image_of(tree)


def test_client_fetches_it(service: ObjectService, tmp_path: Path) -> None:
    """Into a path or a file, plain and verified."""
    tree = service.image(NAME, FILES)
    expected = image_of(tree)
    with Session(service.url) as session:
        client = TreeClient(session)
        digest = client.fetch_erofs(NAME, Digest("blake3", tree.digest), tmp_path / "image")
        out = io.BytesIO(b"before")
        out.seek(0, io.SEEK_END)
        assert client.fetch_erofs(NAME, Digest("blake3", tree.digest), out) == digest
        with pytest.raises(TreeUnknownError):
            client.fetch_erofs("erofs/other", Digest("blake3", tree.digest), tmp_path / "other")
    assert digest.raw == blake3_raw(expected)
    assert (tmp_path / "image").read_bytes() == expected
    assert out.getvalue() == b"before" + expected
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["image"]
