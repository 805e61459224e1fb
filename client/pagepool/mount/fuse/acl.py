"""POSIX access control lists as extended attributes: how they follow a mode, and a mode follows them. Pure.

The kernel checks permissions by them and keeps them; that lists, modes and what is made in a directory agree is up to
the file system. The format is that of ``include/uapi/linux/posix_acl_xattr.h``: a version, then entries of a tag, the
permissions, and a user or group. Linux's own rules hold (posix_acl(5), fs/posix_acl.c): a list without a mask is a
mode; with one, the group bits of the mode are the mask.
"""

from __future__ import annotations

import errno
from struct import Struct
from typing import Final, NamedTuple

from pagepool.vfs.interface import fail

ACCESS: Final = b"system.posix_acl_access"
DEFAULT: Final = b"system.posix_acl_default"

_VERSION: Final = 2
_HEADER: Final = Struct("<I")
_ENTRY: Final = Struct("<HHI")
_USER_OBJ: Final = 0x01
_USER: Final = 0x02
_GROUP_OBJ: Final = 0x04
_GROUP: Final = 0x08
_MASK: Final = 0x10
_OTHER: Final = 0x20
_NAMED: Final = _USER | _GROUP
_ALL: Final = frozenset({_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER})
_PERMISSIONS: Final = 0o777
_ANY: Final = 0o7


class Entry(NamedTuple):
    """A line of a list."""

    tag: int
    permissions: int
    id: int


def parse_acl(value: bytes) -> list[Entry]:
    """A list. EINVAL, EOPNOTSUPP if it is none."""
    if len(value) < _HEADER.size or (len(value) - _HEADER.size) % _ENTRY.size:
        fail(errno.EINVAL)
    if _HEADER.unpack_from(value)[0] != _VERSION:
        fail(errno.EOPNOTSUPP)
    entries = [Entry(*fields) for fields in _ENTRY.iter_unpack(value[_HEADER.size :])]
    tags = [entry.tag for entry in entries]
    if not _ALL.issuperset(tags) or any(entry.permissions > _ANY for entry in entries):
        fail(errno.EINVAL)
    named = any(tag & _NAMED for tag in tags)
    once = [tags.count(tag) for tag in (_USER_OBJ, _GROUP_OBJ, _OTHER)]
    if entries and (once != [1, 1, 1] or not named <= tags.count(_MASK) <= 1):
        fail(errno.EINVAL)
    return entries


def encode_acl(entries: list[Entry]) -> bytes:
    """The extended attribute of a list."""
    return _HEADER.pack(_VERSION) + b"".join(_ENTRY.pack(*entry) for entry in entries)


def is_mode(entries: list[Entry]) -> bool:
    """Whether a list says no more than a mode can."""
    return all(entry.tag in (_USER_OBJ, _GROUP_OBJ, _OTHER) for entry in entries)


def mode_of(entries: list[Entry], mode: int) -> int:
    """The mode that goes with a list, the bits beside permissions as they are."""
    by_tag = {entry.tag: entry.permissions for entry in entries}
    group = by_tag.get(_MASK, by_tag[_GROUP_OBJ])
    return mode & ~_PERMISSIONS | by_tag[_USER_OBJ] << 6 | group << 3 | by_tag[_OTHER]


def with_mode(entries: list[Entry], mode: int) -> list[Entry]:
    """The list that goes with a new mode, as chmod(2) has it."""
    bits = _bits(entries, mode)
    return [entry._replace(permissions=bits.get(entry.tag, entry.permissions)) for entry in entries]


def inherit(default: list[Entry], mode: int) -> list[Entry]:
    """The list of what is made with a mode in a directory that has a default: what both of them allow."""
    bits = _bits(default, mode)
    return [entry._replace(permissions=entry.permissions & bits.get(entry.tag, _ANY)) for entry in default]


def _bits(entries: list[Entry], mode: int) -> dict[int, int]:
    """The permissions of a mode by the tags of the entries that they are in a list."""
    group = _MASK if any(entry.tag == _MASK for entry in entries) else _GROUP_OBJ
    return {_USER_OBJ: mode >> 6 & _ANY, group: mode >> 3 & _ANY, _OTHER: mode & _ANY}
