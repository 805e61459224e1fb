"""How clients are told to authenticate: the ``WWW-Authenticate`` header (RFC 9110, section 11; RFC 6750)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi import Request

    from pagepool_service.routes.context import Context

TOKEN_PATH = "/auth/token"
_HOST = re.compile(r"(?:\[[0-9a-fA-F:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::[0-9]{1,5})?")


def challenge(request: Request, service: Context, scope: str, error: str) -> dict[str, str]:
    """The header of a 401.

    Args:
        scope: what a token is to be asked for, with spaces between several; "" for no more than to log in.
        error: of RFC 6750, for a token that was sent; "" for none.
    """
    settings = service.settings
    if settings.challenge == "basic":
        return {"WWW-Authenticate": 'Basic realm="pagepool", charset="UTF-8"'}
    fields = {"realm": realm(request, service), "service": settings.token_service}
    if scope:
        fields["scope"] = _quotable(scope)
    if error:
        fields["error"] = error
    return {"WWW-Authenticate": "Bearer " + ",".join(f'{name}="{value}"' for name, value in fields.items())}


def realm(request: Request, service: Context) -> str:
    """Where tokens are to be had: as the client sees it, which behind a proxy only the settings know."""
    settings = service.settings
    if settings.token_realm is not None:
        return settings.token_realm
    if settings.external_url is not None:
        return settings.external_url + TOKEN_PATH
    host = request.headers.get("host", "")
    if not _HOST.fullmatch(host):  # it goes back to the same client, but into a header
        host = f"{settings.host}:{settings.port}"
    return f"{request.url.scheme}://{host}{TOKEN_PATH}"


def _quotable(text: str) -> str:
    """A name out of a path may have any characters; one that has these is none, and gets its error later."""
    return re.sub(r"[^ !#-\[\]-~]", "?", text)
