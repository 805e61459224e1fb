"""How clients are told to authenticate: the ``WWW-Authenticate`` header (RFC 9110, section 11; RFC 6750)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pagepool_service.routes.addresses import base_url

if TYPE_CHECKING:
    from fastapi import Request

    from pagepool_service.routes.context import Context

TOKEN_PATH = "/auth/token"


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
    """Where tokens are to be had."""
    if service.settings.token_realm is not None:
        return service.settings.token_realm
    return base_url(request, service) + TOKEN_PATH


def _quotable(text: str) -> str:
    """A name out of a path may have any characters; one that has these is none, and gets its error later."""
    return re.sub(r"[^ !#-\[\]-~]", "?", text)
