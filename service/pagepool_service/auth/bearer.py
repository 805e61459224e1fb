"""Tokens that this service signs.

Follows the distribution project's ``spec/auth/{token,jwt,oauth}.md``. A token is a JWT (HS256, `keys`):

    sub     who it is; "" for nobody in particular
    use     "access", for requests; or "refresh", for getting new ones
    access  [{"type": "repository", "name": "team/app", "actions": ["pull"]}, …], of access tokens
    stamp   a digest of the credential that it was given for

What a token allows is also asked of the rights each time: it is never worth more than its owner is now. With the
credential, its stamp changes, and what was signed before is refused.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import jwt

from pagepool_service.auth.principals import Scope
from pagepool_service.auth.scopes import decode_access, encode_access

if TYPE_CHECKING:
    from pagepool_service.auth.keys import KeyRing

REFRESH_S: Final = 90 * 86400
ISSUER: Final = "pagepool"
_ALGORITHM = "HS256"
_LEEWAY_S = 5


@dataclass(frozen=True, slots=True)
class Claims:
    """What a token that we signed says.

    Args:
        subject: who; "" for nobody in particular.
        use: ``access`` or ``refresh``.
        scope: of an access token.
        stamp: of the credential.
        expires_s: Unix time.
    """

    subject: str
    use: str
    scope: Scope
    stamp: str
    expires_s: float


def sign(
    keys: KeyRing, audience: str, subject: str, *, use: str, life_s: float, stamp: str, scope: Scope | None = None
) -> str:
    """A new token.

    Raises:
        ReadOnlyError: there is no key, and none can be made.
    """
    now = int(time.time())
    claims: dict[str, Any] = {
        "iss": ISSUER,
        "aud": audience,
        "sub": subject,
        "use": use,
        "stamp": stamp,
        "iat": now,
        "nbf": now - _LEEWAY_S,
        "exp": now + int(life_s),
        "jti": secrets.token_hex(8),
    }
    if use == "access":
        claims["access"] = encode_access(scope or Scope())
    key = keys.current()
    return jwt.encode(claims, key.secret, algorithm=_ALGORITHM, headers={"kid": key.id})


def verify(keys: KeyRing, audience: str, token: str) -> Claims | None:
    """What a token says, if we signed it for this audience and it has not expired."""
    try:
        key = keys.find(str(jwt.get_unverified_header(token).get("kid", "")))
        if key is None:
            return None
        claims = jwt.decode(
            token,
            key.secret,
            algorithms=[_ALGORITHM],
            audience=audience,
            issuer=ISSUER,
            leeway=_LEEWAY_S,
            options={"require": ["exp", "nbf", "aud", "iss", "sub"]},
        )
        scope = decode_access(claims.get("access", []))
        return Claims(str(claims["sub"]), str(claims["use"]), scope, str(claims["stamp"]), float(claims["exp"]))
    except (jwt.PyJWTError, KeyError, TypeError, ValueError, RecursionError):  # deeply nested JSON, in earlier PyJWTs
        return None
