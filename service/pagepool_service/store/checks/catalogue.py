"""The registry's catalogue: links both ways, manifests and their digests, tags, referrers; and leases."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, TypeVar

from pagepool.digest import Digest
from pagepool.errors import CorruptError, InvalidError
from pagepool.oci import parse_manifest
from pagepool_service.store.catalogue import StoredManifest, Tag, holder_key, link_key, referrer_key
from pagepool_service.store.checks.naming import is_reverse, name_record, split_link, split_referrer
from pagepool_service.store.checks.walk import walk
from pagepool_service.store.clock import Moment, read_timeline
from pagepool_service.store.environment import Table
from pagepool_service.store.leases import has_ended
from pagepool_service.store.schema import LeaseName, LeaseRecord

if TYPE_CHECKING:
    from collections.abc import Callable

    from pagepool_service.store.checks.context import Context
    from pagepool_service.store.environment import Reader

Value = TypeVar("Value")


def check_links(context: Context) -> None:
    """Every link is there in both directions, and so is the blob."""
    _check_links(context, Table.LINKS, Table.BLOBS, "blob")


def check_manifest_links(context: Context) -> None:
    """Every link is there in both directions, and so is the manifest."""
    _check_links(context, Table.MANIFEST_LINKS, Table.MANIFESTS, "manifest")


def _check_links(context: Context, table: Table, target: Table, what: str) -> None:
    def visit(txn: Reader, key: bytes, _payload: memoryview) -> None:
        repository, digest = _parsed(split_link, key)
        other = link_key(repository, digest) if is_reverse(key) else holder_key(repository, digest)
        if not txn.has(table, other):
            raise CorruptError("link", key.hex(), "it is there in one direction only")
        if not txn.has(target, digest.key):
            raise CorruptError("link", key.hex(), f"the {what} it links to is not there")

    walk(context, table, visit)


def check_manifests(context: Context) -> None:
    """Every manifest has its digest, and is one, and is listed as the referrer that it is."""

    def visit(txn: Reader, key: bytes, payload: memoryview) -> None:
        digest = _parsed(Digest.from_key, key)
        if not context.wants_manifest(digest):
            return
        stored = StoredManifest.decode(digest, payload)
        if Digest.of(stored.raw, digest.algorithm) != digest:
            got = Digest.of(stored.raw, digest.algorithm)
            raise CorruptError("manifest", str(digest), f"its bytes have the digest {got}")
        try:
            document = parse_manifest(stored.raw, stored.media_type)
        except InvalidError as error:
            raise CorruptError("manifest", str(digest), str(error)) from error
        if document.subject is not None:
            _check_listed(context, txn, document.subject.digest, digest)
        if next(txn.scan(Table.MANIFEST_LINKS, digest.key, check=False), None) is None:
            context.findings.note(f"manifest {digest} is in no repository")

    walk(context, Table.MANIFESTS, visit)


def _check_listed(context: Context, txn: Reader, subject: Digest, referrer: Digest) -> None:
    """Each repository that has a manifest lists it as a referrer of its subject."""
    for key, _ in txn.scan(Table.MANIFEST_LINKS, referrer.key, check=False):
        repository = key[len(referrer.key) :].decode(errors="replace")
        entry = referrer_key(repository, subject, referrer)
        # A link in this direction only has a problem of its own, and its repository may not have the manifest.
        if txn.has(Table.MANIFEST_LINKS, link_key(repository, referrer)) and not txn.has(Table.REFERRERS, entry):
            reason = "it is not there, and its manifest is in the repository"
            context.findings.problem(*name_record(Table.REFERRERS, entry), reason)


def check_tags(context: Context) -> None:
    """Every tag points to a manifest of its repository."""

    def visit(txn: Reader, key: bytes, payload: memoryview) -> None:
        tag = Tag.decode(key, payload)
        repository = key.partition(b"\0")[0].decode()
        if not txn.has(Table.MANIFEST_LINKS, link_key(repository, tag.digest)):
            raise CorruptError("tag", key.hex(), f"its manifest {tag.digest} is not in the repository")

    walk(context, Table.TAGS, visit)


def check_referrers(context: Context) -> None:
    """Every entry describes a manifest of the repository that is about this subject."""

    def visit(txn: Reader, key: bytes, payload: memoryview) -> None:
        repository, _, referrer = _parsed(split_referrer, key)
        try:
            said = json.loads(bytes(payload))["digest"]
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptError("referrer", key.hex(), f"it is no descriptor: {error}") from error
        if said != str(referrer):
            raise CorruptError("referrer", key.hex(), f"it describes {said}")
        if not txn.has(Table.MANIFEST_LINKS, link_key(repository, referrer)):
            raise CorruptError("referrer", key.hex(), "its manifest is not in the repository")

    walk(context, Table.REFERRERS, visit)


def check_leases(context: Context) -> None:
    """Every lease can be read, and all layers are there that it keeps."""
    now = Moment.now()

    def visit(txn: Reader, key: bytes, payload: memoryview) -> None:
        LeaseName.parse(key)
        record = LeaseRecord.decode(payload, key.hex())
        missing = next((layer for layer in record.layers if not txn.has(Table.LAYERS, layer.key)), None)
        if missing is not None and not has_ended(read_timeline(txn, now), record):
            raise CorruptError("lease", key.hex(), f"the layer {missing} that it keeps is not there")

    walk(context, Table.LEASES, visit)


def check_rest(context: Context) -> None:
    """Tables of which only the checksums are known here."""
    for table in (Table.META, Table.TREES, Table.CORRECTIONS):
        walk(context, table)


def _parsed(parse: Callable[[bytes], Value], key: bytes) -> Value:
    try:
        return parse(key)
    except (InvalidError, ValueError, IndexError) as error:
        raise CorruptError("key", key.hex(), f"its key cannot be read: {error}") from error
