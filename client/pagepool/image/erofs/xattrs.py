"""Extended attributes of an EROFS image: names as EROFS has them, and which are kept once for all who have them.

Pure, but for what the table has been told. Attributes that no file system of Linux can have are left out.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from pagepool.errors import LimitError
from pagepool.image.erofs.format import (
    MOST_SHARED,
    MOST_U16,
    MOST_U32,
    MOST_XATTR_BYTES,
    U32,
    XATTR_ENTRY,
    XATTR_HEAD,
    filter_bit,
    round_up,
)
from pagepool.image.treefile import KINDS
from pagepool.image.treescan import REGULAR
from pagepool.image.xattrs import LONGEST_NAME, only_possible

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

Attribute = tuple[int, bytes, bytes]
"""Index of the name's prefix, the rest of the name, value."""

_TRUSTED: Final = 4
_PREFIXES: Final = ((b"user.", 1), (b"trusted.", _TRUSTED), (b"security.", 6))
_LISTS: Final = {b"system.posix_acl_access": 2, b"system.posix_acl_default": 3}
_OVERLAY: Final = b"trusted.overlay."
_REDIRECT: Final = b"overlay.redirect"
METACOPY: Final[Attribute] = (_TRUSTED, b"overlay.metacopy", b"")
_OVERLAY_BITS: Final = filter_bit(_TRUSTED, METACOPY[1]) | filter_bit(_TRUSTED, _REDIRECT)


def redirect_to(digest: bytes) -> Attribute:
    """The attribute that sends overlayfs to an object in a data layer."""
    text = digest.hex().encode()
    return _TRUSTED, _REDIRECT, b"/" + text[:2] + b"/" + text[2:]


def convert(xattrs: Mapping[bytes, bytes], kind: int) -> list[Attribute]:
    """Attributes as the image has them, by name; the tree's own overlay attributes escaped once more.

    Args:
        kind: of the inode, as in a tree file.

    Raises:
        LimitError: a value is larger than EROFS can say.
    """
    found: list[Attribute] = []
    for name, value in sorted(only_possible(KINDS[kind], xattrs).items()):
        if name.startswith(_OVERLAY):
            name = _OVERLAY + b"overlay." + name[len(_OVERLAY) :]
            if len(name) > LONGEST_NAME:
                continue
        index, suffix = _split(name)
        if len(value) > MOST_U16:
            raise LimitError(f"extended attribute {name.decode(errors='backslashreplace')}", len(value), MOST_U16)
        found.append((index, suffix, value))
    return found


def _split(name: bytes) -> tuple[int, bytes]:
    """Index of a name's prefix, and its rest."""
    for prefix, index in _PREFIXES:
        if name.startswith(prefix):
            return index, name[len(prefix) :]
    return _LISTS[name], b""


def encode_entry(attribute: Attribute) -> bytes:
    """An attribute's record, padded."""
    index, suffix, value = attribute
    record = XATTR_ENTRY.pack(len(suffix), index, len(value)) + suffix + value
    return record.ljust(round_up(len(record), 4), b"\0")


class XattrTable:
    """What every inode has, encoded.

    Args:
        sets: how often each set of attributes occurs, by its place in the tree (never 0) and the kind of inode.
        read: tells what is in a set.
        redirects: how many inodes there are for each object that is not inlined, by its digest.

    Raises:
        LimitError: as `convert`; or what one inode has is larger than EROFS can say.
    """

    def __init__(
        self,
        sets: Mapping[tuple[int, int], int],
        read: Callable[[int], Mapping[bytes, bytes]],
        redirects: Mapping[bytes, int],
    ) -> None:
        self._sets = {key: convert(read(key[0]), key[1]) for key in sorted(sets)}
        counts: Counter[Attribute] = Counter()
        for key, attributes in self._sets.items():
            for attribute in attributes:
                counts[attribute] += sets[key]
        often = [attribute for attribute, count in counts.items() if count > 1]
        often += [redirect_to(digest) for digest, count in redirects.items() if count > 1]
        if sum(redirects.values()) > 1:
            often.append(METACOPY)
        self.shared = b"".join(self._place_shared(sorted(often)))
        """The area of attributes that several inodes have."""
        self._encoded: dict[tuple[int, int], bytes] = {}
        self._metacopy = self._encode_all([METACOPY])[XATTR_HEAD.size :]
        plain = _OVERLAY_BITS ^ MOST_U32
        self._plain_head = XATTR_HEAD.pack(plain, int(METACOPY in self._ids)) + self._metacopy

    def _place_shared(self, often: Iterable[Attribute]) -> list[bytes]:
        self._ids: dict[Attribute, bytes] = {}
        records: list[bytes] = []
        at = 0
        for attribute in often:
            self._ids[attribute] = U32.pack(at // 4)
            records.append(encode_entry(attribute))
            at += len(records[-1])
        return records

    def of(self, place: int, kind: int) -> bytes:
        """The attributes of an inode, encoded; empty if it has none, or nothing of them can be kept."""
        if not place:
            return b""
        found = self._encoded.get((place, kind))
        if found is None:
            found = self._encoded[place, kind] = self._encode_all(self._sets[place, kind])
        return found

    def of_data(self, place: int, digest: bytes) -> bytes:
        """The same of a regular file whose data is an object in the pool."""
        redirect = redirect_to(digest)
        if not place and redirect not in self._ids:
            return self._plain_head + encode_entry(redirect)
        return self._encode_all([METACOPY, redirect, *(self._sets[place, REGULAR] if place else ())])

    def _encode_all(self, attributes: list[Attribute]) -> bytes:
        if not attributes:
            return b""
        ids = [self._ids[attribute] for attribute in attributes if attribute in self._ids][:MOST_SHARED]
        left = MOST_SHARED
        inline: list[bytes] = []
        absent = MOST_U32
        for attribute in attributes:
            absent &= ~filter_bit(attribute[0], attribute[1])
            if attribute in self._ids and left:
                left -= 1
            else:
                inline.append(encode_entry(attribute))
        found = b"".join((XATTR_HEAD.pack(absent, len(ids)), *ids, *inline))
        if len(found) - XATTR_HEAD.size > MOST_XATTR_BYTES:
            raise LimitError("extended attributes of a file", len(found), MOST_XATTR_BYTES)
        return found
