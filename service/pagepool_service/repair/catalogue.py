"""Repair the registry's catalogue: manifests, links, tags, referrers; and leases.

Links say who may read what: one is made again only where another record proves it: its other direction, a tag of the
repository, or a manifest of the repository that lists the blob.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

from pagepool.digest import Digest
from pagepool.errors import CorruptError, InvalidError, PagepoolError
from pagepool.oci import Index, parse_manifest
from pagepool_service.repair.bits import is_sound
from pagepool_service.repair.blobs import remove_blob
from pagepool_service.repair.context import Action, ChangedError, expect
from pagepool_service.repair.fetching import fetch_blob
from pagepool_service.repair.keys import find_keys, split_held
from pagepool_service.store.catalogue import StoredManifest, Tag, holder_key, link_key, repository_prefix
from pagepool_service.store.checks.naming import is_reverse, split_link, split_referrer
from pagepool_service.store.environment import CHECKSUM_SIZE, Table
from pagepool_service.store.listings import describe_referrer

if TYPE_CHECKING:
    from collections.abc import Callable

    from pagepool_service.repair.context import Context, Lost
    from pagepool_service.store.environment import Writer

_NEAR = 16  # equal bytes of the 32 of a digest: of another digest a few are, by chance


# -- manifests -------------------------------------------------------------------------------------------------


def repair_manifests(context: Context) -> None:
    """Fetch damaged manifests again; what cannot be had goes, with its links and tags."""
    for name in context.names("manifest"):
        with suppress(InvalidError):
            digest = Digest.parse(name)
            if context.value(Table.MANIFESTS, digest.key) is not None and read_manifest(context, digest) is None:
                _fetch_or_remove(context, "manifest", name, digest)


def read_manifest(context: Context, digest: Digest) -> StoredManifest | None:
    """A manifest, if it can be read and has its digest."""
    try:
        with context.env.read() as txn:
            payload = txn.get(Table.MANIFESTS, digest.key)
            stored = None if payload is None else StoredManifest.decode(digest, payload)
        if stored is None or Digest.of(stored.raw, digest.algorithm) != digest:
            return None
        parse_manifest(stored.raw, stored.media_type)
    except PagepoolError:
        return None
    return stored


def _fetch_or_remove(context: Context, kind: str, name: str, digest: Digest, holder: str | None = None) -> None:
    holders = sorted({*context.manifest_holders(digest), *([holder] if holder else [])})
    seen = context.value(Table.MANIFESTS, digest.key)
    for source in context.sources:
        found = source.manifest(holders, digest)
        if found is not None and Digest.of(found[1], digest.algorithm) == digest:
            stored = StoredManifest(digest, found[0], time.time_ns(), found[1])
            how = f"it was fetched from {source.where}"
            context.repaired(kind, name, how, _putting(Table.MANIFESTS, digest.key, stored.encode(), seen))
            return
    lost: list[Lost] = [(Table.MANIFESTS, digest.key)]
    for repository in holders:
        lost += _of_manifest(context, repository, digest)
    delete = _deleting(context, lost)
    if read_manifest(context, digest) is not None:
        return  # somebody has pushed it meanwhile
    action = Action(kind, name, "quarantined", "it cannot be read, and was found nowhere", context.images(kind, name))
    context.remove(action, lost, delete)


def _of_manifest(context: Context, repository: str, digest: Digest) -> list[Lost]:
    """What a repository has of a manifest: its links, the tags that point to it, its entries as a referrer."""
    held = [link_key(repository, digest), holder_key(repository, digest)]
    found: list[Lost] = [(Table.MANIFEST_LINKS, key) for key in held]
    with context.env.read() as txn:
        for key, value in txn.scan(Table.TAGS, repository_prefix(repository), check=False):
            with suppress(CorruptError):
                if Tag.decode(key, value[:-CHECKSUM_SIZE]).digest == digest:
                    found.append((Table.TAGS, key))
        for key, _ in txn.scan(Table.REFERRERS, repository_prefix(repository), check=False):
            if key.endswith(digest.key):
                found.append((Table.REFERRERS, key))
    return found


# -- links -----------------------------------------------------------------------------------------------------


def repair_links(context: Context) -> None:
    """Make links of manifests, and then of blobs, right in both directions."""
    for kind, table in (("manifest link", Table.MANIFEST_LINKS), ("link", Table.LINKS)):
        for name in context.names(kind):
            try:
                repository, digest = split_held(name)
            except InvalidError:
                _remove_named(context, kind, name, "its key cannot be read")
                continue
            with context.unless_changed():
                _repair_link(context, table, (kind, name), repository, digest)


def _repair_link(context: Context, table: Table, named: tuple[str, str], repository: str, digest: Digest) -> None:
    forward, reverse = link_key(repository, digest), holder_key(repository, digest)
    seen = {key: context.value(table, key) for key in (forward, reverse)}
    present = [key for key, value in seen.items() if value is not None]
    sound = [key for key, value in seen.items() if value is not None and is_sound(table, key, value)]
    if not present:
        return
    if not _has_target(context, table, digest):
        _restore_target(context, table, named, repository, digest)
        return
    if len(sound) == 2:
        return
    if sound or _is_proven(context, table, repository, digest):
        payload = time.time_ns().to_bytes(8, "big")

        def apply(txn: Writer) -> None:
            for key, value in seen.items():  # what was deleted meanwhile must not come back
                expect(txn, table, key, value)
            if forward not in sound:
                txn.put(table, forward, payload)
            txn.put(table, reverse, b"")

        how = "from its other direction" if sound else "from what the repository has of it besides"
        context.repaired(*named, f"it was made again {how}", apply)
        return
    lost: list[Lost] = [(table, key) for key in present]
    if table is Table.MANIFEST_LINKS:
        lost += _of_manifest(context, repository, digest)
    delete = _deleting(context, lost)
    if any(context.is_sound(table, key) for key in present):
        return  # somebody has pushed it meanwhile
    action = Action(*named, "quarantined", "nothing proves that the repository has it", context.images(*named))
    context.remove(action, lost, delete)


def _has_target(context: Context, table: Table, digest: Digest) -> bool:
    target = Table.BLOBS if table is Table.LINKS else Table.MANIFESTS
    return context.value(target, digest.key) is not None


def _restore_target(context: Context, table: Table, named: tuple[str, str], repository: str, digest: Digest) -> None:
    """What a link leads to is not there."""
    if table is Table.MANIFEST_LINKS:
        _fetch_or_remove(context, *named, digest, repository)
        return
    where = fetch_blob(context, digest, None, holder=repository)
    if where is not None:
        context.repaired(*named, f"the blob was fetched from {where}", lambda _: None)
        return
    how = f"the blob that {repository} had is not there, and was found nowhere"
    remove_blob(context, Action(*named, "quarantined", how, context.images(*named)), digest, repository)


def _is_proven(context: Context, table: Table, repository: str, digest: Digest) -> bool:
    """Whether other records of a repository say that it has this."""
    if table is Table.MANIFEST_LINKS:
        return any(tag.digest == digest for tag in _tags(context, repository))
    return any(_lists(context, manifest, digest) for manifest in _linked(context, repository))


def _tags(context: Context, repository: str) -> list[Tag]:
    """The tags of a repository that can be read."""
    found: list[Tag] = []
    with context.env.read() as txn:
        for key, value in txn.scan(Table.TAGS, repository_prefix(repository), check=False):
            if is_sound(Table.TAGS, key, bytes(value)):
                with suppress(CorruptError):
                    found.append(Tag.decode(key, value[:-CHECKSUM_SIZE]))
    return found


def _lists(context: Context, manifest: Digest, blob: Digest) -> bool:
    """Whether a manifest has a blob."""
    stored = read_manifest(context, manifest)
    document = None if stored is None else parse_manifest(stored.raw, stored.media_type)
    if document is None or isinstance(document, Index):
        return False
    return any(entry.digest == blob for entry in document.blobs)


# -- tags and referrers ----------------------------------------------------------------------------------------


def repair_tags(context: Context) -> None:
    """Point tags to the manifests that they pointed to; what cannot be known goes."""
    for name in context.names("tag"):
        found = find_keys("tag", name)
        value = context.value(Table.TAGS, found[1][0]) if found else None
        if found is None or value is None:
            continue
        _repair_tag(context, name, found[1][0], value)


def _repair_tag(context: Context, name: str, key: bytes, value: bytes) -> None:
    repository = key.partition(b"\0")[0].decode(errors="replace")
    payload = value[:-CHECKSUM_SIZE]
    if context.is_sound(Table.TAGS, key):
        with suppress(CorruptError):
            digest = Tag.decode(key, memoryview(payload)).digest
            if context.value(Table.MANIFEST_LINKS, link_key(repository, digest)) is not None:
                return
            if read_manifest(context, digest) is not None:  # a tag is only ever made together with the link
                links = [(link_key(repository, digest), payload[:8]), (holder_key(repository, digest), b"")]
                context.repaired("tag", name, "its manifest is linked to the repository again", _linking(links))
                return
    else:
        for digest in _linked(context, repository):
            key_digest = payload[8 : 8 + len(digest.key)]
            if sum(one == other for one, other in zip(key_digest[1:], digest.raw, strict=False)) >= _NEAR:
                tag = Tag(digest, time.time_ns())
                how = f"most of its digest is that of {digest}, which the repository has"
                context.repaired("tag", name, how, _putting(Table.TAGS, key, tag.encode(), value))
                return
    _remove_named(context, "tag", name, "it cannot be known which manifest it pointed to", lost=True, seen=value)


def _linked(context: Context, repository: str) -> list[Digest]:
    with context.env.read() as txn:
        keys = [key for key, _ in txn.scan(Table.MANIFEST_LINKS, repository_prefix(repository), check=False)]
    return [split_link(key)[1] for key in keys if context.is_sound(Table.MANIFEST_LINKS, key) and not is_reverse(key)]


def repair_referrers(context: Context) -> None:
    """Make referrers again from the manifests that they describe."""
    for name in context.names("referrer"):
        if found := find_keys("referrer", name):
            _repair_referrer(context, name, found[1][0])


def _repair_referrer(context: Context, name: str, key: bytes) -> None:
    seen = context.value(Table.REFERRERS, key)
    try:
        repository, subject, referrer = split_referrer(key)
    except (InvalidError, ValueError, IndexError):
        _remove_named(context, "referrer", name, "its key cannot be read")
        return
    stored = read_manifest(context, referrer)
    linked = stored is not None and _is_linked(context, repository, referrer)
    document = parse_manifest(stored.raw, stored.media_type) if stored and linked else None
    if document is None or document.subject is None or document.subject.digest != subject:
        if seen is None:
            context.look_again = True  # it went with its manifest meanwhile
        else:
            _remove_named(context, "referrer", name, "the repository has no such manifest about this subject")
        return
    payload = describe_referrer(referrer, document)

    def apply(txn: Writer) -> None:
        expect(txn, Table.REFERRERS, key, seen)
        if not txn.has(Table.MANIFEST_LINKS, link_key(repository, referrer)):
            raise ChangedError
        txn.put(Table.REFERRERS, key, payload)

    context.repaired("referrer", name, "it was made again from its manifest", apply)


def _is_linked(context: Context, repository: str, manifest: Digest) -> bool:
    """Whether a repository has a manifest. A link without this direction, whose turn has not come, is made right."""
    forward, reverse = link_key(repository, manifest), holder_key(repository, manifest)
    if context.value(Table.MANIFEST_LINKS, forward) is None and context.is_sound(Table.MANIFEST_LINKS, reverse):
        named = ("manifest link", f"{repository}@{manifest}")
        _repair_link(context, Table.MANIFEST_LINKS, named, repository, manifest)
        return True
    return context.value(Table.MANIFEST_LINKS, forward) is not None


# -- the rest --------------------------------------------------------------------------------------------------


def repair_leases(context: Context, *, missing: bool) -> None:
    """Take leases out that cannot be read; with `missing` those, too, whose layers are not there and will not be."""
    for name in context.names("lease"):
        found = find_keys("lease", name)
        key = found[1][0] if found else b""
        if found is None or context.value(Table.LEASES, key) is None:
            continue
        reasons = " ".join(context.reasons("lease", name))
        if not missing and "is not there" in reasons and context.is_sound(Table.LEASES, key):
            continue
        how = "a layer that it kept is lost" if missing else "it cannot be read; its holder takes another"
        _remove_named(context, "lease", name, how, lost=missing)


def repair_rest(context: Context) -> None:
    """Records of tables that nothing needs: they are made again, or reserved."""
    for kind in ("meta", "tree", "correction"):
        for name in context.names(kind):
            if (kind, name) != ("meta", "totals"):
                _remove_named(context, kind, name, "it is made again when it is needed")


def _remove_named(
    context: Context, kind: str, name: str, how: str, *, lost: bool = False, seen: bytes | None = None
) -> None:
    """Take out what a name stands for; with `seen` only if its record is still that."""
    found = find_keys(kind, name)
    if found is None:
        return
    records: list[Lost] = [(found[0], key) for key in found[1]]
    delete = _deleting(context, records)
    if seen is not None and context.value(*records[0]) != seen:
        return
    action = Action(kind, name, "quarantined" if lost else "set aside", how, context.images(kind, name))
    context.remove(action, records, delete)


def _deleting(context: Context, lost: list[Lost]) -> Callable[[Writer], None]:
    """What deletes records, if they are as they are now when it is done."""
    values = [(table, key, context.value(table, key)) for table, key in lost]

    def apply(txn: Writer) -> None:
        for table, key, value in values:
            expect(txn, table, key, value)
        for table, key in lost:
            txn.delete(table, key)

    return apply


def _putting(table: Table, key: bytes, payload: bytes, seen: bytes | None) -> Callable[[Writer], None]:
    """What writes a record, if what lies there is still what was looked at."""

    def apply(txn: Writer) -> None:
        expect(txn, table, key, seen)
        txn.put(table, key, payload)

    return apply


def _linking(links: list[tuple[bytes, bytes]]) -> Callable[[Writer], None]:
    def apply(txn: Writer) -> None:
        for key, payload in links:
            txn.put(Table.MANIFEST_LINKS, key, payload)

    return apply
