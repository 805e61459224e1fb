"""Static tokens: for programs, with a name and an end, hashed in the file that lists them.

TOML, one table for each, as `pagepool auth token new` writes it:

    [ci]                                   # the name of the token, for people
    user = "ci"                            # who it is in the rights file; the token's name without it
    sha256 = "9f86d0…"                     # of the token
    expires = 2027-01-31T00:00:00Z         # never without it

A token is ``pp_`` and 43 characters out of 256 random bits, so a plain SHA-256 says nothing of it. It is sent as
``Authorization: Bearer``, or as the password of any user name, as docker and podman do.
"""

from __future__ import annotations

import datetime
import hashlib
import re
import secrets
import time
import tomllib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pagepool_service.auth.errors import FileInvalidError
from pagepool_service.auth.htpasswd import check_user

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

PREFIX = "pp_"
_TOKEN = re.compile(r"pp_[A-Za-z0-9_-]{43}")
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class StaticToken:
    """One token, without the token itself.

    Args:
        name: of the token.
        user: who it is.
        expires_s: Unix time from which on it is refused; None for never.
    """

    name: str
    user: str
    expires_s: float | None


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens by the SHA-256 of each. A value."""

    known: Mapping[str, StaticToken] = field(default_factory=dict, repr=False)

    def find(self, token: str) -> StaticToken | None:
        """The token, if it is one of these and has not expired."""
        # Looked up by its hash: how long that takes tells nothing of the token.
        found = self.known.get(hash_token(token)) if is_token(token) else None
        return None if found is None or _has_ended(found) else found

    def stamp(self, hashed: str) -> StaticToken | None:
        """The token of a hash, if it has not expired."""
        found = self.known.get(hashed)
        return None if found is None or _has_ended(found) else found


def is_token(text: str) -> bool:
    """Whether a text has the form of a token."""
    return _TOKEN.fullmatch(text) is not None


def new_token() -> str:
    """A new token."""
    return PREFIX + secrets.token_urlsafe(32)


def hash_token(token: str) -> str:
    """What a file has of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def load_tokens(path: Path) -> Tokens:
    """Read a file.

    Raises:
        FileInvalidError: it cannot be read, or is none; names the token, never its hash.
    """
    try:
        document = tomllib.loads(path.read_text())
    except OSError as error:
        raise FileInvalidError(str(path), error.strerror or str(error)) from None
    except (ValueError, RecursionError) as error:
        raise FileInvalidError(str(path), str(error)) from None
    found: dict[str, StaticToken] = {}
    for name, entry in document.items():
        try:
            hashed, token = _parse(name, entry)
            if hashed in found:
                raise ValueError(f"is the same as {found[hashed].name}")
        except ValueError as error:
            raise FileInvalidError(str(path), f"token {name!r} {error}") from None
        found[hashed] = token
    return Tokens(found)


def _parse(name: str, entry: Any) -> tuple[str, StaticToken]:
    if not isinstance(entry, dict):
        raise ValueError("is no table")
    unknown = next((key for key in entry if key not in ("user", "sha256", "expires")), None)
    if unknown is not None:
        raise ValueError(f"has {unknown!r}, which is none of user, sha256, expires")
    user, hashed, expires = entry.get("user", name), entry.get("sha256"), entry.get("expires")
    if not isinstance(user, str):
        raise ValueError("has a user that is no string")
    check_user(user)
    if not isinstance(hashed, str) or not _HASH.fullmatch(hashed):
        raise ValueError("has no sha256 of 64 hex digits: make it with `pagepool auth token new`")
    return hashed, StaticToken(name, user, _parse_end(expires))


def _parse_end(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, datetime.datetime):
        return (value if value.tzinfo else value.replace(tzinfo=datetime.UTC)).timestamp()
    if isinstance(value, datetime.date):
        return datetime.datetime(value.year, value.month, value.day, tzinfo=datetime.UTC).timestamp()
    raise ValueError("has an end that is no date, as 2027-01-31 is")


def _has_ended(token: StaticToken) -> bool:
    return token.expires_s is not None and token.expires_s <= time.time()
