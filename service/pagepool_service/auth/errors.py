"""What can be wrong with credentials, and with the files that say who has which."""

from __future__ import annotations

from pagepool.errors import BusyError, InvalidError, UnauthorizedError


class FileInvalidError(InvalidError):
    """A file of users, tokens or rights that cannot be used; names the file, and the line or key."""

    what = "file"


class CredentialsError(UnauthorizedError):
    """Credentials came, and are wrong. Says no more: neither whether there is such a user."""

    def __init__(self, reason: str = "wrong user name, password or token") -> None:
        super().__init__(reason)


class TooManyLoginsError(BusyError):
    """As many passwords as may be are waiting to be verified."""
