"""Who we are to a server."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who we are to a registry. All empty: nobody.

    Args:
        username: user name.
        password: password, or a token that serves as one.
        identity_token: a refresh token, as ``docker login`` stores for some registries; goes before the
            password.
    """

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)

    @property
    def basic(self) -> str:
        """The ``Authorization`` header of basic authentication; "" if there is no user name."""
        if not self.username:
            return ""
        import base64

        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()
