"""Who a container's program runs as: ``USER[:GROUP]``, by name or number, looked up in the image's own tables.

The rules are those of docker, that is of runc's `libcontainer/user`: a number is always a number, and need not be
in the tables; a name must be; supplementary groups are those whose member lists have the user's name, unless a
group was given. Lines that cannot be read are skipped, as everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pagepool.errors import InvalidError

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAX_ID: Final = (1 << 31) - 1


class UserInvalidError(InvalidError):
    """A user or group that the image does not have."""

    what = "user"


@dataclass(frozen=True, slots=True)
class User:
    """Who a program runs as.

    Args:
        groups: supplementary ones; the first is always `gid`.
        home: the user's home directory, "/" where the image does not say.
    """

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


@dataclass(frozen=True, slots=True)
class _Entry:
    """A line of one of the tables."""

    name: str
    id: int
    gid: int = 0
    home: str = ""
    members: tuple[str, ...] = ()


def find_user(wanted: str, passwd: bytes, group: bytes) -> User:
    """Look a user up.

    Args:
        wanted: user, or user:group; "" is user 0.
        passwd: the image's /etc/passwd.
        group: its /etc/group.

    Raises:
        UserInvalidError: a name that is not there, a number that cannot be one.
    """
    name, _, group_name = wanted.partition(":")
    number = _number(name) if name else 0
    found = next((one for one in _users(passwd) if (one.name == name if number is None else one.id == number)), None)
    if found is None and number is None:
        raise UserInvalidError(wanted, f"/etc/passwd of the image has no {name!r}")
    uid = found.id if found else (number or 0)
    gid = found.gid if found else 0
    groups: list[int] = []
    if group_name:
        gid = _group(wanted, group_name, group)
    elif found:
        groups = [one.id for one in _groups(group) if found.name in one.members]
    for one in (uid, gid):
        if not 0 <= one <= _MAX_ID:
            raise UserInvalidError(wanted, f"numbers are 0 to {_MAX_ID}")
    return User(uid, gid, tuple(dict.fromkeys((gid, *groups))), (found.home if found else "") or "/")


def find_group(name: str, group: bytes) -> int:
    """Look a group up, by name or number.

    Raises:
        UserInvalidError: a name that is not there, a number that cannot be one.
    """
    found = _group(name, name, group)
    if not 0 <= found <= _MAX_ID:
        raise UserInvalidError(name, f"numbers are 0 to {_MAX_ID}")
    return found


def _group(wanted: str, name: str, table: bytes) -> int:
    number = _number(name)
    if number is not None:
        return number
    found = next((one for one in _groups(table) if one.name == name), None)
    if found is None:
        raise UserInvalidError(wanted, f"/etc/group of the image has no {name!r}")
    return found.id


def _users(table: bytes) -> Iterator[_Entry]:
    for fields in _lines(table):
        uid = _number(fields[2]) if len(fields) > 2 else None
        if uid is not None:
            fields += [""] * (7 - len(fields))
            yield _Entry(fields[0], uid, _number(fields[3]) or 0, fields[5])


def _groups(table: bytes) -> Iterator[_Entry]:
    for fields in _lines(table):
        gid = _number(fields[2]) if len(fields) > 2 else None
        if gid is not None:
            members = fields[3].split(",") if len(fields) > 3 else []
            yield _Entry(fields[0], gid, members=tuple(members))


def _lines(table: bytes) -> Iterator[list[str]]:
    for line in table.decode("utf-8", "surrogateescape").splitlines():
        stripped = line.strip()
        if stripped and not stripped.startswith("#"):
            yield stripped.split(":")


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 20 else None
