"""Requests that web pages of other origins have a browser send: none but those that change nothing.

A browser asks before it sends PUT, PATCH or DELETE for a page of another origin, and shows that page no answer. A POST
it just sends, with the credentials that it remembers, so that any page could fill the store of a service that only its
reader can reach, or change who reads what with his rights. Browsers say with each POST what it is sent for (`Origin`);
other clients say nothing of the kind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pagepool.errors import DeniedError
from pagepool_service.routes.errors import render

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.types import ASGIApp, Receive, Scope, Send


class OwnOrigin:
    """Refuses each POST for a page of another origin than the service's own.

    Args:
        app: what answers the others.
        allowed: origins of pages that may use the service; ``*`` stands for all.
        external_url: where clients reach the service, if it is not where they say.
    """

    def __init__(self, app: ASGIApp, allowed: Sequence[str], external_url: str | None) -> None:
        self.app = app
        self._all = "*" in allowed
        self._hosts = {_host_of(url) for url in (*allowed, external_url or "")} - {""}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass the request on."""
        if scope["type"] == "http" and scope["method"] == "POST" and not self._all:
            headers = dict(scope["headers"])
            origin = headers.get(b"origin", b"").decode("latin-1").lower()
            if origin and not self._is_own(origin, headers):
                error = DeniedError(f"a page of {origin[:128]} may not have a browser send this")
                await render(error)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _is_own(self, origin: str, headers: dict[bytes, bytes]) -> bool:
        # Behind a proxy that says another name to us than it has, browsers know better, where they say it.
        if headers.get(b"sec-fetch-site") == b"same-origin":
            return True
        host = _host_of(origin)
        return bool(host) and (host in self._hosts or host == headers.get(b"host", b"").decode("latin-1").lower())


def _host_of(url: str) -> str:
    """Name and port of an origin, or of a URL, whatever they look like; "" of ``null``."""
    return url.lower().partition("://")[2].partition("/")[0]
