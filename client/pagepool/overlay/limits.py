"""What an overlay takes: names, targets, sizes, links and extended attributes, as Linux bounds them."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from pagepool.image.member import MAX_NAME, MAX_PATH, Kind
from pagepool.vfs.interface import PAGE_SIZE, XATTR_CREATE, XATTR_REPLACE, fail

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_SIZE: Final = (1 << 63) - PAGE_SIZE
MAX_LINKS: Final = 65000
MAX_XATTR_VALUE: Final = 65536
# listxattr(2) has no room for more names; the other limit keeps an inode's attributes in one record.
MAX_XATTR_NAMES: Final = 65536
MAX_XATTR_BYTES: Final = 1 << 20
_USERS: Final = b"user."


def check_name(name: bytes) -> None:
    """Refuse what cannot be a name: ENAMETOOLONG, EINVAL."""
    if len(name) > MAX_NAME:
        fail(errno.ENAMETOOLONG, name)
    if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
        fail(errno.EINVAL, name)


def check_target(target: bytes) -> bytes:
    """A symlink's target. ENOENT, ENAMETOOLONG."""
    if not target:
        fail(errno.ENOENT)
    return target if len(target) <= MAX_PATH else fail(errno.ENAMETOOLONG)


def check_end(ino: int, offset: int, size: int) -> int:
    """The end of a range of a file. EINVAL, EFBIG."""
    if offset < 0 or size < 0:
        fail(errno.EINVAL, ino)
    return offset + size if offset + size <= MAX_SIZE else fail(errno.EFBIG, ino)


def check_xattr_kind(kind: Kind, name: bytes) -> None:
    """Only regular files and directories have attributes of users to be changed: EPERM (xattr(7))."""
    if name.startswith(_USERS) and kind not in (Kind.REGULAR, Kind.DIRECTORY):
        fail(errno.EPERM, name)


def check_xattr(old: Mapping[bytes, bytes], name: bytes, value: bytes, flags: int) -> None:
    """Refuse what cannot be set beside the attributes that are there: EEXIST, ENODATA, ENOSPC."""
    if flags == XATTR_CREATE and name in old:
        fail(errno.EEXIST, name)
    if flags == XATTR_REPLACE and name not in old:
        fail(errno.ENODATA, name)
    names, values = len(name) + 1, len(value)
    for key, text in old.items():
        if key != name:
            names += len(key) + 1
            values += len(text)
    if names > MAX_XATTR_NAMES or names + values > MAX_XATTR_BYTES:
        fail(errno.ENOSPC, name)
