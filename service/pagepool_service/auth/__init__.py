"""Who asks, and what he may do: credentials, principals, rights. Knows neither HTTP routes nor the store.

    Authorization header  --Authority-->  Access  --may(action, repository)-->  yes or no

A `Principal` is a name with its groups; one without a name is anybody (``anonymous``). An `Access` is what one verified
credential is worth now: its principal's rights, less whatever the scope of a bearer token leaves out. Routes get it as
`routes.access.Caller`, and ask it only where a list has to be filtered, or where a second repository is concerned;
whether the request may be made at all was decided before, by the one table in `routes.access`. `OPEN` is the access of
everybody where no authentication is configured: it may do everything.

    access.may("pull", "team/app")      one of ACTIONS, in a repository
    access.sees("team/app")             whether it may know that the repository is there: the same as "pull"
    access.catalog                      whether it may see all names and figures, whatever it may pull
    access.principal.name               "" for anonymous

| module | what it owns |
|---|---|
| `principals` | `Principal`, `Access`, the actions |
| `patterns` | repository patterns, with ``*`` and ``**`` |
| `rights` | the rights file: groups, rules, quotas |
| `htpasswd` | user names and bcrypt hashes |
| `tokens` | static tokens, hashed |
| `keys` | the keys that tokens are signed with, shared by the workers |
| `bearer` | tokens that this service signs; scopes |
| `external` | tokens that another server signs |
| `authority` | all of that put together: reads the files again when they change, remembers who was verified |

*Secrets.* Files are named in the settings, never their content. Passwords and tokens live as long as a request; what is
remembered of a verified one is a keyed hash. Files hold hashes only, but for the signing keys, which are 0600.

*Invariant.* Whatever cannot be decided is refused: a route without an entry, a file that cannot be read at the start,
a token whose key is unknown. A file that becomes invalid while the service runs is logged, and what was read before
stays in force.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pagepool_service.auth.errors import CredentialsError, FileInvalidError, TooManyLoginsError
from pagepool_service.auth.principals import ACTIONS, ANONYMOUS, OPEN, Access, Principal

if TYPE_CHECKING:
    from pagepool_service.auth.authority import Authority
    from pagepool_service.settings import Settings

__all__ = [
    "ACTIONS",
    "ANONYMOUS",
    "OPEN",
    "Access",
    "CredentialsError",
    "FileInvalidError",
    "Principal",
    "TooManyLoginsError",
    "open_authority",
]


def open_authority(settings: Settings) -> Authority | None:
    """What a service decides by; None if no authentication is configured. Then nothing of cryptography is loaded.

    Raises:
        FileInvalidError: a file of users, tokens or rights cannot be used.
        ReadOnlyError, CorruptError: nor can the signing keys.
    """
    if not settings.authenticates:
        return None
    from pagepool_service.auth.authority import Authority

    return Authority.of(settings)
