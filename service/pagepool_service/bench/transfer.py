"""Pushing and pulling images as clients do, by the routes that every registry has, over one connection.

A push asks whether each blob is there, mounts those that this client has pushed to another repository of the
same registry, and sends the others by POST and one PUT. A pull fetches the manifest and every blob.
Follows distribution-spec v1.1.0.
"""

from __future__ import annotations

import hashlib
import json
import time
from typing import TYPE_CHECKING

from pagepool.errors import DigestMismatchError, LayerInvalidError, PendingError, UnreachableError
from pagepool_service.bench.servers import PAGEPOOL
from pagepool_service.bench.wire import Wire

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pagepool_service.bench.images import SourceBlob, SourceImage
    from pagepool_service.bench.servers import Server

TAG = "bench"
_POLL_S = 0.01
_SLOW_POLL_S = 1.0  # where it takes minutes; statistics of large images cost the service time
_PATIENCE_S = 3600.0


class Transfer:
    """One client of one registry. Remembers what it has pushed where.

    Args:
        server: the registry.
        wire: a connection to it.
    """

    def __init__(self, server: Server, wire: Wire) -> None:
        self._kind = server.kind
        self._wire = wire
        self._homes: dict[str, str] = {}

    def push(self, image: SourceImage) -> int:
        """Push an image; returns the bytes that were sent. On return the registry has acknowledged all of it."""
        sent = sum(self._push_blob(image.name, blob) for blob in image.blobs)
        headers = {"Content-Type": image.manifest.media_type}
        url = f"/v2/{image.name}/manifests/{TAG}"
        self._wire.request("PUT", url, headers, image.manifest.raw).expect(201)
        return sent + len(image.manifest.raw)

    def await_ready(self, image: SourceImage) -> None:
        """Wait until an image can be served in every way the registry has: pagepool reads its layers first.

        Raises:
            LayerInvalidError: it cannot be mounted.
            PendingError: that took more than an hour.
        """
        deadline = time.monotonic() + _PATIENCE_S
        while self._kind == PAGEPOOL:
            answer = self._wire.request("GET", f"/v1/{image.name}/images/{TAG}").expect(200, 202)
            if answer.status == 200:
                if (state := json.loads(answer.body)["state"]) != "ready":
                    raise LayerInvalidError(image.name, f"a layer is {state}")
                return
            self._pause(deadline, image.name)

    def await_settled(self) -> None:
        """Wait until the registry has no more work to do on what was pushed."""
        deadline = time.monotonic() + _PATIENCE_S
        while self._kind == PAGEPOOL and self.totals()["jobs_waiting"]:
            self._pause(deadline, "the store")

    def await_recompressed(self) -> None:
        """Wait until the registry has done what it does when there is nothing else to do."""
        deadline = time.monotonic() + _PATIENCE_S
        while self._kind == PAGEPOOL and self.totals()["frames_waiting"]:
            self._pause(deadline, "the store", _SLOW_POLL_S)

    def totals(self) -> dict[str, object]:
        """What pagepool says that it holds."""
        total: dict[str, object] = json.loads(self._wire.request("GET", "/v1/stats").expect(200).body)["total"]
        return total

    def pull(self, image: SourceImage) -> int:
        """Fetch an image, unverified; returns the bytes of it."""
        size = self._fetch_manifest(image)
        return size + sum(self._wire.fetch(_url(image, blob)) for blob in image.blobs)

    def verify(self, image: SourceImage) -> None:
        """Fetch an image, and check every byte.

        Raises:
            DigestMismatchError: the registry does not give what it was given.
        """
        self._fetch_manifest(image)
        for blob in image.blobs:
            hasher = hashlib.new(blob.digest.algorithm)
            size = self._wire.fetch(_url(image, blob), hasher.update)
            if (hasher.hexdigest(), size) != (blob.digest.hex, blob.size):
                raise DigestMismatchError(blob.digest, hasher.hexdigest(), size)

    def _fetch_manifest(self, image: SourceImage) -> int:
        headers = {"Accept": image.manifest.media_type}
        answer = self._wire.request("GET", f"/v2/{image.name}/manifests/{TAG}", headers).expect(200)
        if answer.body != image.manifest.raw:
            raise DigestMismatchError(image.name, "another manifest", len(answer.body))
        return len(answer.body)

    def _push_blob(self, repository: str, blob: SourceBlob) -> int:
        digest = str(blob.digest)
        if self._wire.request("HEAD", f"/v2/{repository}/blobs/{digest}").expect(200, 404).status == 200:
            return 0
        home = self._homes.setdefault(digest, repository)
        mount = f"?mount={digest}&from={home}" if home != repository else ""
        answer = self._wire.request("POST", f"/v2/{repository}/blobs/uploads/{mount}").expect(201, 202)
        if answer.status == 201:
            return 0
        location = answer.headers.get("location")
        if not location:
            raise UnreachableError(self._kind, "it opened an upload without saying where")
        joint = "&" if "?" in location else "?"
        self._wire.send_file("PUT", f"{location}{joint}digest={digest}", blob.path).expect(201)
        return blob.size

    def _pause(self, deadline: float, what: str, pause_s: float = _POLL_S) -> None:
        if time.monotonic() > deadline:
            raise PendingError(what, ())
        time.sleep(pause_s)


def push_all(server: Server, images: Iterable[SourceImage]) -> None:
    """Push images, one after the other, and wait until the registry has no more work to do on them."""
    with Wire(server.host, server.port) as wire:
        transfer = Transfer(server, wire)
        for image in images:
            transfer.push(image)
            transfer.await_ready(image)
        transfer.await_settled()


def _url(image: SourceImage, blob: SourceBlob) -> str:
    return f"/v2/{image.name}/blobs/{blob.digest}"
