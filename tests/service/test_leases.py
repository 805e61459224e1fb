"""Leases over HTTP: a tree that somebody holds is served, whatever is deleted, and whatever the caches forget."""

from __future__ import annotations

import json
import shutil
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from blake3 import blake3

from pagepool.digest import Digest
from pagepool.errors import TreeUnknownError
from pagepool.transport import LeaseClient, Session
from pagepool_service.store.fsck import check_store
from tests.service.pushes import push_image
from tests.service.test_images_api import settled
from tests.support.server import Service, running_service

if TYPE_CHECKING:
    from pathlib import Path

NAME = "leased/app"
CONTENT = b"held content\n" * 20_000  # of three extents
FILES = {"etc/held": CONTENT, "etc/other": b"other\n"}
OBJECT = f"blake3:{blake3(CONTENT).hexdigest()}"


def make(http: httpx.Client, name: str, files: dict[str, bytes] = FILES) -> tuple[str, str]:
    """Push an image; the path of its tree, and the digest of its manifest."""
    push_image(http, name, "latest", files)
    settled(http, f"/v1/{name}/images/latest")
    said = http.get(f"/v1/{name}/images/latest/tree").json()
    return f"/v1/{name}/trees/{said['tree']}", said["image"]


def take(http: httpx.Client, tree: str, **fields: Any) -> httpx.Response:
    body = json.dumps({"holder": "a node", "ttl_s": 3600} | fields)
    return http.post(f"{tree}/lease", content=body.encode())


def delete_all(http: httpx.Client, name: str, image: str) -> None:
    """The manifest with its tags, and the blobs."""
    document = http.get(f"/v2/{name}/manifests/{image}").json()
    assert http.delete(f"/v2/{name}/manifests/{image}").status_code == 202
    for blob in (document["config"], *document["layers"]):
        assert http.delete(f"/v2/{name}/blobs/{blob['digest']}").status_code == 202


def ask(http: httpx.Client, tree: str) -> list[httpx.Response]:
    """For tree, object and an extent, on new connections: of any worker."""
    extent = blake3(CONTENT[:131_072]).digest()
    fresh = {"Connection": "close"}
    return [
        http.get(tree, headers=fresh),
        http.get(f"{tree}/objects/{OBJECT}", headers=fresh),
        http.post(f"{tree}/extents", content=extent, headers=fresh),
    ]


def check_served(http: httpx.Client, tree: str) -> None:
    answers = ask(http, tree)
    assert {answer.status_code for answer in answers} == {200}, [answer.text[:200] for answer in answers]
    assert f"blake3:{blake3(answers[0].content).hexdigest()}" == tree.rpartition("/")[2]
    assert answers[1].content == CONTENT


def await_gone(http: httpx.Client, tree: str) -> None:
    """Each worker may go on for a second."""
    deadline = time.monotonic() + 30
    while {answer.status_code for _ in range(4) for answer in ask(http, tree)} != {404}:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_lease_outlives_the_image(tmp_path: Path) -> None:
    """Also when the service was killed, and had nothing left but its store; and fsck has no complaint."""
    service = Service(tmp_path / "data", ("--workers", "2"))
    service.start()
    try:
        with httpx.Client(base_url=service.url, timeout=30) as http:
            tree, image = make(http, NAME)
            lease = take(http, tree).json()["id"]
            delete_all(http, NAME, image)
            check_served(http, tree)
        service.kill()
        shutil.rmtree(service.data / "trees")
        shutil.rmtree(service.cache)
        assert check_store(service.data).problems == []
        service.start()
        with httpx.Client(base_url=service.url, timeout=30) as http:
            for _ in range(6):
                check_served(http, tree)
            other = take(http, tree, holder="another")  # one lease leads to the next
            assert other.status_code == 201
            assert http.delete(f"{tree}/lease/{lease}").status_code == 204
            check_served(http, tree)
            assert http.delete(f"{tree}/lease/{other.json()['id']}").status_code == 204
            await_gone(http, tree)
            assert take(http, tree).json()["errors"][0]["code"] == "TREE_UNKNOWN"
    finally:
        service.stop()


def test_it_ends_by_itself(http: httpx.Client) -> None:
    tree, image = make(http, "leased/short", {"short": b"short"})
    first = take(http, tree, ttl_s=1)
    assert first.status_code == 201
    delete_all(http, "leased/short", image)
    await_gone(http, tree)
    assert take(http, tree, lease=first.json()["id"]).status_code == 404


def test_it_is_renewed(http: httpx.Client) -> None:
    tree, image = make(http, "leased/renewed", {"renewed": b"renewed"})
    taken = take(http, tree, ttl_s=100).json()
    renewed = take(http, tree, ttl_s=1000, lease=taken["id"])
    assert (renewed.status_code, renewed.json()["id"], renewed.json()["ttl_s"]) == (200, taken["id"], 1000)
    assert renewed.json()["expires_s"] >= taken["expires_s"] + 899
    assert http.delete(f"{tree}/lease/{taken['id']}").status_code == 204
    assert http.delete(f"{tree}/lease/{taken['id']}").json()["errors"][0]["code"] == "LEASE_UNKNOWN"
    again = take(http, tree, lease=taken["id"])  # it has ended, and the image is there
    assert again.status_code == 201
    assert again.json()["id"] != taken["id"]
    delete_all(http, "leased/renewed", image)
    assert take(http, tree, lease=again.json()["id"]).status_code == 200


def test_it_gives_nobody_elses_repository_anything(http: httpx.Client) -> None:
    tree, image = make(http, "leased/private", {"private": b"private"})
    make(http, "leased/public", {"public": b"public"})
    lease = take(http, tree).json()["id"]
    foreign = tree.replace("private", "public")
    assert take(http, foreign).json()["errors"][0]["code"] == "TREE_UNKNOWN"
    assert take(http, foreign, lease=lease).json()["errors"][0]["code"] == "TREE_UNKNOWN"
    assert http.delete(f"{foreign}/lease/{lease}").status_code == 404
    delete_all(http, "leased/private", image)
    assert http.get(foreign).status_code == 404
    assert http.get(tree).status_code == 200


@pytest.mark.parametrize(
    "fields",
    [
        {"holder": ""},
        {"holder": 5},
        {"holder": "x" * 256},
        {"holder": "\ud800"},
        {"ttl_s": 0},
        {"ttl_s": 604_801},
        {"ttl_s": True},
        {"ttl_s": "60"},
        {"lease": "x"},
        {"lease": 5},
        {"lease": "G" * 32},
    ],
)
def test_requests_that_cannot_be_are_refused(http: httpx.Client, fields: dict[str, Any]) -> None:
    tree = f"/v1/leased/app/trees/blake3:{'0' * 64}"
    answer = take(http, tree, **fields)
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (400, "UNSUPPORTED")


def test_bodies_that_are_none(http: httpx.Client) -> None:
    tree = f"/v1/leased/app/trees/blake3:{'0' * 64}"
    for body, status in ((b"", 400), (b"[]", 400), (b"[" * 10_000, 400), (b" " * 20_000, 413)):
        assert http.post(f"{tree}/lease", content=body).status_code == status


def test_the_client(service: Service, http: httpx.Client) -> None:
    tree, image = make(http, "leased/client", {"client": b"client"})
    digest = Digest.parse(tree.rpartition("/")[2])
    with Session(service.url) as session:
        client = LeaseClient(session, clock=lambda: 5000.0)
        lease = client.hold("leased/client", digest, "node", 60)
        assert lease.expires_s == 5060.0  # by this machine's clock, whatever the service's says
        assert client.hold("leased/client", digest, "node", 90, lease.id).id == lease.id
        delete_all(http, "leased/client", image)
        assert http.get(tree).status_code == 200
        client.release("leased/client", digest, lease.id)
        client.release("leased/client", digest, lease.id)
        await_gone(http, tree)
        with pytest.raises(TreeUnknownError):
            client.hold("leased/client", digest, "node", 60, lease.id)


def test_a_service_that_only_reads(tmp_path: Path) -> None:
    with running_service(tmp_path / "data") as service, httpx.Client(base_url=service.url, timeout=30) as http:
        tree, _ = make(http, NAME)
    reader = running_service(tmp_path / "data", "--read-only")
    with reader as service, httpx.Client(base_url=service.url, timeout=30) as http:
        assert http.get(f"/v1/{NAME}/images/latest/tree").status_code == 200
        assert take(http, tree).json()["errors"][0]["code"] == "READ_ONLY"
