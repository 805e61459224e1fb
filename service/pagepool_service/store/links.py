"""Links of the catalogue: that a repository has a blob or a manifest, both ways, and since when somebody relies on it.

Owns the records of `links` and `manifest_links`; in transactions of the caller's. Collection compares them with what
they were (`collect.catalogue`): whoever writes one anew has what it stands for kept.
"""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING

from pagepool.digest import Digest
from pagepool.errors import CorruptError, PagepoolError
from pagepool.oci import Index, parse_manifest
from pagepool_service.store.catalogue import StoredManifest, encode_link, holder_key, link_key, referrers_prefix
from pagepool_service.store.clock import Moment, note_clock
from pagepool_service.store.environment import Table

if TYPE_CHECKING:
    from pagepool_service.store.environment import Reader, Writer

log = logging.getLogger("pagepool.registry")

_MOST_RENEWED = 5000  # links around one manifest, in one transaction


def stamp(txn: Writer) -> int:
    """The Unix time to write for now, nanoseconds. Notes whether the clock was set, since ages are counted from it."""
    now = Moment.now()
    with contextlib.suppress(CorruptError):  # collection says so; who pushes need not care
        note_clock(txn, now)
    return now.wall_ns


def link(txn: Writer, table: Table, repository: str, digest: Digest) -> None:
    """Write that a repository has something, or that it is relied on now."""
    txn.put(table, link_key(repository, digest), encode_link(stamp(txn)))
    txn.put_new(table, holder_key(repository, digest), b"")


def touch(txn: Writer, table: Table, repository: str, digest: Digest) -> None:
    """Renew a link if it is there."""
    _renew(txn, table, repository, digest, stamp(txn))


def _renew(txn: Writer, table: Table, repository: str, digest: Digest, now_ns: int) -> None:
    if txn.has(table, link_key(repository, digest)):
        txn.put(table, link_key(repository, digest), encode_link(now_ns))


def renew_around(txn: Writer, repository: str, digest: Digest) -> None:
    """Renew the links of a manifest and of all that is kept with it: what it needs, its subject, and its referrers.

    A collector that has decided, in a snapshot of before, that nothing keeps them sees that it is late. What is nearest
    comes first; all parts of a manifest are renewed, however many there are, and as many referrers as that leaves. A
    manifest that cannot be read is passed over: its repository is left alone.
    """
    now_ns = stamp(txn)
    waiting, seen = deque([digest]), {digest}
    while waiting:
        found = waiting.popleft()
        _renew(txn, Table.LINKS, repository, found, now_ns)
        if not txn.has(Table.MANIFEST_LINKS, link_key(repository, found)):
            continue
        _renew(txn, Table.MANIFEST_LINKS, repository, found, now_ns)
        if len(seen) >= _MOST_RENEWED:
            continue
        near = _parts(txn, found)
        near += _referrers(txn, repository, found, max(0, _MOST_RENEWED - len(seen) - len(near)))
        for one in near:
            if one not in seen:
                seen.add(one)
                waiting.append(one)


def _parts(txn: Reader, manifest: Digest) -> list[Digest]:
    """What a manifest needs, and its subject."""
    try:
        payload = txn.get(Table.MANIFESTS, manifest.key)
        if payload is None:
            return []
        stored = StoredManifest.decode(manifest, payload)
        document = parse_manifest(stored.raw, stored.media_type)
    except PagepoolError:
        return []
    entries = document.manifests if isinstance(document, Index) else document.blobs
    return [entry.digest for entry in entries] + ([] if document.subject is None else [document.subject.digest])


def _referrers(txn: Reader, repository: str, subject: Digest, most: int) -> list[Digest]:
    prefix = referrers_prefix(repository, subject)
    records = txn.scan(Table.REFERRERS, prefix, check=False)
    return [Digest.from_key(key[len(prefix) :]) for key, _ in islice(records, most)]


def unlink(txn: Writer, table: Table, repository: str, digest: Digest) -> None:
    """Write that it has not any more."""
    txn.delete(table, holder_key(repository, digest))
    txn.delete(table, link_key(repository, digest))


def is_held(txn: Reader, table: Table, digest: Digest) -> bool:
    """Whether any repository has it, or may have it: a record of one, or one beside those, is damaged."""
    try:
        return next(txn.scan_surely(table, digest.key), None) is not None
    except CorruptError as error:
        log.error("%s is kept, whether anybody has it or not: %s", digest, error)
        return True
