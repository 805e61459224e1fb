"""User names and passwords, as Apache's ``htpasswd -B`` writes them: bcrypt only.

A password is verified in about 50 ms (at cost 10), whether the user is known or not. Other hashes are refused when the
file is read, with the line named: they are old, fast, and would be what an attacker tries first.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import bcrypt

from pagepool_service.auth.errors import FileInvalidError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_HASH = re.compile(r"\$2[aby]\$(\d\d)\$[./A-Za-z0-9]{53}")
_NAME = re.compile(r"[^\s:@\x00-\x1f][^\s:\x00-\x1f]{0,127}")
_LOWEST_COST, _HIGHEST_COST = 5, 16
_MOST_BYTES = 72  # of a password, that bcrypt looks at
COST = 10


@dataclass(frozen=True, slots=True)
class Htpasswd:
    """Users and their hashes. A value.

    Args:
        hashes: name -> bcrypt hash.
        unknown: what a password of an unknown user is compared with: no password fits, and it takes as long.
    """

    hashes: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    unknown: bytes = field(default=b"", repr=False)

    def verify(self, name: str, password: str) -> bool:
        """Whether this is the user's password. Blocks for as long as hashing it takes, known or not."""
        known = self.hashes.get(name)
        raw = password.encode(errors="surrogateescape")
        if not self.hashes:
            return False
        # What bcrypt does not look at is refused, rather than left out of the comparison.
        fits = 0 < len(raw) <= _MOST_BYTES and b"\0" not in raw
        same = bcrypt.checkpw(raw if fits else b"-", self.unknown if known is None else known)
        return same and fits and known is not None

    def hash_of(self, name: str) -> bytes:
        """A user's hash, b"" if there is none: it changes with the password."""
        return self.hashes.get(name, b"")


def load_htpasswd(path: Path) -> Htpasswd:
    """Read a file.

    Raises:
        FileInvalidError: it cannot be read, or a line of it is not a user's; names the line, never what is in it.
    """
    try:
        text = path.read_text()
    except OSError as error:
        raise FileInvalidError(str(path), error.strerror or str(error)) from None
    except UnicodeDecodeError:
        raise FileInvalidError(str(path), "is not UTF-8") from None
    hashes: dict[str, bytes] = {}
    costs = [COST]
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        try:
            name, hashed, cost = _parse(line)
            if name in hashes:
                raise ValueError("is the second of its user")
        except ValueError as error:
            raise FileInvalidError(str(path), f"line {number} {error}") from None
        hashes[name] = hashed
        costs.append(cost)
    # The usual cost of this file's users, so that asking for a name that is not here takes as long.
    usual = max(costs[1:], default=COST)
    return Htpasswd(hashes, bcrypt.hashpw(b"nobody", bcrypt.gensalt(usual)))


def hash_password(password: str, cost: int = COST) -> str:
    """The hash of a new password.

    Raises:
        ValueError: it cannot be one.
    """
    raw = password.encode(errors="surrogateescape")
    if not raw:
        raise ValueError("the password is empty")
    if len(raw) > _MOST_BYTES:
        raise ValueError(f"the password has {len(raw)} bytes, and bcrypt looks at {_MOST_BYTES} only")
    if b"\0" in raw:
        raise ValueError("the password holds a NUL")
    return bcrypt.hashpw(raw, bcrypt.gensalt(cost)).decode("ascii")


def check_user(name: str) -> str:
    """A name that can be a user's.

    Raises:
        ValueError: it cannot.
    """
    if not _NAME.fullmatch(name) or name in ("anonymous", "authenticated"):
        raise ValueError("is no name of a user: no blanks, no colons, no @ in front, not anonymous or authenticated")
    return name


def _parse(line: str) -> tuple[str, bytes, int]:
    name, colon, hashed = line.partition(":")
    if not colon:
        raise ValueError("is not NAME:HASH")
    check_user(name)
    match = _HASH.fullmatch(hashed)
    if match is None:
        raise ValueError("has no bcrypt hash: make the line with `pagepool auth hash` or `htpasswd -B`")
    cost = int(match[1])
    if not _LOWEST_COST <= cost <= _HIGHEST_COST:
        raise ValueError(f"has a bcrypt cost of {cost}, which is not {_LOWEST_COST} to {_HIGHEST_COST}")
    return name, hashed.replace("$2y$", "$2b$", 1).encode("ascii"), cost
