"""What people see of start-up profiles."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from pagepool.digest import Digest, blake3_raw
from pagepool.extents import EXTENT_SIZE
from pagepool.transport import ProfileClient, Session
from tests.service.pushes import push_image
from tests.service.test_images_api import settled
from tests.support.server import Service, running_service

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.cli.conftest import Run

FILES = {"lib/libc.so": b"libc 1", "bin/tool": b"tool", "bin/same": b"tool"}
TOOL, LIBC = blake3_raw(b"tool"), blake3_raw(b"libc 1")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(tmp_path_factory.mktemp("profile") / "data") as running:
        yield running


def push(service: Service, name: str, tag: str, files: dict[str, bytes]) -> Digest:
    """Push an image; its tree."""
    with httpx.Client(base_url=service.url, timeout=30) as http:
        push_image(http, name, tag, files)
        settled(http, f"/v1/{name}/images/{tag}")
        return Digest.parse(http.get(f"/v1/{name}/images/{tag}/tree").json()["tree"])


def test_a_profile_is_shown_and_deleted(run: Run, service: Service) -> None:
    tree = push(service, "shown", "1", FILES)
    newer = push(service, "shown", "2", FILES | {"lib/libc.so": b"libc two"})
    name = f"{service.host}/shown"
    nothing = run("profile", "show", f"{name}:1")
    assert (nothing.code, nothing.err) == (
        3,
        f"pagepool: error: start-up profile of tree {tree.short} ({name}:1) is unknown\n",
    )
    with Session(service.url) as session:
        ProfileClient(session).record("shown", tree, [LIBC, TOOL])
    shown = run("profile", "show", f"{name}:1")
    assert shown.out.split() == ["SIZE", "READ", "PATH", "6", "B", "/lib/libc.so", "4", "B", "/bin/same"]
    assert "2 contents, 10 B of 10 B, learned from 1 start\n" in shown.err
    inherited = run("profile", "show", "--similar", "--json", f"{name}:2").json
    assert [one["path"] for one in inherited["objects"]] == ["/lib/libc.so", "/bin/same"]
    assert (inherited["tree"], inherited["learned_from"], inherited["starts"]) == (str(newer), str(tree), 1)
    assert run("profile", "show", f"{name}:2").code == 3
    (listed,) = run("profile", "list", "--json", name).json["profiles"]
    assert (listed["tree"], listed["objects"], len(listed["images"])) == (str(tree), 2, 1)
    assert run("profile", "list", name).out.splitlines()[1].startswith(tree.short)
    assert run("profile", "rm", f"{name}:1").out == f"{name}:1\n"
    assert run("profile", "rm", f"{name}:1").code == 3
    assert run("profile", "list", "--json", name).json["profiles"] == []


def test_it_says_how_much_of_each_is_read(run: Run, service: Service) -> None:
    big = os.urandom(EXTENT_SIZE * 3 + 1)
    tree = push(service, "read", "1", FILES | {"lib/big.so": big})
    with Session(service.url) as session:
        ProfileClient(session).record("read", tree, [LIBC, blake3_raw(big)], {blake3_raw(big): [0, 3]})
    shown = run("profile", "show", f"{service.host}/read:1")
    assert shown.out.splitlines()[2].split() == ["393.2", "kB", "131.1", "kB", "/lib/big.so"]
    assert "2 contents, 131.1 kB of 393.2 kB, learned from 1 start\n" in shown.err
    libc, part = run("profile", "show", "--json", f"{service.host}/read:1").json["objects"]
    assert (libc["read"], part["read"], part["size"]) == (None, EXTENT_SIZE + 1, len(big))


def test_wrong_usage(run: Run, service: Service) -> None:
    assert run("profile", "list", f"{service.host}/shown:1").code == 2
    assert run("profile", "show", f"{service.host}/nothing:1").code == 3
    unknown = run("profile", "list", f"{service.host}/nothing")
    assert (unknown.code, unknown.err) == (3, "pagepool: error: repository nothing is unknown\n")


def test_the_page_names_the_commands() -> None:
    page = (Path(__file__).parents[2] / "docs" / "registry.md").read_text()
    for name in ("list app", "show app:1", "rm app:1"):
        assert f"pagepool profile {name}" in page
