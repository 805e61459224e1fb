"""Trees of the first layers of an image: what is in them, when they are ready, whose they are, and how long."""

from __future__ import annotations

import io
import json
import tarfile
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from blake3 import blake3

from pagepool.digest import Digest
from pagepool.errors import InvalidError, LayerInvalidError, PendingError, TreeUnknownError
from pagepool.image.treefile import ROOT, TreeFile
from pagepool.oci import parse_manifest
from pagepool.transport import Session
from pagepool.transport.trees import TreeClient
from pagepool_service.images import READY, resolve_image
from pagepool_service.store.store import Store
from pagepool_service.treecache import TreeCache
from pagepool_service.treefiles import TreeFiles
from pagepool_service.treeorigins import TreeOrigin
from pagepool_service.trees import Trees
from pagepool_service.treesweep import sweep_trees
from tests.service.pushes import layered_parts, push_layers, tar_layer
from tests.service.test_images_api import settled
from tests.service.test_leases import await_gone, delete_all, take
from tests.store.helpers import ingest_all, push
from tests.support.making import being_made

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tests.support.server import Service

LARGE = b"large" * 60_000  # of three extents
FILES: list[dict[str, bytes]] = [
    {"etc/kept": b"kept\n", "etc/gone": b"gone\n", "etc/both": b"first\n"},
    {"etc/.wh.gone": b"", "etc/both": b"second\n", "bin/large": LARGE},
    {"bin/.wh..wh..opq": b"", "last": b"last\n"},
]
SEEN: list[dict[str, bytes]] = [
    FILES[0],
    {"etc/kept": b"kept\n", "etc/both": b"second\n", "bin/large": LARGE},
    {"etc/kept": b"kept\n", "etc/both": b"second\n", "last": b"last\n"},
]
TARS = [tar_layer(files) for files in FILES]
NAME = "layers/app"


@pytest.fixture(scope="module")
def image(service: Service) -> str:
    """The digest of an image of three layers, which are read."""
    with httpx.Client(base_url=service.url, timeout=30) as http:
        digest = push_layers(http, NAME, "latest", TARS)
        settled(http, f"/v1/{NAME}/images/latest")
    return str(digest)


def tree_of(http: httpx.Client, layers: int | None, name: str = NAME) -> dict[str, Any]:
    answer = http.get(f"/v1/{name}/images/latest/tree", params={} if layers is None else {"layers": layers})
    assert answer.status_code == 200, answer.text
    said: dict[str, Any] = answer.json()
    return said


def files_of(tree: TreeFile, directory: int = ROOT, path: str = "") -> dict[str, bytes]:
    """The objects of a tree by the names of files; those that have none left out."""
    found: dict[str, bytes] = {}
    for name, number in tree.entries(directory):
        node = tree.node(number)
        if tree.kind(number).name == "DIRECTORY":
            found |= files_of(tree, number, f"{path}{name.decode()}/")
        elif node.size:
            found[f"{path}{name.decode()}"] = tree.object(node.object).digest
    return found


# -- over HTTP -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_what_the_first_layers_become(http: httpx.Client, image: str, layers: int) -> None:
    """Each file, and what is below the tree; nothing that only layers above have."""
    said = tree_of(http, layers)
    assert (said["image"], said["layers"]) == (image, layers)
    path = f"/v1/{NAME}/trees/{said['tree']}"
    raw = http.get(path, headers={"Connection": "close"})
    assert f"blake3:{blake3(raw.content).hexdigest()}" == said["tree"]
    found = files_of(TreeFile(raw.content))
    assert found == {name: blake3(data).digest() for name, data in SEEN[layers - 1].items()}
    for name, digest in found.items():
        answer = http.get(f"{path}/objects/blake3:{digest.hex()}", headers={"Connection": "close"})
        assert (answer.status_code, answer.content) == (200, SEEN[layers - 1][name])
    others = {data for seen in SEEN for data in seen.values()} - set(SEEN[layers - 1].values())
    assert {http.get(f"{path}/objects/blake3:{blake3(data).hexdigest()}").status_code for data in others} == {404}
    assert http.post(f"{path}/extents", content=found["etc/both"]).status_code == 200
    wanted = {"objects": [{"object": digest.hex()} for digest in found.values()]}
    assert http.post(f"{path}/fill", content=json.dumps(wanted)).json()["present"] == len(found)
    assert http.get(f"{path}/erofs").content[1024:1028] == bytes.fromhex("e2e1f5e0")


def test_all_layers_are_the_image(http: httpx.Client, image: str) -> None:
    """Who does not ask for so many is not told so, as ever."""
    every, whole = tree_of(http, 3), tree_of(http, None)
    assert every == whole | {"layers": 3}
    assert "layers" not in whole
    assert whole["image"] == image


@pytest.mark.parametrize("layers", ["0", "4", "-1", "x", "", "1.0", "٣", "9" * 18, "9" * 40])
@pytest.mark.usefixtures("image")
def test_layers_that_it_does_not_have(http: httpx.Client, layers: str) -> None:
    answer = http.get(f"/v1/{NAME}/images/latest/tree", params={"layers": layers})
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (400, "UNSUPPORTED")
    assert repr(layers[:32]) in answer.json()["errors"][0]["message"]


def test_it_goes_with_the_manifest_unless_it_is_leased(http: httpx.Client) -> None:
    """A lease on it keeps it, and nothing else; nobody else ever had it."""
    name = "layers/leased"
    push_layers(http, name, "latest", [tar_layer({"own": name.encode()}), *TARS[1:]])
    settled(http, f"/v1/{name}/images/latest")
    first, second = (f"/v1/{name}/trees/{tree_of(http, layers, name)['tree']}" for layers in (1, 2))
    assert http.get(first.replace("leased", "app")).status_code == 404
    lease = take(http, first).json()["id"]
    delete_all(http, name, http.get(f"/v1/{name}/images/latest").json()["digest"])
    await_gone(http, second)
    for _ in range(4):
        assert http.get(first, headers={"Connection": "close"}).status_code == 200
    assert http.delete(f"{first}/lease/{lease}").status_code == 204
    await_gone(http, first)


def test_a_profile_of_it_is_not_that_of_the_image(http: httpx.Client) -> None:
    """What opens something in a part of an image is no start of it. Where that part is an image, it is one of that."""
    name = "layers/learned"
    push_layers(http, name, "latest", TARS)
    settled(http, f"/v1/{name}/images/latest")
    told = json.dumps({"objects": [blake3(b"kept\n").hexdigest()]})
    tree = tree_of(http, 2, name)["tree"]
    assert http.post(f"/v1/{name}/trees/{tree}/profile", content=told).json()["starts"] == 1
    assert http.get(f"/v1/{name}/trees/{tree_of(http, None, name)['tree']}/profile").status_code == 404
    assert [one["images"] for one in http.get(f"/v1/{name}/profiles").json()["profiles"]] == [[]]
    base = push_layers(http, name, "base", TARS[:2])
    settled(http, f"/v1/{name}/images/base")
    assert http.get(f"/v1/{name}/images/base/tree").json()["tree"] == tree_of(http, 2, name)["tree"] == tree
    assert [one["images"] for one in http.get(f"/v1/{name}/profiles").json()["profiles"]] == [[str(base)]]


def test_each_is_made_by_itself(http: httpx.Client, service: Service) -> None:
    """Who asks for one is not given another that is being made just then."""
    name = "layers/made"
    tars = [tar_layer({"own": name.encode()}), *TARS[1:]]
    making = TreeOrigin(Digest.of(layered_parts(tars)[0]), 1).file_name
    path, told = f"/v1/{name}/images/latest/tree", {"Prefer": "respond-async, wait=0"}
    with being_made(service.data, making) as held, ThreadPoolExecutor(1) as pool:
        push_layers(http, name, "latest", tars)
        settled(http, f"/v1/{name}/images/latest")
        assert http.get(path, params={"layers": 1}, headers=told).status_code == 202
        waiting = [pool.submit(tree_of, http, layers, name) for layers in (2, 1)]
        assert http.get(path, params={"layers": 2}, headers=told).status_code == 202
        held.release()
        trees = [one.result()["tree"] for one in waiting]
    assert trees == [tree_of(http, layers, name)["tree"] for layers in (2, 1)]
    assert trees[0] != trees[1]


@pytest.mark.usefixtures("image")
def test_the_client(http: httpx.Client, service: Service) -> None:
    with Session(service.url) as session:
        client = TreeClient(session)
        for layers in (1, 3):
            assert str(client.resolve(NAME, "latest", layers=layers).tree) == tree_of(http, layers)["tree"]


# -- in a store ------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "data") as opened:
        yield opened


def add_image(store: Store, tars: Sequence[bytes], *, read: int | None = None, said: Sequence[bytes] = ()) -> Digest:
    """Push an image.

    Args:
        read: how many of its layers are read; None: all.
        said: tars that its configuration names instead.
    """
    manifest, config, layers = layered_parts(tars)
    if said:
        lying, config, _ = layered_parts(said)
        manifest = json.dumps(json.loads(manifest) | {"config": json.loads(lying)["config"]}).encode()
    for place, blob in enumerate((config, *layers)):
        digest = push(store, blob, repository="app")
        with store.env.write() as txn:
            store.registry.linker("app", digest)(txn)
        if read is None or place <= read:
            ingest_all(store)
    digest = Digest.of(manifest)
    store.registry.put_manifest("app", digest, parse_manifest(manifest), ["latest"])
    return digest


def treefiles(store: Store) -> TreeFiles:
    """As a worker that has just begun."""
    return TreeFiles(store, Trees(store), TreeCache(store.data / "trees"))


def build(store: Store, layers: int | None, files: TreeFiles | None = None) -> TreeFile:
    return (files or treefiles(store)).build("app", resolve_image(store, "app", "latest", first=layers))


def test_layers_above_it_may_be_pending(store: Store) -> None:
    add_image(store, TARS, read=1)
    assert set(files_of(build(store, 1))) == set(SEEN[0])
    for layers in (2, 3, None):
        with pytest.raises(PendingError):
            build(store, layers)
    ingest_all(store)
    assert set(files_of(build(store, 2))) == set(SEEN[1])


@pytest.mark.parametrize("broken", ["no tar", "merges with nothing", "another than is said"])
def test_layers_above_it_may_be_unmountable(store: Store, broken: str) -> None:
    """By themselves, on the ones below, or by what the configuration says of them. That is noted of each by itself."""
    tars = [TARS[0], TARS[1] if broken == "another than is said" else b"this is no tar"]
    if broken == "merges with nothing":
        tars[1] = link_to_nothing()
    add_image(store, tars, said=[TARS[0], TARS[2]] if broken == "another than is said" else ())
    for _ in range(2):
        with pytest.raises(LayerInvalidError):
            build(store, None)
        assert set(files_of(build(store, 1))) == set(SEEN[0])
        assert resolve_image(store, "app", "latest", first=1).state == READY


def link_to_nothing() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.LNKTYPE, "nowhere"
        archive.addfile(link)
    return buffer.getvalue()


@pytest.mark.parametrize("layers", [0, 4, -1])
def test_an_image_has_so_many_layers(store: Store, layers: int) -> None:
    add_image(store, TARS)
    with pytest.raises(InvalidError, match=repr(str(layers))):
        resolve_image(store, "app", "latest", first=layers)


def test_a_lost_file_is_made_again(store: Store) -> None:
    """Out of the layers that it is of, by whoever is asked for the tree alone; as long as it is known to be whose."""
    manifest = add_image(store, TARS)
    raws = {layers: bytes(build(store, layers).raw) for layers in (1, 2)}
    trees = {layers: blake3(raw).digest() for layers, raw in raws.items()}
    for layers, tree in trees.items():
        (store.data / "trees" / tree.hex()).unlink()
        assert treefiles(store).resolve("app", tree).raw == raws[layers]
        diff_ids = tuple(Digest.of(tar) for tar in TARS[:layers])
        assert treefiles(store).origin("app", tree) == (manifest, diff_ids)
    for path in (store.data / "trees" / "links").iterdir():
        path.unlink()
    with pytest.raises(TreeUnknownError):
        treefiles(store).resolve("app", trees[1])


def test_notes_of_it_that_are_damaged(store: Store) -> None:
    """They say nothing: of more layers than there are, of others than became the tree, and of what is no number."""
    manifest = add_image(store, TARS)
    tree = build(store, 2).digest
    (store.data / "trees" / tree.hex()).unlink()
    (link,) = (store.data / "trees" / "links").iterdir()
    link.write_text(f"x/{manifest}\n99/{manifest}\n1/{manifest}\n{manifest}\n")
    with pytest.raises(TreeUnknownError):
        treefiles(store).resolve("app", tree)
    with link.open("a") as file:
        file.write(f"2/{manifest}\n")
    assert treefiles(store).resolve("app", tree).digest == tree


def test_what_leads_to_it_is_forgotten_with_the_manifest(store: Store) -> None:
    manifest = add_image(store, TARS)
    trees = [build(store, layers).digest for layers in (1, None)]
    assert not sweep_trees(store, young_s=0.0)
    store.registry.delete_manifest("app", manifest)
    for tree in trees:
        with pytest.raises(TreeUnknownError):
            treefiles(store).resolve("app", tree)
    assert sweep_trees(store, young_s=0.0)["tree notes"] == 4
    assert not [path for path in (store.data / "trees").rglob("*") if path.is_file()]


def test_a_lease_names_its_layers_alone(store: Store) -> None:
    """Collection keeps these, and the tree is made again of them when all else is gone."""
    manifest = add_image(store, TARS)
    files = treefiles(store)
    tree = build(store, 2, files).digest
    store.leases.take("app", tree, "node", 3600, files.origin("app", tree))
    with store.env.read() as txn:
        ((_, lease),) = store.leases.roots(txn)
    assert lease.layers == tuple(Digest.of(tar) for tar in TARS[:2])
    store.registry.delete_manifest("app", manifest)
    for path in (store.data / "trees").rglob("*"):
        if path.is_file():
            path.unlink()
    files = treefiles(store)
    assert set(files_of(files.resolve("app", tree))) == set(SEEN[1])
    add_image(store, TARS)
    assert files.origin("app", tree) == (manifest, lease.layers)
    assert files.manifests("app", tree) == []


def test_files_of_before_are_read(store: Store) -> None:
    """What an earlier version has noted counts; and it takes none of the new notes for one of its own."""
    manifest = add_image(store, TARS)
    whole = build(store, None)
    notes, links = store.data / "trees" / "images", store.data / "trees" / "links"
    (note,), (link,) = notes.iterdir(), links.iterdir()
    assert note.name == blake3(str(manifest).encode()).hexdigest()
    assert note.read_text() == whole.digest.hex()
    assert link.read_text() == f"{manifest}\n"
    assert build(store, 3).digest == whole.digest
    assert [*notes.iterdir(), *links.iterdir()] == [note, link]
    build(store, 1)
    assert len(list(notes.iterdir())) == 2
    new = next(path for path in links.iterdir() if path != link)
    with pytest.raises(InvalidError):
        Digest.parse(new.read_text().strip())
    note.write_text(build(store, 1).digest.hex())  # what is there is believed
    assert build(store, None).digest == build(store, 1).digest
