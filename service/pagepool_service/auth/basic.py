"""Basic credentials (RFC 7617)."""

from __future__ import annotations

import base64
import binascii

from pagepool_service.auth.errors import CredentialsError


def parse_basic(text: str) -> tuple[str, str]:
    """User name and password of a ``Basic`` header's value.

    Raises:
        CredentialsError: it is none.
    """
    try:
        raw = base64.b64decode(text.strip(), validate=True).decode()
    except (binascii.Error, ValueError):
        raise CredentialsError("the credentials cannot be read: not base64 of NAME:PASSWORD in UTF-8") from None
    name, colon, password = raw.partition(":")
    if not colon:
        raise CredentialsError("the credentials cannot be read: no colon between user name and password")
    return name, password
