"""An image's tree and what is below it, from a service with two workers: for its repository, and for nobody else."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from pagepool.digest import Digest
from pagepool.image.treefile import ROOT, TreeFile
from tests.service.pushes import push_image
from tests.service.test_images_api import settled

if TYPE_CHECKING:
    from pathlib import Path

    import httpx

    from tests.support.server import Service

FILES = {"etc/hello": b"hello\n", "bin/tool": b"\x7fELF" * 100_000, "empty": b""}
_UNKNOWN = "blake3:" + "0" * 64


def tree_of(http: httpx.Client, name: str, files: dict[str, bytes]) -> dict[str, Any]:
    """Push an image, and ask for its tree."""
    push_image(http, name, "latest", files)
    settled(http, f"/v1/{name}/images/latest")
    answer = http.get(f"/v1/{name}/images/latest/tree")
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def test_a_tree_and_its_objects(http: httpx.Client) -> None:
    """The file has the digest that names it, and says where each file's content is."""
    said = tree_of(http, "trees/app", FILES)
    answer = http.get(f"/v1/trees/app/trees/{said['tree']}")
    assert answer.status_code == 200
    assert f"blake3:{blake3(answer.content).hexdigest()}" == said["tree"]
    tree = TreeFile(answer.content)
    assert (said["nodes"], said["objects"], said["size"]) == (tree.node_count, tree.object_count, len(answer.content))
    for path, data in FILES.items():
        number = ROOT
        for part in path.encode().split(b"/"):
            number = tree.child(number, part)
        node = tree.node(number)
        assert node.size == len(data)
        if data:
            digest = Digest("blake3", tree.object(node.object).digest)
            found = http.get(f"/v1/trees/app/trees/{said['tree']}/objects/{digest}")
            assert (found.status_code, found.content) == (200, data)
    again = http.get(f"/v1/trees/app/trees/{said['tree']}", headers={"If-None-Match": f'"{said["tree"]}"'})
    assert (again.status_code, again.content) == (304, b"")


def test_every_worker_knows_a_tree(http: httpx.Client, service: Service) -> None:
    """One made it; the others find it in the data directory. New connections go to any of them."""
    said = tree_of(http, "trees/workers", FILES)
    for _ in range(20):
        answer = http.get(f"/v1/trees/workers/trees/{said['tree']}", headers={"Connection": "close"})
        assert answer.status_code == 200
    kept: Path = service.data / "trees" / said["tree"].removeprefix("blake3:")
    assert kept.stat().st_size == said["size"]


def test_a_lost_tree_is_made_again(http: httpx.Client, service: Service) -> None:
    """The files are a cache: damaged or gone, the tree is the same once the image is asked for."""
    said = tree_of(http, "trees/lost", {"only/here": b"lost and found\n"})
    kept: Path = service.data / "trees" / said["tree"].removeprefix("blake3:")
    kept.write_bytes(b"damaged")
    again = http.get("/v1/trees/lost/images/latest/tree")
    assert again.json() == said
    answer = http.get(f"/v1/trees/lost/trees/{said['tree']}")
    assert answer.status_code in (200, 404)  # of the worker that has it open, or of one that must not serve damage
    assert answer.status_code == 404 or f"blake3:{blake3(answer.content).hexdigest()}" == said["tree"]


def test_nobody_elses(http: httpx.Client) -> None:
    """Another repository's tree and one that does not exist are the same 404; so are objects below it."""
    said = tree_of(http, "trees/private", {"secret": b"secret\n"})
    tree_of(http, "trees/public", {"public": b"public\n"})
    secret = f"blake3:{blake3(b'secret' + bytes([10])).hexdigest()}"
    for below in ("", f"/objects/{secret}"):
        ours = http.get(f"/v1/trees/public/trees/{said['tree']}{below}")
        nobodys = http.get(f"/v1/trees/public/trees/{_UNKNOWN}{below}")
        assert (ours.status_code, nobodys.status_code) == (404, 404)
        assert ours.json()["errors"][0]["code"] == nobodys.json()["errors"][0]["code"] == "TREE_UNKNOWN"


def test_it_goes_with_its_manifest(http: httpx.Client) -> None:
    """A repository has a tree as long as it has the image, and a moment longer."""
    said = tree_of(http, "trees/gone", {"gone": b"soon gone\n"})
    assert http.get(f"/v1/trees/gone/trees/{said['tree']}").status_code == 200
    assert http.delete(f"/v2/trees/gone/manifests/{said['image']}").status_code == 202
    deadline = time.monotonic() + 30
    while http.get(f"/v1/trees/gone/trees/{said['tree']}", headers={"Connection": "close"}).status_code != 404:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_is_no_tree(http: httpx.Client) -> None:
    """A digest of another kind is named; an image that is not there is unknown."""
    bad = http.get("/v1/trees/app/trees/sha256:" + "0" * 64)
    assert (bad.status_code, bad.json()["errors"][0]["code"]) == (400, "DIGEST_INVALID")
    assert http.get("/v1/trees/nothing/images/latest/tree").status_code == 404
