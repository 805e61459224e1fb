"""What a user and a repository may take, and that it is counted right when several push at once."""

from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING

import httpx
import pytest

from pagepool.digest import Digest
from pagepool_service.store.room import RepositoryFullError, RoomLimit
from pagepool_service.store.store import Store
from pagepool_service.store.sums import Summer
from pagepool_service.uploadfiles import SessionLimit, TooManyUploadsError, owner_mark
from pagepool_service.uploads import Uploads
from tests.auth.conftest import basic, push_blob, push_image, write_users
from tests.support.server import Service, running_service

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

QUOTA = 1 << 20


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service of which everybody may have three uploads open, and a repository a megabyte."""
    directory = tmp_path_factory.mktemp("limits")
    options = ["--workers", "2", "--htpasswd", str(write_users(directory / "users"))]
    options += ["--max-uploads-per-user", "3", "--repository-quota", str(QUOTA)]
    with running_service(directory / "data", *options) as running:
        yield running


@pytest.fixture
def client(limited: Service) -> Iterator[httpx.Client]:
    """A client of it."""
    with httpx.Client(base_url=limited.url, timeout=30) as http:
        yield http


def test_uploads_of_one_user(client: httpx.Client) -> None:
    def begin(user: str) -> httpx.Response:
        return client.post("/v2/uploads/blobs/uploads/", auth=basic(user))

    opened = [begin("alice").headers["Location"] for _ in range(3)]
    time.sleep(1.1)  # the other worker counts once a second
    refused = begin("alice")
    assert refused.status_code == 429
    assert refused.headers["Retry-After"]
    error = refused.json()["errors"][0]
    assert error == {"code": "TOOMANYREQUESTS", "message": "alice has 3 uploads open, and may have 3"}
    assert begin("bob").status_code == 202
    assert client.delete(opened[0], auth=basic("alice")).status_code == 204
    deadline = time.monotonic() + 60
    while begin("alice").status_code != 202:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_repository_that_is_full(client: httpx.Client) -> None:
    """However the bytes come they are refused, with the figures; what is deleted makes room."""
    auth = basic("bob")
    first, second = b"a" * (QUOTA // 2), b"b" * (QUOTA // 2 + 1)
    assert push_blob(client, "full/app", first, auth).status_code == 201
    refused = push_blob(client, "full/app", second, auth)
    assert refused.status_code == 403
    error = refused.json()["errors"][0]
    assert error["code"] == "DENIED"
    assert error["message"] == (
        f"the quota of repository full/app is {QUOTA} bytes: {len(first)} are used, and {len(second)} more are coming"
    )
    assert push_blob(client, "other/app", second, auth).status_code == 201

    def pieces() -> Iterator[bytes]:
        yield from (second[start : start + 65536] for start in range(0, len(second), 65536))

    place = client.post("/v2/full/app/blobs/uploads/", auth=auth).headers["Location"]
    answer = client.patch(place, content=pieces(), auth=auth)
    if answer.status_code == 202:  # it was all there before the first look
        answer = client.put(place, params={"digest": str(Digest.of(second))}, auth=auth)
    assert answer.status_code == 403
    assert client.get(place, auth=auth).status_code == 404  # it takes no room any more
    query = {"mount": str(Digest.of(second)), "from": "other/app"}
    assert client.post("/v2/full/app/blobs/uploads/", params=query, auth=auth).status_code == 403
    assert push_blob(client, "full/app", first, auth).status_code == 201  # it is there already
    rest = b"c" * (QUOTA - len(first))
    assert push_blob(client, "full/app", rest, auth).status_code == 201
    assert push_blob(client, "full/app", first, auth).status_code == 201
    assert client.delete(f"/v2/full/app/blobs/{Digest.of(rest)}", auth=auth).status_code == 202
    assert client.delete(f"/v2/full/app/blobs/{Digest.of(first)}", auth=auth).status_code == 202
    assert push_blob(client, "full/app", second, auth).status_code == 201
    push_image(client, "full/app", "1", auth)


def test_no_two_pushes_at_once_go_beyond(tmp_path: Path) -> None:
    """Each fits alone; in the transactions only so many do."""
    with Store.open(tmp_path / "data") as store:
        uploads = Uploads(store, max_size=1 << 30)
        limit = RoomLimit(100_000)
        ready = threading.Barrier(8)

        def push(number: int) -> bool:
            data = bytes([number]) * 30_000
            digest = Digest.of(data)
            session = uploads.begin("app")
            upload = uploads.open("app", session.id)
            upload.write([data])
            ready.wait()
            try:
                upload.finish(digest, store.registry.linker("app", digest, limit))
            except RepositoryFullError:
                upload.remove()
                return False
            finally:
                upload.close()
            return True

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(push, range(8))) == 3
        # What was refused left nothing: neither a blob nor its bytes.
        assert [store.blobs.exists(Digest.of(bytes([n]) * 30_000)) for n in range(8)].count(True) == 3
        assert list(store.uploads.iterdir()) == []
        # What is there may come again.
        present = next(n for n in range(8) if store.blobs.exists(Digest.of(bytes([n]) * 30_000)))
        assert push_again(store, uploads, bytes([present]) * 30_000, limit)


def push_again(store: Store, uploads: Uploads, data: bytes, limit: RoomLimit) -> bool:
    """Push what is there already."""
    summer = Summer("sha256")
    summer.update(data)
    path = store.uploads / uploads.begin("app").id
    path.write_bytes(data)
    uploads.admit(path, Digest.of(data), summer, store.registry.linker("app", Digest.of(data), limit))
    return True


def test_whose_an_upload_is(tmp_path: Path) -> None:
    with Store.open(tmp_path / "data") as store:
        uploads = Uploads(store, max_size=1 << 30)
        limit = SessionLimit(store.uploads, 0, 2)
        first = uploads.begin("app", owner="alice").id
        assert first.startswith(owner_mark("alice"))
        uploads.begin("app", owner="bob")
        limit.take("alice")
        with pytest.raises(TooManyUploadsError, match="alice has 2 uploads open"):
            limit.take("alice")
        limit.take("bob")
        limit.take("")  # nobody's are not counted by user
        limit.give_back(first)
        limit.take("alice")


def test_strangers_who_log_in_keep_no_documents_waiting(tmp_path: Path) -> None:
    """Forms that do not come to their end have memory of their own."""
    users = write_users(tmp_path / "users")
    with (
        running_service(
            tmp_path / "data", "--workers", "1", "--htpasswd", str(users), PAGEPOOL_BODY_MEMORY="1MiB"
        ) as service,
        httpx.Client(base_url=service.url, timeout=30) as http,
        ExitStack() as stack,
    ):
        host, port = service.host.split(":")
        for _ in range(20):
            slow = stack.enter_context(socket.create_connection((host, int(port))))
            slow.sendall(b"POST /auth/token HTTP/1.1\r\nHost: x\r\nContent-Length: 65536\r\n\r\n")
        time.sleep(0.5)
        push_image(http, "team/app", "1", basic("alice"))
