"""Members of a tar, as frozen values, and the one place where their names become paths.

A path is `bytes`, relative to the root of the layer, without a leading or trailing slash and without ``.``,
``..`` or empty components; the root itself is ``b""``. Absolute names are taken relative to the root, as the
runtimes do.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from pagepool.errors import LayerInvalidError

# The limits of Linux: a longer name cannot be created by any runtime.
MAX_NAME = 255
MAX_PATH = 4095
# The largest is (uid_t) -1, which means "leave as it is".
MAX_OWNER = (1 << 32) - 2
MAX_MAJOR = (1 << 12) - 1
MAX_MINOR = (1 << 20) - 1

_BAD_WHITEOUTS = (b".wh.", b".wh..", b".wh...")

NO_XATTRS: Mapping[bytes, bytes] = MappingProxyType({})


class Kind(enum.Enum):
    """What a member (or a node of a tree) is."""

    REGULAR = "regular"
    HARDLINK = "hardlink"
    SYMLINK = "symlink"
    CHAR = "char"
    BLOCK = "block"
    DIRECTORY = "directory"
    FIFO = "fifo"
    SOCKET = "socket"
    """Only in overlays: no tar has it."""


class Member(NamedTuple):
    """One member of a tar. A tuple, not a dataclass: layers have thousands.

    Args:
        path: normalised path, see the module.
        raw_path: the name as the archive spells it.
        kind: what it is.
        mode: permission bits with setuid, setgid and sticky (``0o7777``).
        uid: owner, 0 to 2**32 - 2.
        gid: group, 0 to 2**32 - 2.
        mtime_ns: modification time, nanoseconds since 1970, may be negative.
        size: logical size of a regular file, holes included; 0 for every other kind.
        stored_size: bytes of file data in the archive: `size`, or less where the member is sparse. A sparse
            map that lies in front of the data (GNU 1.0) is not counted: it is literal.
        linkname: target of a hard link or symlink as the archive spells it, else ``b""``.
        devmajor: major number of a device, else 0.
        devminor: minor number of a device, else 0.
        uname: owner's name, often empty.
        gname: group's name, often empty.
        xattrs: extended attributes.
        segments: of a sparse file, the (offset, size) of each stored run, in order, none empty; None
            otherwise.
    """

    path: bytes
    raw_path: bytes
    kind: Kind
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int
    stored_size: int
    linkname: bytes = b""
    devmajor: int = 0
    devminor: int = 0
    uname: bytes = b""
    gname: bytes = b""
    xattrs: Mapping[bytes, bytes] = NO_XATTRS
    segments: tuple[tuple[int, int], ...] | None = None

    @property
    def link_path(self) -> bytes:
        """The normalised path that a hard link names.

        Raises:
            LayerInvalidError: it escapes the root; the splitter has reported that as its problem.
        """
        return normalise_path(self.linkname)


def normalise_path(raw: bytes) -> bytes:
    """The path that a member name stands for.

    Returns:
        the path relative to the root, ``b""`` for the root itself.

    Raises:
        LayerInvalidError: ``..`` leads out of the root.
    """
    path = raw[2:] if raw.startswith(b"./") else raw
    if path.endswith(b"/"):
        path = path.rstrip(b"/")
    if b"/." not in path and b"//" not in path and not path.startswith((b"/", b".")):
        return path
    parts: list[bytes] = []
    for part in path.split(b"/"):
        if part == b"..":
            if not parts:
                raise LayerInvalidError(show_name(raw), "escapes the root")
            parts.pop()
        elif part and part != b".":
            parts.append(part)
    return b"/".join(parts)


def check_member(member: Member) -> str:
    """Why a member cannot be in a layer, as the end of a sentence, or ""."""
    path, kind = member.path, member.kind
    if not path and kind is not Kind.DIRECTORY:
        return "has the name of the root and is not a directory"
    if len(path) > MAX_NAME and _is_too_long(path):
        return "has a name that is too long for Linux"
    if not (0 <= member.uid <= MAX_OWNER and 0 <= member.gid <= MAX_OWNER):
        return f"has an owner out of range ({member.uid}:{member.gid})"
    if not (0 <= member.devmajor <= MAX_MAJOR and 0 <= member.devminor <= MAX_MINOR):
        return f"has a device number out of range ({member.devmajor}:{member.devminor})"
    if b".wh." in path and path.rpartition(b"/")[2] in _BAD_WHITEOUTS:
        return "is a whiteout that names no file"
    if kind is Kind.SYMLINK and not 0 < len(member.linkname) <= MAX_PATH:
        return "is a symbolic link with an empty or too long target"
    return _check_link(member) if kind is Kind.HARDLINK else ""


def _is_too_long(path: bytes) -> bool:
    directory, slash, name = path.rpartition(b"/")
    # A whiteout is never made: what it removes has to fit.
    path = directory + slash + name.removeprefix(b".wh.")
    return len(path) > MAX_PATH or max(map(len, path.split(b"/"))) > MAX_NAME


def _check_link(member: Member) -> str:
    try:
        return "" if member.link_path else "is a hard link to the root"
    except LayerInvalidError as error:
        return f"is a hard link to {error.value!r}, which {error.reason}"


def show_name(raw: bytes) -> str:
    """A member name for people: printable, and no longer than a line."""
    text = raw.decode("utf-8", "backslashreplace")
    return text if len(text) <= 200 else text[:197] + "..."
