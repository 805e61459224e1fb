"""What a record is called, from its table and key: the words in which fsck speaks of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pagepool.digest import Digest
from pagepool.errors import InvalidError
from pagepool_service.store.environment import Table
from pagepool_service.store.schema import JobKind

if TYPE_CHECKING:
    from collections.abc import Callable

_REPOSITORY_END = b"\0"


def name_record(table: Table, key: bytes) -> tuple[str, str]:
    """The kind and name of a record, for any key whatsoever: one that cannot be read is given in hex."""
    kind, name = _NAMES.get(table, (table.label, bytes.hex))
    try:
        return kind, name(key)
    except (InvalidError, ValueError, IndexError):
        return kind, key.hex()


def name_tag(key: bytes) -> str:
    """``repository:tag``."""
    repository, _, tag = key.partition(_REPOSITORY_END)
    return f"{repository.decode()}:{tag.decode()}"


def name_link(key: bytes) -> str:
    """``repository@digest``, of a forward or a reverse key."""
    repository, digest = split_link(key)
    return f"{repository}@{digest}"


def split_link(key: bytes) -> tuple[str, Digest]:
    """The repository and digest of a forward or a reverse key.

    Raises:
        ValueError, DigestInvalidError: it is neither.
    """
    if is_reverse(key):
        size = 65 if key[0] == 2 else 33
        return key[size:].decode(), Digest.from_key(key[:size])
    repository, _, digest = key.partition(_REPOSITORY_END)
    return repository.decode(), Digest.from_key(digest)


def is_reverse(key: bytes) -> bool:
    """Whether a key in `links` or `manifest_links` begins with the digest."""
    return key[:1] < b"\x20"


def split_referrer(key: bytes) -> tuple[str, Digest, Digest]:
    """The repository, subject and referrer of a key in `referrers`.

    Raises:
        ValueError, DigestInvalidError: it is no such key.
    """
    repository, _, rest = key.partition(_REPOSITORY_END)
    size = 65 if rest[:1] == b"\x02" else 33
    return repository.decode(), Digest.from_key(rest[:size]), Digest.from_key(rest[size:])


def _name_digest(key: bytes) -> str:
    return str(Digest.from_key(key))


def _name_number(key: bytes) -> str:
    if len(key) != 8:
        raise ValueError("not a number")
    return str(int.from_bytes(key, "big"))


def _name_recipe(key: bytes) -> str:
    return f"{_name_number(key[:8])} at {_name_number(key[8:])}"


def _name_job(key: bytes) -> str:
    return f"{JobKind(key[0]).name.lower()} {_name_number(key[1:])}"


def _name_referrer(key: bytes) -> str:
    repository, subject, referrer = split_referrer(key)
    return f"{repository}@{subject} by {referrer}"


def _name_lease(key: bytes) -> str:
    repository, _, rest = key.partition(_REPOSITORY_END)
    if len(rest) != 48:
        raise ValueError("not a lease")
    return f"{repository.decode()}@{Digest('blake3', rest[:32])} {rest[32:].hex()}"


_NAMES: dict[Table, tuple[str, Callable[[bytes], str]]] = {
    Table.META: ("meta", bytes.decode),
    Table.EXTENTS: ("extent", bytes.hex),
    Table.FRAMES: ("frame", _name_number),
    Table.OBJECTS: ("object", bytes.hex),
    Table.RECIPES: ("recipe", _name_recipe),
    Table.LAYERS: ("layer", _name_digest),
    Table.BLOBS: ("blob", _name_digest),
    Table.LINKS: ("link", name_link),
    Table.MANIFESTS: ("manifest", _name_digest),
    Table.MANIFEST_LINKS: ("manifest link", name_link),
    Table.TAGS: ("tag", name_tag),
    Table.REFERRERS: ("referrer", _name_referrer),
    Table.JOBS: ("job", _name_job),
    Table.TREES: ("tree", bytes.hex),
    Table.LEASES: ("lease", _name_lease),
    Table.CORRECTIONS: ("correction", bytes.hex),
}
