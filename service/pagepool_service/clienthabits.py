"""What clients that were written for other registries take for granted, though no specification says so.

The names of headers have no case, and uvicorn writes them in lower case. Scripts that search what curl prints for
``Docker-Content-Digest``, and clients that keep headers in a plain dictionary, know them as registries written in Go
spell them: each part with a capital letter. What uvicorn itself looks for, as ``content-length``, stays as it is.

Where an upload goes on is a location with a query in it, at docker-registry. So some append ``&digest=...`` to what
they get, whatever it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send


class _Spelt(bytes):
    """A name that is written as it is spelt: uvicorn writes what `lower` returns."""

    __slots__ = ()

    def lower(self) -> bytes:
        return self


_VERSION: Final = (_Spelt(b"Docker-Distribution-Api-Version"), b"registry/2.0")
_SPELT: Final = {
    name: _Spelt(name.title())
    for name in (
        b"accept-ranges",
        b"content-range",
        b"content-type",
        b"docker-content-digest",
        b"docker-upload-uuid",
        b"etag",
        b"link",
        b"location",
        b"oci-chunk-min-length",
        b"oci-filters-applied",
        b"oci-subject",
        b"oci-tag",
        b"range",
        b"retry-after",
        b"www-authenticate",
    )
}


_UPLOADS: Final = b"/blobs/uploads/"
_DIGEST: Final = b"&digest="


class ClientHabits:
    """Adds the header by which Docker's clients know a registry to every answer under /v2, and spells the others.

    Takes ``&digest=...`` at the end of an upload's path for its query.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http" or not scope["path"].startswith("/v2"):
            await self.app(scope, receive, send)
            return

        async def send_with_version(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [(_SPELT.get(name, name), value) for name, value in message["headers"]]
                message["headers"].append(_VERSION)
            await send(message)

        raw = scope.get("raw_path") or b""
        if _DIGEST in raw and _UPLOADS in raw and not scope["query_string"]:
            scope["path"] = scope["path"].partition("&")[0]
            scope["raw_path"], _, scope["query_string"] = raw.partition(b"&")
        await self.app(scope, receive, send_with_version)
