"""Links of the catalogue: that a repository has a blob or a manifest, both ways, and since when somebody relies on it.

Owns the records of `links` and `manifest_links`; in transactions of the caller's. Collection compares them with what
they were (`collect.catalogue`): whoever writes one anew has what it stands for kept.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pagepool.digest import Digest
from pagepool.oci import Index, parse_manifest
from pagepool_service.store.catalogue import StoredManifest, encode_link, holder_key, link_key, referrers_prefix
from pagepool_service.store.environment import Table

if TYPE_CHECKING:
    from pagepool_service.store.environment import Reader, Writer

_MOST_RENEWED = 5000  # links around one manifest, in one transaction


def link(txn: Writer, table: Table, repository: str, digest: Digest) -> None:
    """Write that a repository has something, or that it is relied on now."""
    txn.put(table, link_key(repository, digest), encode_link(time.time_ns()))
    txn.put_new(table, holder_key(repository, digest), b"")


def touch(txn: Writer, table: Table, repository: str, digest: Digest) -> None:
    """Renew a link if it is there."""
    if txn.has(table, link_key(repository, digest)):
        txn.put(table, link_key(repository, digest), encode_link(time.time_ns()))


def renew_around(txn: Writer, repository: str, digest: Digest) -> None:
    """Renew the links of a manifest and of all that is kept with it: what it needs, its subject, and its referrers.

    A collector that has decided, in a snapshot of before, that nothing keeps them sees that it is late.
    """
    waiting, seen = [digest], {digest}
    while waiting and len(seen) < _MOST_RENEWED:
        found = waiting.pop()
        touch(txn, Table.LINKS, repository, found)
        if not txn.has(Table.MANIFEST_LINKS, link_key(repository, found)):
            continue
        touch(txn, Table.MANIFEST_LINKS, repository, found)
        near = [Digest.from_key(key[-len(found.key) :]) for key in _referrers(txn, repository, found)]
        payload = txn.get(Table.MANIFESTS, found.key)
        if payload is not None:
            stored = StoredManifest.decode(found, payload)
            document = parse_manifest(stored.raw, stored.media_type)
            entries = document.manifests if isinstance(document, Index) else document.blobs
            near += [entry.digest for entry in entries]
            near += [] if document.subject is None else [document.subject.digest]
        waiting += [one for one in near if one not in seen]
        seen.update(near)


def _referrers(txn: Reader, repository: str, subject: Digest) -> list[bytes]:
    return [key for key, _ in txn.scan(Table.REFERRERS, referrers_prefix(repository, subject), check=False)]


def unlink(txn: Writer, table: Table, repository: str, digest: Digest) -> None:
    """Write that it has not any more."""
    txn.delete(table, holder_key(repository, digest))
    txn.delete(table, link_key(repository, digest))


def is_held(txn: Reader, table: Table, digest: Digest) -> bool:
    """Whether any repository has it."""
    return next(txn.scan(table, digest.key), None) is not None
