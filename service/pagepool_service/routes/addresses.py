"""Where clients reach the service, as they are told in challenges and in `Location` headers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi import Request

    from pagepool_service.routes.context import Context

_HOST = re.compile(r"(?:\[[0-9a-fA-F:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::[0-9]{1,5})?")


def base_url(request: Request, service: Context) -> str:
    """The service as the client sees it, which behind a proxy only the settings know; no slash at the end."""
    settings = service.settings
    if settings.external_url is not None:
        return settings.external_url
    host = request.headers.get("host", "")
    if not _HOST.fullmatch(host):  # it goes back to the same client, but into a header
        name = f"[{settings.host}]" if ":" in settings.host else settings.host
        host = f"{name}:{settings.port}"
    return f"{request.url.scheme}://{host}"


def location(request: Request, service: Context, path: str) -> str:
    """A `Location` of this service: the path, which is right whatever a proxy calls it, unless told otherwise."""
    return base_url(request, service) + path if service.settings.absolute_locations else path
