"""How fast whole images leave a server: pagepool's extents stream, beside docker-registry's blobs.

Raw sockets that look at nothing, so that the server is what is measured. The stream carries zstd frames, blobs are
gzip: what counts for a user is the plain bytes they become, so each figure has both.
"""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pagepool.errors import ResponseError, UnreachableError
from pagepool.extents.wire import MAX_WANTED, MEDIA_TYPE, encode_wanted
from pagepool_service.bench.wire import BUFFER_SIZE, Wire

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pagepool.image.treefile import TreeFile
    from pagepool_service.bench.images import SourceImage
    from pagepool_service.bench.servers import Server

_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Sent:
    """What a server sent.

    Args:
        wire: bytes that came, framing included.
        plain: bytes of files (or of tars, for layers) that they are.
        seconds: it took.
    """

    wire: int
    plain: int
    seconds: float

    @property
    def plain_rate(self) -> float:
        """Plain bytes a second."""
        return self.plain / self.seconds

    @property
    def wire_rate(self) -> float:
        """Bytes on the wire a second."""
        return self.wire / self.seconds


def stream_extents(server: Server, repository: str, tree: TreeFile) -> Sent:
    """Ask for all extents of a tree, and take what comes."""
    digests = [bytes(tree.extents[at : at + 32]) for at in range(0, len(tree.extents), 32)]
    path = f"/v1/{repository}/trees/blake3:{tree.digest.hex()}/extents"
    begun = time.monotonic()
    wire = sum(
        _post(server, path, encode_wanted(digests[start : start + MAX_WANTED]))
        for start in range(0, len(digests), MAX_WANTED)
    )
    return Sent(wire, tree.object_bytes, time.monotonic() - begun)


def fetch_layers(server: Server, image: SourceImage, plain: int) -> Sent:
    """Fetch all layers of an image as blobs.

    Args:
        plain: bytes of the layers' tars.
    """
    with Wire(server.host, server.port) as wire:
        begun = time.monotonic()
        size = sum(wire.fetch(f"/v2/{image.name}/blobs/{layer.digest}") for layer in image.layers)
        return Sent(size, plain, time.monotonic() - begun)


def _post(server: Server, path: str, body: bytes) -> int:
    """Bytes of a whole answer; the connection's end is the answer's."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {server.host}:{server.port}\r\nContent-Length: {len(body)}\r\n"
        f"Accept: {MEDIA_TYPE}\r\nConnection: close\r\n\r\n"
    ).encode()
    buffer = memoryview(bytearray(BUFFER_SIZE))
    try:
        with socket.create_connection((server.host, server.port), timeout=_TIMEOUT_S) as one:
            one.sendall(head + body)
            count = one.recv_into(buffer)
            status = bytes(buffer[:12]).split(b" ")[-1]
            if status != b"200":
                raise ResponseError(int(status or 0), "", bytes(buffer[:500]).decode(errors="replace"))
            size = count
            while count:
                count = one.recv_into(buffer)
                size += count
    except OSError as error:
        raise UnreachableError(f"{server.host}:{server.port}", str(error)) from error
    return size


def median_of(found: Sequence[Sent]) -> Sent:
    """The one in the middle by its speed."""
    return sorted(found, key=lambda one: one.plain_rate)[len(found) // 2]
