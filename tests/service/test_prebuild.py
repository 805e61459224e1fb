"""Trees and images made ahead: of what was pushed and is ready, once, and never in the way of anything."""

from __future__ import annotations

import gc
import io
import tarfile
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from pagepool.digest import Digest, blake3_raw
from pagepool.image import Node
from pagepool.image.erofs import write_erofs
from pagepool.oci import parse_manifest
from pagepool_service import erofsimages
from pagepool_service.erofsimages import ErofsImage, ErofsImages
from pagepool_service.prebuild import Prebuilder, WantedImages, is_making
from pagepool_service.recompressing import work
from pagepool_service.store.recompress import Recompressor, count_waiting
from pagepool_service.store.store import Store
from tests.service.pushes import image_parts, push_image
from tests.service.test_extents import break_frame
from tests.store.helpers import ingest_all, push

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import httpx

    from pagepool.image.treefile import TreeFile
    from tests.support.server import Service

FILES = {"etc/one": b"the content of a small file\n" * 2}  # which is part of the image


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "data") as opened:
        yield opened


def add_image(store: Store, files: dict[str, bytes]) -> Digest:
    """Push an image into a store; its layer is not read yet."""
    manifest, config, layer = image_parts(files)
    for blob in (config, layer):
        digest = push(store, blob)
        with store.env.write() as txn:
            store.registry.linker("app", digest)(txn)
    digest = Digest.of(manifest)
    store.registry.put_manifest("app", digest, parse_manifest(manifest), ["latest"])
    return digest


def made(data: Path) -> list[str]:
    """The images that are there."""
    return sorted(path.name for path in (data / "trees" / "erofs").glob("*"))


def test_service_makes_what_was_pushed(http: httpx.Client, service: Service) -> None:
    """Nobody asks for it; it is there after a while, and is the one that is served."""
    push_image(http, "prebuild/app", "latest", FILES)
    deadline = time.monotonic() + 60
    while not made(service.data):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    said = http.get("/v1/prebuild/app/images/latest/tree").json()
    assert made(service.data) == [said["tree"].removeprefix("blake3:")]
    assert http.get(f"/v1/prebuild/app/trees/{said['tree']}/erofs").status_code == 200


def test_nothing_is_compressed_again_meanwhile(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both take memory and processors, and that can wait."""
    data = tmp_path / "data"
    recompress = partial(work, store, Recompressor(store.env), partial(is_making, data))
    waiting: list[int] = []

    def look(*given: Any) -> Any:
        recompress()
        with store.env.read() as txn:
            waiting.append(count_waiting(txn))
        return write_erofs(*given)

    monkeypatch.setattr(erofsimages, "write_erofs", look)
    WantedImages(data).add("app", add_image(store, FILES))
    ingest_all(store)
    assert Prebuilder(store, data).run_one()
    assert waiting[0] > 0
    recompress()
    with store.env.read() as txn:
        assert not count_waiting(txn)


def test_what_was_merged_is_let_go_of_before_the_image_is_made(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each takes much memory, with many files."""
    alive: list[int] = []
    build = ErofsImages.build

    def count(images: ErofsImages, tree: TreeFile) -> ErofsImage:
        alive.append(sum(isinstance(one, Node) for one in gc.get_objects()))
        return build(images, tree)

    monkeypatch.setattr(ErofsImages, "build", count)
    gc.collect()  # what an earlier test left
    before = sum(isinstance(one, Node) for one in gc.get_objects())
    manifest = add_image(store, FILES)
    ingest_all(store)
    wanted = WantedImages(tmp_path / "data")
    wanted.add("app", manifest)
    assert Prebuilder(store, tmp_path / "data").run_one()
    assert alive == [before]
    assert len(made(tmp_path / "data")) == 1


def test_layers_that_do_not_merge_make_no_image(http: httpx.Client) -> None:
    """Each of them is fine; that a link leads nowhere is found out when they are merged, and shown from then on."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.LNKTYPE, "nowhere"
        archive.addfile(link)
    push_image(http, "prebuild/linked", "latest", tar=buffer.getvalue())
    deadline = time.monotonic() + 60
    while (said := http.get("/v1/prebuild/linked/images/latest").json())["state"] != "unmountable":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert "nowhere" in said["reason"]
    assert [layer["state"] for layer in said["layers"]] == ["ready"]
    listed = http.get("/v1/images").json()["images"]
    assert [one["state"] for one in listed if one["name"] == "prebuild/linked"] == ["unmountable"]
    assert http.get("/v1/prebuild/linked/images/latest/tree").status_code == 422


def test_notes_wait_until_the_image_is_ready(store: Store, tmp_path: Path) -> None:
    """A note stays while layers are read, and goes with the image that is made."""
    data, now = tmp_path / "data", [0.0]
    wanted, prebuilder = WantedImages(data), Prebuilder(store, data, lambda: now[0])
    wanted.add("app", add_image(store, FILES))
    assert not prebuilder.run_one()
    ingest_all(store)
    assert not prebuilder.run_one(), "it is looked at again after a while"
    now[0] = 10.0
    assert prebuilder.run_one()
    assert len(made(data)) == 1
    assert not wanted.notes()
    assert not prebuilder.run_one()


def test_layers_that_were_read_are_a_reason_to_look(store: Store, tmp_path: Path) -> None:
    """No need to wait then."""
    wanted, prebuilder = WantedImages(tmp_path / "data"), Prebuilder(store, tmp_path / "data", lambda: 0.0)
    wanted.add("app", add_image(store, FILES))
    assert not prebuilder.run_one()
    ingest_all(store)
    prebuilder.look_again()
    assert prebuilder.run_one()


def test_what_cannot_be_made_is_not_tried_again(store: Store, tmp_path: Path) -> None:
    """Unknown, unmountable, damaged: the note goes, and nothing ends."""
    data = tmp_path / "data"
    wanted, prebuilder = WantedImages(data), Prebuilder(store, data)
    wanted.add("app", Digest.of(b"unknown"))
    wanted.add("app", add_image(store, FILES))
    ingest_all(store)
    (digest,) = (blake3_raw(content) for content in FILES.values())
    break_frame(store, digest)
    (data / "trees" / "wanted" / ("0" * 64)).write_bytes(b"no note\xff")
    assert not prebuilder.run_one()
    assert not wanted.notes()
    assert not made(data)


def test_notes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client may push any number of manifests."""
    monkeypatch.setattr("pagepool_service.prebuild._MOST_NOTES", 3)
    wanted = WantedImages(tmp_path)
    for number in range(5):
        wanted.add("app", Digest.of(b"%d" % number))
        wanted.add("app", Digest.of(b"0"))
    assert len(wanted.notes()) == 3
