"""A service with users, tokens and rights, and clients of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import bcrypt
import httpx
import pytest

from pagepool.digest import Digest
from tests.support.server import Service, running_service

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

USERS = ("alice", "bob", "carol", "root")
RIGHTS = """
admins = ["root"]

[groups]
team = ["alice", "bob"]

[[rules]]
who = ["@team"]
repositories = ["team/**"]
actions = ["pull", "push"]

[[rules]]
who = ["alice"]
repositories = ["team/**"]
actions = ["delete"]

[[rules]]
who = ["anonymous"]
repositories = ["public/*"]
actions = ["pull"]

[[rules]]
who = ["carol"]
repositories = ["carol/**"]
actions = ["pull", "push", "delete"]

[[quotas]]
repositories = ["team/small"]
size = "100B"
"""


def password(user: str) -> str:
    """The password of a user of these tests: it has what shells, headers and URLs take for their own."""
    return f"pw:{user}/+ %21&=?ü"


def write_users(path: Path, users: tuple[str, ...] = USERS) -> Path:
    """A file of users, at the lowest cost there is."""
    lines = (f"{user}:{bcrypt.hashpw(password(user).encode(), bcrypt.gensalt(5)).decode()}\n" for user in users)
    path.write_text("".join(lines))
    path.chmod(0o600)
    return path


def basic(user: str) -> httpx.BasicAuth:
    """The credentials of a user."""
    return httpx.BasicAuth(user.encode(), password(user).encode())


def push_blob(http: httpx.Client, repository: str, data: bytes, auth: httpx.BasicAuth) -> httpx.Response:
    """Push a blob in one request."""
    query = {"digest": str(Digest.of(data))}
    return http.post(f"/v2/{repository}/blobs/uploads/", params=query, content=data, auth=auth)


def push_image(http: httpx.Client, repository: str, tag: str, auth: httpx.BasicAuth) -> str:
    """Push an image of one small layer that is none. Returns the digest of its manifest."""
    config = json.dumps({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}}).encode()
    assert push_blob(http, repository, config, auth).status_code == 201
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": str(Digest.of(config)),
            "size": len(config),
        },
        "layers": [],
    }
    raw = json.dumps(manifest).encode()
    headers = {"Content-Type": str(manifest["mediaType"])}
    answer = http.put(f"/v2/{repository}/manifests/{tag}", content=raw, headers=headers, auth=auth)
    assert answer.status_code == 201, answer.text
    return str(Digest.of(raw))


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with two workers, users and rights."""
    directory = tmp_path_factory.mktemp("auth")
    (directory / "rights.toml").write_text(RIGHTS)
    users = write_users(directory / "users")
    options = ("--workers", "2", "--htpasswd", str(users), "--rights", str(directory / "rights.toml"), "--access-log")
    with running_service(directory / "data", *options) as running:
        yield running


@pytest.fixture
def http(service: Service) -> Iterator[httpx.Client]:
    """A client of it, without credentials."""
    with httpx.Client(base_url=service.url, timeout=30) as client:
        yield client
