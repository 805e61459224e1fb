"""A client's line to its coordinator: JSON by POST, a connection for each, so that nothing is left hanging."""

from __future__ import annotations

import hashlib
import http.client
import json
import time
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from pagepool.errors import CorruptError, InvalidError, ResponseError, UnreachableError

if TYPE_CHECKING:
    from pathlib import Path

_TIMEOUT_S: Final = 15.0
_PAUSE_S: Final = 0.3
_LARGEST: Final = 256 << 20


class CoordinatorLink:
    """A coordinator. Thread-safe; blocks.

    Args:
        url: ``http://HOST:PORT``.

    Raises:
        InvalidError: it is none.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        try:
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port = None, None
        if parts.scheme != "http" or not host or not port:
            raise InvalidError(url, "is no address of a coordinator, such as http://127.0.0.1:7000")
        self._host, self._port = host, port

    @property
    def where(self) -> str:
        """``host:port``, for people."""
        return f"{self._host}:{self._port}"

    def post(self, path: str, fields: dict[str, Any], timeout_s: float = _TIMEOUT_S) -> dict[str, Any]:
        """Say something, and hear the answer.

        Raises:
            UnreachableError: nobody answers.
            ResponseError: it is refused, with the reason.
        """
        data = self._exchange("POST", path, json.dumps(fields).encode(), timeout_s)
        try:
            answer = json.loads(data)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise ResponseError(200, "", f"{self.where} answers {path} with no object: it is no coordinator")
        return answer

    def join(self, fields: dict[str, Any], wait_s: float) -> dict[str, Any]:
        """Join the test, once the coordinator is there.

        Args:
            wait_s: how long to try.
        """
        end = time.monotonic() + wait_s
        while True:
            try:
                return self.post("/v1/join", fields)
            except UnreachableError:
                if time.monotonic() >= end:
                    raise
            time.sleep(_PAUSE_S)

    def fetch_truth(self, digest: str, path: Path) -> None:
        """Write a truth file.

        Args:
            digest: SHA-256 that it must have, in hex.

        Raises:
            CorruptError: it is another one.
        """
        data = self._exchange("GET", f"/v1/truth/{digest}", None, _TIMEOUT_S)
        if hashlib.sha256(data).hexdigest() != digest:
            raise CorruptError("truth file", digest, "came with other bytes")
        path.write_bytes(data)

    def _exchange(self, method: str, path: str, body: bytes | None, timeout_s: float) -> bytes:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=timeout_s)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
            answer = connection.getresponse()
            data = answer.read(_LARGEST)
        except (OSError, http.client.HTTPException) as error:
            raise UnreachableError(f"the coordinator at {self.where}", str(error) or type(error).__name__) from error
        finally:
            connection.close()
        if answer.status != 200:
            raise ResponseError(answer.status, "", _reason(data))
        return data


def _reason(data: bytes) -> str:
    try:
        return str(json.loads(data)["error"])
    except (ValueError, KeyError, TypeError):
        return data[:200].decode(errors="replace")
