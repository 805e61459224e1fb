"""Principals, and what a verified credential may do. Values; nothing here blocks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

PULL, PUSH, DELETE, CATALOG = "pull", "push", "delete", "catalog"
ACTIONS: Final = (PULL, PUSH, DELETE)
"""What can be done in a repository."""
EVERY_ACTION: Final = frozenset(ACTIONS)
NO_ACTION: Final[frozenset[str]] = frozenset()
ANYBODY = "anonymous"
AUTHENTICATED = "authenticated"
ACCESS_S: Final = 300
"""Seconds that a token for requests lives."""
_MOST_KNOWN = 4096


@dataclass(frozen=True, slots=True)
class Principal:
    """Somebody: a user, or whoever has a token.

    Args:
        name: as the rights file has it; "" for nobody in particular.
        groups: that the rights file puts the name into.
    """

    name: str = ""
    groups: frozenset[str] = frozenset()

    @property
    def anonymous(self) -> bool:
        """Whether it is nobody in particular."""
        return not self.name

    def __str__(self) -> str:
        return self.name or ANYBODY


ANONYMOUS: Final = Principal()


class Decides(Protocol):
    """Says what principals may do."""

    def actions(self, principal: Principal, repository: str) -> frozenset[str]:
        """Those of `ACTIONS` that the principal may do in the repository. Takes microseconds."""
        ...

    def catalog(self, principal: Principal) -> bool:
        """Whether it may see the names and figures of all repositories."""
        ...


class Everything:
    """Lets everybody do everything."""

    def actions(self, principal: Principal, repository: str) -> frozenset[str]:  # noqa: ARG002  (`Decides`)
        """All."""
        return EVERY_ACTION

    def catalog(self, principal: Principal) -> bool:  # noqa: ARG002  (`Decides`)
        """Yes."""
        return True


@dataclass(frozen=True, slots=True)
class Scope:
    """What a bearer token was asked for and given.

    Args:
        repositories: name -> actions.
        catalog: whether repositories may be listed with it.
    """

    repositories: Mapping[str, frozenset[str]] = field(default_factory=dict)
    catalog: bool = False


class Access:
    """What a credential is worth. Thread-safe; made anew when rights change.

    Args:
        principal: who it is.
        rights: what principals may do.
        scope: of a bearer token; None for a credential that stands for its principal.
        until: on the clock of `time.monotonic`: then it has to be verified again.
        unrestricted: whether no authentication is configured at all.
    """

    __slots__ = ("_known", "_rights", "_scope", "principal", "unrestricted", "until")

    def __init__(
        self,
        principal: Principal,
        rights: Decides,
        scope: Scope | None = None,
        *,
        until: float = float("inf"),
        unrestricted: bool = False,
    ) -> None:
        self.principal = principal
        self.until = until
        self.unrestricted = unrestricted
        self._rights = rights
        self._scope = scope
        self._known: dict[str, frozenset[str]] = {}

    def may(self, action: str, repository: str) -> bool:
        """Whether an action of `ACTIONS` may be done in a repository, whether that is there or not."""
        known = self._known.get(repository)
        if known is None:
            known = self._find(repository)
        return action in known

    def sees(self, repository: str) -> bool:
        """Whether it may be known that a repository is there, and what it is called."""
        return self.may(PULL, repository)

    def lists_name(self, repository: str) -> bool:
        """Whether a listing has a repository: a token for listings need not have been asked for each."""
        return self.catalog or self.would(PULL, repository)

    @property
    def catalog(self) -> bool:
        """Whether names and figures of all repositories may be seen."""
        return (self._scope is None or self._scope.catalog) and self._rights.catalog(self.principal)

    @property
    def lists(self) -> bool:
        """Whether repositories may be listed, as far as they may be seen.

        Nobody in particular needs a token for it: else clients that have credentials, and send them only when they are
        asked to, would see what everybody does.
        """
        return self.unrestricted or not self.principal.anonymous if self._scope is None else self._scope.catalog

    def would(self, action: str, repository: str) -> bool:
        """Whether another credential of the same principal may do it: a token that was asked for more."""
        return action in self._rights.actions(self.principal, repository)

    def _find(self, repository: str) -> frozenset[str]:
        found = self._rights.actions(self.principal, repository)
        if self._scope is not None:
            found &= self._scope.repositories.get(repository, NO_ACTION)
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        self._known[repository] = found
        return found


OPEN: Final = Access(ANONYMOUS, Everything(), unrestricted=True)
"""Of everybody, where no authentication is configured."""
