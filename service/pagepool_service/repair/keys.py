"""From the kind and name under which fsck speaks of a record back to its table and key."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pagepool.digest import Digest
from pagepool.errors import InvalidError
from pagepool_service.store.catalogue import holder_key, link_key, referrer_key, tag_key
from pagepool_service.store.environment import Table
from pagepool_service.store.schema import JobKind, recipe_key, u64

if TYPE_CHECKING:
    from collections.abc import Callable


def find_keys(kind: str, name: str) -> tuple[Table, list[bytes]] | None:
    """The table and the keys of the records that a name stands for; None if it stands for none.

    A name that cannot be parsed is taken for a key in hex, which is what fsck calls a record whose key it cannot read.
    """
    found = _KINDS.get(kind)
    if found is None:
        return None
    table, parse = found
    try:
        return table, parse(name)
    except (InvalidError, ValueError, KeyError, IndexError):
        pass
    try:
        return table, [bytes.fromhex(name)]
    except ValueError:
        return None


def split_held(name: str) -> tuple[str, Digest]:
    """The repository and digest in ``repository@digest``."""
    repository, _, digest = name.partition("@")
    return repository, Digest.parse(digest)


def _digest(name: str) -> list[bytes]:
    return [Digest.parse(name).key]


def _recipe(name: str) -> list[bytes]:
    recipe, _, start = name.partition(" at ")
    return [recipe_key(int(recipe), int(start))] if start else []


def _link(name: str) -> list[bytes]:
    repository, digest = split_held(name)
    return [link_key(repository, digest), holder_key(repository, digest)]


def _tag(name: str) -> list[bytes]:
    repository, colon, tag = name.rpartition(":")
    if not colon:
        raise ValueError(name)
    return [tag_key(repository, tag)]


def _referrer(name: str) -> list[bytes]:
    held, _, referrer = name.partition(" by ")
    repository, subject = split_held(held)
    return [referrer_key(repository, subject, Digest.parse(referrer))]


def _job(name: str) -> list[bytes]:
    kind, number = name.split(" ")
    return [bytes((JobKind[kind.upper()],)) + u64(int(number))]


def _lease(name: str) -> list[bytes]:
    held, identity = name.split(" ")
    repository, tree = split_held(held)
    return [repository.encode() + b"\0" + tree.raw + bytes.fromhex(identity)]


_KINDS: dict[str, tuple[Table, Callable[[str], list[bytes]]]] = {
    "meta": (Table.META, lambda name: [name.encode()]),
    "totals": (Table.META, lambda _: [b"totals"]),
    "frame": (Table.FRAMES, lambda name: [u64(int(name))]),
    "extent": (Table.EXTENTS, lambda name: [bytes.fromhex(name)]),
    "object": (Table.OBJECTS, lambda name: [bytes.fromhex(name)]),
    "recipe": (Table.RECIPES, _recipe),
    "layer": (Table.LAYERS, _digest),
    "blob": (Table.BLOBS, _digest),
    "link": (Table.LINKS, _link),
    "manifest": (Table.MANIFESTS, _digest),
    "manifest link": (Table.MANIFEST_LINKS, _link),
    "tag": (Table.TAGS, _tag),
    "referrer": (Table.REFERRERS, _referrer),
    "job": (Table.JOBS, _job),
    "lease": (Table.LEASES, _lease),
    "tree": (Table.TREES, lambda name: [bytes.fromhex(name)]),
    "correction": (Table.CORRECTIONS, lambda name: [bytes.fromhex(name)]),
}
