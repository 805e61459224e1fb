"""Which extended attributes a file of Linux can have: those that setxattr(2) takes on some file system. Pure.

A tar can say any. What no file can have is kept in trees, and shown by no mount: system calls would fail on some of it
(an access control list that is none keeps everybody but root from opening its file), and programs that copy what they
found listed would stop.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING, Final

from pagepool.image.member import Kind

if TYPE_CHECKING:
    from collections.abc import Mapping

LONGEST_NAME: Final = 255
_USER: Final = b"user."
_PREFIXES: Final = (_USER, b"trusted.", b"security.")
_LISTS: Final = frozenset((b"system.posix_acl_access", b"system.posix_acl_default"))
_DEFAULT: Final = b"system.posix_acl_default"
_CAPABILITY: Final = b"security.capability"
_HAVE_USER: Final = (Kind.REGULAR, Kind.DIRECTORY)

_HEADER: Final = struct.pack("<I", 2)
_ENTRY: Final = struct.Struct("<HHI")
_NAMED_TAGS: Final = (2, 8)
_NOBODY: Final = 0xFFFFFFFF
_MOST_RIGHTS: Final = 7
_MOST_TAG: Final = 0xFF
# Tags in the order of posix_acl_valid in Linux's fs/posix_acl.c: with named users or groups there is a mask.
_TAGS: Final = re.compile(rb"\x01(?:\x02*\x04\x08*\x10|\x04)\x20")


def can_have(kind: Kind, name: bytes, value: bytes) -> bool:
    """Whether an inode of a kind can have an attribute. How much of it a file system takes is not looked at."""
    if name in _LISTS:
        held = kind is Kind.DIRECTORY or (kind is not Kind.SYMLINK and name != _DEFAULT)
        return held and _is_list(value)
    if name == _CAPABILITY and not _is_capability(value):
        return False
    if len(name) > LONGEST_NAME or b"\0" in name or not name.startswith(_PREFIXES) or name in _PREFIXES:
        return False
    return kind in _HAVE_USER or not name.startswith(_USER)


def only_possible(kind: Kind, xattrs: Mapping[bytes, bytes]) -> Mapping[bytes, bytes]:
    """Those of an inode's attributes that it can have."""
    if all(can_have(kind, name, value) for name, value in xattrs.items()):
        return xattrs
    return {name: value for name, value in xattrs.items() if can_have(kind, name, value)}


def _is_list(value: bytes) -> bool:
    """Whether it is an access control list that setxattr(2) takes and keeps."""
    if value[: len(_HEADER)] != _HEADER or (len(value) - len(_HEADER)) % _ENTRY.size:
        return False
    entries = list(_ENTRY.iter_unpack(value[len(_HEADER) :]))
    if any(tag > _MOST_TAG or right > _MOST_RIGHTS for tag, right, _ in entries):
        return False
    if any(tag in _NAMED_TAGS and who == _NOBODY for tag, _, who in entries):
        return False
    return _TAGS.fullmatch(bytes(tag for tag, _, _ in entries)) is not None


def _is_capability(value: bytes) -> bool:
    """Whether it has the form that setxattr(2) demands: revision 2 or 3, and their sizes."""
    return (len(value), value[3:4]) in ((20, b"\2"), (24, b"\3"))
