"""The rights file: who may do what in which repositories, and how much a repository may hold.

TOML:

    admins = ["root", "@ops"]              # everything, everywhere

    [groups]
    ops = ["alice", "bob"]

    [[rules]]
    who = ["@ops", "ci"]                   # users, @groups, "anonymous", "authenticated"
    repositories = ["team/**", "base/*"]   # see `patterns`
    actions = ["pull", "push", "delete"]

    [[rules]]
    who = ["monitor"]
    actions = ["catalog"]                  # names and figures of all repositories: needs no `repositories`

    [[quotas]]
    repositories = ["team/**"]
    size = "10GiB"                         # for each of them; the first that fits counts

Rules add up; nothing is taken away. What no rule allows is refused. ``anonymous`` is everybody, with credentials or
without; ``authenticated`` everybody with some. A key that is unknown, a name in `who` that is no user and no group
where that can be known, an empty list: all are errors, because each would silently mean something else.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pagepool import units
from pagepool_service.auth.errors import FileInvalidError
from pagepool_service.auth.patterns import Pattern
from pagepool_service.auth.principals import (
    ACTIONS,
    ANYBODY,
    AUTHENTICATED,
    CATALOG,
    EVERY_ACTION,
    NO_ACTION,
    Principal,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

_NAME = re.compile(r"[^\s:@\x00-\x1f][^\s:\x00-\x1f]{0,127}")
_RESERVED = (ANYBODY, AUTHENTICATED)


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: whose, where, and what.

    Args:
        who: names, groups with their @, and the two that are reserved.
    """

    who: frozenset[str]
    repositories: tuple[Pattern, ...]
    actions: frozenset[str]


@dataclass(frozen=True, slots=True)
class Rights:
    """What a rights file says, or what counts without one. A value.

    Args:
        rules: in the order of the file.
        groups: name -> members.
        admins: who may do everything.
        quotas: pattern, and bytes that each such repository may hold.
    """

    rules: tuple[Rule, ...] = ()
    groups: Mapping[str, frozenset[str]] | None = None
    admins: frozenset[str] = frozenset()
    quotas: tuple[tuple[Pattern, int], ...] = ()

    def principal(self, name: str) -> Principal:
        """Somebody by name, with his groups."""
        groups = (group for group, members in (self.groups or {}).items() if name in members)
        return Principal(name, frozenset(groups))

    def actions(self, principal: Principal, repository: str) -> frozenset[str]:
        """What somebody may do in a repository, whether it is there or not."""
        names = _names(principal)
        if names & self.admins:
            return EVERY_ACTION
        found = NO_ACTION
        for rule in self.rules:
            if names & rule.who and any(pattern.matches(repository) for pattern in rule.repositories):
                found |= rule.actions
        return found & EVERY_ACTION

    def catalog(self, principal: Principal) -> bool:
        """Whether somebody may see the names and figures of all repositories."""
        names = _names(principal)
        return bool(names & self.admins) or any(CATALOG in rule.actions and names & rule.who for rule in self.rules)

    def has_any(self, principal: Principal) -> bool:
        """Whether somebody may do anything at all anywhere."""
        names = _names(principal)
        return bool(names & self.admins) or any(names & rule.who for rule in self.rules)

    def quota(self, repository: str, usual: int) -> int:
        """Bytes that a repository may hold; 0 for no limit.

        Args:
            usual: for a repository that the file says nothing of.
        """
        return next((size for pattern, size in self.quotas if pattern.matches(repository)), usual)

    def names(self) -> frozenset[str]:
        """Every user that the file mentions."""
        found = set(self.admins).union(*(rule.who for rule in self.rules), *(self.groups or {}).values())
        return frozenset(name for name in found if not name.startswith("@") and name not in _RESERVED)


def everything_for_all(*, anonymous_pull: bool) -> Rights:
    """What counts without a file: whoever has credentials may do everything; others nothing, or pull."""
    everywhere = (Pattern("**"),)
    rules = [Rule(frozenset((AUTHENTICATED,)), everywhere, EVERY_ACTION | {CATALOG})]
    if anonymous_pull:
        rules.append(Rule(frozenset((ANYBODY,)), everywhere, frozenset(("pull",))))
    return Rights(tuple(rules))


def load_rights(path: Path) -> Rights:
    """Read a rights file.

    Raises:
        FileInvalidError: it cannot be read, or is none; names the key or line.
    """
    try:
        document = tomllib.loads(path.read_text())
    except OSError as error:
        raise FileInvalidError(str(path), error.strerror or str(error)) from None
    except (ValueError, RecursionError) as error:  # tomllib names line and column
        raise FileInvalidError(str(path), str(error)) from None
    try:
        return parse_rights(document)
    except ValueError as error:
        raise FileInvalidError(str(path), str(error)) from None


def parse_rights(document: Mapping[str, Any]) -> Rights:
    """What a document says.

    Raises:
        ValueError: it is none; names the key.
    """
    _check_keys(document, "", ("admins", "groups", "rules", "quotas"))
    groups = _parse_groups(document.get("groups", {}))
    rules = tuple(_parse_rule(rule, f"rules[{n}]", groups) for n, rule in enumerate(_tables(document, "rules"), 1))
    quotas = [_parse_quota(quota, f"quotas[{n}]") for n, quota in enumerate(_tables(document, "quotas"), 1)]
    admins = _parse_who(document["admins"], "admins", groups) if "admins" in document else frozenset()
    if ANYBODY in admins:
        raise ValueError(f'admins: "{ANYBODY}" cannot be one')
    return Rights(rules, groups, admins, tuple(pair for pairs in quotas for pair in pairs))


def _names(principal: Principal) -> frozenset[str]:
    """What a principal is called in rules."""
    if principal.anonymous:
        return frozenset((ANYBODY,))
    return frozenset((ANYBODY, AUTHENTICATED, principal.name, *(f"@{group}" for group in principal.groups)))


def _parse_groups(value: object) -> dict[str, frozenset[str]]:
    if not isinstance(value, dict):
        raise ValueError("groups: is no table of lists")
    found = {}
    for name, members in value.items():
        key = f"groups.{name}"
        _check_name(name, key)
        found[name] = frozenset(_check_name(member, key) for member in _strings(members, key))
    return found


def _parse_rule(rule: Mapping[str, Any], key: str, groups: Mapping[str, object]) -> Rule:
    _check_keys(rule, key, ("who", "repositories", "actions"), required=("who", "actions"))
    actions = _strings(rule["actions"], f"{key}.actions")
    for action in actions:
        if action not in (*ACTIONS, CATALOG):
            raise ValueError(f"{key}.actions: {action!r} is none of {', '.join((*ACTIONS, CATALOG))}")
    if set(actions) == {CATALOG} and "repositories" in rule:
        raise ValueError(f"{key}.repositories: {CATALOG} is about all repositories, and takes no list of them")
    if set(actions) != {CATALOG} and "repositories" not in rule:
        raise ValueError(f"{key}: repositories is missing")
    patterns = _parse_patterns(rule["repositories"], f"{key}.repositories") if "repositories" in rule else ()
    return Rule(_parse_who(rule["who"], f"{key}.who", groups), patterns, frozenset(actions))


def _parse_quota(quota: Mapping[str, Any], key: str) -> list[tuple[Pattern, int]]:
    _check_keys(quota, key, ("repositories", "size"), required=("repositories", "size"))
    size = quota["size"]
    try:
        limit = units.parse_size(size) if isinstance(size, str) else size
    except units.SizeInvalidError as error:
        raise ValueError(f"{key}.size: {size!r} {error.reason}") from None
    if type(limit) is not int or limit < 0:
        raise ValueError(f"{key}.size: {size!r} is no size, as 10GiB is; 0 for no limit")
    return [(pattern, limit) for pattern in _parse_patterns(quota["repositories"], f"{key}.repositories")]


def _parse_who(value: object, key: str, groups: Mapping[str, object]) -> frozenset[str]:
    found = _strings(value, key)
    for name in found:
        if name.startswith("@"):
            if name[1:] not in groups:
                raise ValueError(f"{key}: there is no group {name[1:]!r}")
        elif name not in _RESERVED:
            _check_name(name, key)
    return frozenset(found)


def _parse_patterns(value: object, key: str) -> tuple[Pattern, ...]:
    found = []
    for text in _strings(value, key):
        try:
            found.append(Pattern(text))
        except ValueError as error:
            raise ValueError(f"{key}: {text!r} {error}") from None
    return tuple(found)


def _check_name(name: str, key: str) -> str:
    if name in _RESERVED or not _NAME.fullmatch(name):
        raise ValueError(f"{key}: {name!r} cannot be a name: no blanks, colons, or @ in front; not {_RESERVED}")
    return name


def _check_keys(table: object, key: str, known: Iterable[str], required: Iterable[str] = ()) -> None:
    assert isinstance(table, dict)
    where = f"{key}: " if key else ""
    for name in table:
        if name not in known:
            raise ValueError(f"{where}{name!r} is none of {', '.join(known)}")
    for name in required:
        if name not in table:
            raise ValueError(f"{where}{name} is missing")


def _tables(document: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    value = document.get(key, [])
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise ValueError(f"{key}: is no list of tables, [[{key}]]")
    return value


def _strings(value: object, key: str) -> list[str]:
    if not isinstance(value, list) or not value or not all(isinstance(entry, str) for entry in value):
        raise ValueError(f"{key}: is no list of strings, with one at least")
    return value
