"""Credentials that do not count any more: what containers see, what commands say, and how it is repaired."""

from __future__ import annotations

import base64
import errno
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from pagepool.errors import UnauthorizedError
from pagepool.transport import Credentials
from tests.fault.conftest import QUICK
from tests.fault.test_node import LAZILY, contents, point, push
from tests.support.nodeserver import running_node
from tests.support.server import running_service

if TYPE_CHECKING:
    from pathlib import Path


class _Door(ThreadingHTTPServer):
    """A service that asks for a password, in front of one that asks for nothing."""

    daemon_threads = True

    def __init__(self, behind: str) -> None:
        super().__init__(("127.0.0.1", 0), _Asking)
        self.behind = httpx.Client(base_url=behind, timeout=30)
        self.password = ""
        self.is_down = False

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Asking(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Door

    def do_GET(self) -> None:
        self._answer()

    do_POST = do_PUT = do_DELETE = do_HEAD = do_GET  # noqa: N815 - likewise

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.server.is_down:
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        wanted = "Basic " + base64.b64encode(f"user:{self.server.password}".encode()).decode()
        if self.headers.get("Authorization") != wanted:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="test"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        skipped = {"host", "authorization", "content-length", "connection"}
        headers = {name: value for name, value in self.headers.items() if name.lower() not in skipped}
        with self.server.behind.stream(self.command, self.path, content=body, headers=headers) as answer:
            content = b"".join(answer.iter_raw())
        self.send_response(answer.status_code)
        for name, value in answer.headers.items():
            if name not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is printed."""


@contextmanager
def _door(behind: str) -> Iterator[_Door]:
    with _Door(behind) as door:
        thread = threading.Thread(target=door.serve_forever)
        thread.start()
        try:
            yield door
        finally:
            door.shutdown()
            thread.join()
            door.behind.close()


def _outcome(path: Path) -> int:
    try:
        path.read_bytes()
    except OSError as error:
        return error.errno or -1
    return 0


def test_credentials_that_have_expired(tmp_path: Path) -> None:
    """An error for what is not here, which `pagepool mounts` tells; mounting with new ones repairs all mounts. Whoever
    mounts the image while its service cannot be asked, with whatever credentials, takes them from nobody; nor does who
    mounts it from another service."""
    files = contents(1)
    at, again, meanwhile = point(tmp_path), point(tmp_path, "again"), point(tmp_path, "meanwhile")
    with (
        running_service(tmp_path / "data", "--workers", "1") as service,
        _door(service.url) as door,
        running_node(tmp_path, QUICK) as node,
    ):
        reference = push(service, "secret", files)
        door.password = "old"
        old, new = Credentials("user", "old"), Credentials("user", "new")
        with node.mount(door.url, reference, at, LAZILY, credentials=old):
            assert (at / "d0/f0").read_bytes() == files["d0/f0"]
            assert node.mounts()[0]["last_error"] is None
            door.password = "new"
            absent = next(name for name, data in files.items() if _outcome(at / name) == errno.EIO and data)
            assert "401" in node.mounts()[0]["last_error"] or "credential" in node.mounts()[0]["last_error"]
            assert (at / "d0/f0").read_bytes() == files["d0/f0"]
            with pytest.raises(UnauthorizedError):
                node.mount(door.url, reference, again, LAZILY, credentials=old)
            with node.mount(door.url, reference, again, LAZILY, credentials=new):
                assert (at / absent).read_bytes() == files[absent]
                door.is_down = True
                with node.mount(door.url, reference, meanwhile, LAZILY, credentials=old) as mounted:
                    assert mounted.fields["offline"]
                    door.is_down = False
                    assert {name: (at / name).read_bytes() for name in files} == files
                errors = {mount["path"]: mount["last_error"] for mount in node.mounts()}
                errors.pop(str(meanwhile), None)  # a mount namespace that another test makes just now may still have it
                assert errors == {str(at): None, str(again): None}
            assert {name: (at / name).read_bytes() for name in files} == files
        # One that is mounted from two is asked for where it was mounted from last, and then where it was before.
        others = contents(2, 5)
        both = push(service, "both", others)
        with node.mount(service.url, both, at, LAZILY), node.mount(door.url, both, again, LAZILY, credentials=new):
            door.password = "newer"
            assert {name: (at / name).read_bytes() for name in others} == others
