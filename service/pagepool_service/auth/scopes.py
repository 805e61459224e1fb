"""Scopes: what clients ask tokens for, and what tokens say that they allow.

Follows the distribution project's ``spec/auth/scope.md`` and the claim ``access`` of ``jwt.md``.
"""

from __future__ import annotations

import re
from itertools import islice
from typing import TYPE_CHECKING, Any

from pagepool_service.auth.principals import ACTIONS, Scope

if TYPE_CHECKING:
    from collections.abc import Iterable

_MOST_SCOPES = 64
# resourcescope of scope.md; a class behind the type, as in repository(plugin), is none of ours.
_SCOPE = re.compile(r"(?P<type>[a-z0-9]+):(?P<name>[^\s:]+(?::[0-9]+/[^\s:]+)?):(?P<actions>[a-z*]+(?:,[a-z*]+)*)")


def parse_scopes(texts: Iterable[str]) -> Scope:
    """What a client asks for: ``repository:NAME:ACTION,…`` and ``registry:catalog:*``, several in a text included.

    What is of no type that we know, or cannot be read, is left out, as the specification has it; so is what comes
    after the first 64.
    """
    wanted: dict[str, frozenset[str]] = {}
    catalog = False
    parts = (part for text in texts for part in text.split())
    for part in islice(parts, _MOST_SCOPES):
        match = _SCOPE.fullmatch(part)
        if match is None:
            continue
        actions = frozenset(match["actions"].split(","))
        if match["type"] == "registry":
            catalog |= match["name"] == "catalog" and "*" in actions
        elif match["type"] == "repository":
            known = frozenset(ACTIONS) if "*" in actions else actions & frozenset(ACTIONS)
            wanted[match["name"]] = wanted.get(match["name"], frozenset()) | known
    return Scope(wanted, catalog)


def encode_access(scope: Scope) -> list[dict[str, Any]]:
    """A scope as the claim ``access``."""
    entries: list[dict[str, Any]] = [
        {"type": "repository", "name": name, "actions": sorted(actions)}
        for name, actions in scope.repositories.items()
        if actions
    ]
    if scope.catalog:
        entries.append({"type": "registry", "name": "catalog", "actions": ["*"]})
    return entries


def decode_access(entries: Any) -> Scope:
    """Read it back.

    Raises:
        TypeError, ValueError, KeyError: it is none.
    """
    wanted: dict[str, frozenset[str]] = {}
    catalog = False
    for entry in entries:
        kind, name, actions = str(entry["type"]), str(entry["name"]), frozenset(map(str, entry["actions"]))
        if kind == "repository":
            known = frozenset(ACTIONS) if "*" in actions else actions & frozenset(ACTIONS)
            wanted[name] = wanted.get(name, frozenset()) | known
        elif kind == "registry":
            catalog |= name == "catalog" and "*" in actions
    return Scope(wanted, catalog)
