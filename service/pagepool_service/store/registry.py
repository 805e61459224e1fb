"""The registry's catalogue: which repository has which blobs, manifests, tags and referrers.

Owns the tables `links`, `manifests`, `manifest_links`, `tags` and `referrers`, and the rule that content is
kept once and is readable only through a repository that links to it. Names and digests are validated by the
caller: nothing here takes text that a client sent. `listings` has what only lists.

A repository is there while it has a blob or a manifest; nothing is made or removed for it. Each change is one
transaction: a manifest's check that its parts are there, its record, links, tags and referrer become visible
and durable together, and a concurrent delete is seen either before or after.

Each link has a time: when the repository got the content, or when a client last relied on its being there. A push
renews it, and so does whoever looks for the content (HEAD of a blob, GET and HEAD of a manifest by its digest), as long
as that was not done a short time ago; and a tag that leaves a manifest. Collection goes by these times.

Format: docs/format/catalogue.md.
"""

from __future__ import annotations

import json
import logging
import time
from typing import TYPE_CHECKING

from pagepool.digest import Digest
from pagepool.errors import (
    BlobUnknownError,
    CorruptError,
    ManifestUnknownError,
    NameUnknownError,
    NotFoundError,
    PagepoolError,
)
from pagepool.oci import Index
from pagepool_service.store.catalogue import (
    StoredManifest,
    Tag,
    holder_of,
    link_key,
    link_time,
    referrer_key,
    repository_prefix,
    tag_key,
)
from pagepool_service.store.cycle import is_collecting
from pagepool_service.store.environment import Table
from pagepool_service.store.links import is_held, link, renew_around, touch, unlink
from pagepool_service.store.listings import Listings, describe_referrer, is_there
from pagepool_service.store.parts import check_parts
from pagepool_service.store.room import NO_LIMIT, RoomLimit, check_room
from pagepool_service.store.schema import BlobRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from pagepool.oci import Manifest
    from pagepool_service.store.blobs import BlobStore
    from pagepool_service.store.environment import Environment, Reader, Writer

log = logging.getLogger("pagepool.registry")

RENEWED_AFTER_NS = 3600 * 10**9
"""A link that somebody relies on is renewed if its time is so long ago: not each request costs a commit."""


class Registry:
    """The catalogue. Methods block; any thread may call them.

    Args:
        env: the store's environment.
        blobs: whose records go when the last repository has unlinked a blob.
    """

    def __init__(self, env: Environment, blobs: BlobStore) -> None:
        self._env = env
        self.listings = Listings(env)
        self._blobs = blobs
        self.renewed_after_ns = RENEWED_AFTER_NS

    # -- links -----------------------------------------------------------------------------------------------

    def link_record(self, txn: Reader, table: Table, repository: str, digest: Digest) -> bytes | None:
        """The record that says that a repository has something, `links` or `manifest_links`; None if it does not."""
        payload = txn.get(table, link_key(repository, digest))
        return None if payload is None else bytes(payload)

    def renew_blob(self, repository: str, digest: Digest) -> None:
        """Note that a client relies on a blob of a repository, if that was last noted long ago.

        An effort: if nothing can be written, nothing is.

        Raises:
            BlobUnknownError: it was collected, or deleted, since it was looked for.
        """
        if not self._renew(Table.LINKS, repository, digest):
            raise BlobUnknownError(digest)

    def renew_manifest(self, repository: str, digest: Digest) -> None:
        """As `renew_blob`, of a manifest.

        Raises:
            ManifestUnknownError: it was collected, or deleted, since it was looked for.
        """
        if not self._renew(Table.MANIFEST_LINKS, repository, digest):
            raise ManifestUnknownError(digest)

    def is_old(self, txn: Reader, table: Table, repository: str, digest: Digest) -> bool:
        """Whether a link is there whose time is long ago."""
        payload = txn.get(table, link_key(repository, digest))
        return payload is not None and link_time(payload) < time.time_ns() - self.renewed_after_ns

    def _renew(self, table: Table, repository: str, digest: Digest) -> bool:
        """Returns False only if the link is known not to be there."""
        try:
            with self._env.write() as txn:
                if not txn.has(table, link_key(repository, digest)):
                    return False
                if self.is_old(txn, table, repository, digest):
                    touch(txn, table, repository, digest)
                    if table is Table.MANIFEST_LINKS and is_collecting(txn):
                        renew_around(txn, repository, digest)
        except PagepoolError as error:
            log.debug("that %s is used in %s is not noted: %s", digest, repository, error)
        return True

    # -- blobs -----------------------------------------------------------------------------------------------

    def stat_blob(self, repository: str, digest: Digest) -> BlobRecord:
        """The record of a blob that a repository has.

        Raises:
            BlobUnknownError: it has none of that digest.
        """
        with self._env.read() as txn:
            if not txn.has(Table.LINKS, link_key(repository, digest)):
                raise BlobUnknownError(digest)
            return self._blobs.record(txn, digest)

    def find_blob(self, repository: str, digest: Digest) -> tuple[BlobRecord, bool]:
        """As `stat_blob`, for a client that may go on to rely on it; and whether `renew_blob` is to be called."""
        with self._env.read() as txn:
            old = self.is_old(txn, Table.LINKS, repository, digest) and not self._env.readonly
        return self.stat_blob(repository, digest), old

    def has_sound_blob(self, repository: str, digest: Digest) -> bool:
        """Whether a repository has a blob, all of which can be read: to push it there again changes nothing.

        If so, it is noted that a client relies on it, as by `renew_blob`.
        """
        with self._env.read() as txn:
            if not txn.has(Table.LINKS, link_key(repository, digest)):
                return False
        return self._blobs.is_sound(digest) and self._renew(Table.LINKS, repository, digest)

    def linker(self, repository: str, digest: Digest, limit: RoomLimit = NO_LIMIT) -> Callable[[Writer], None]:
        """What links a blob to a repository, for the transaction that admits the blob.

        It raises RepositoryFullError, and so undoes the transaction, if the repository would hold too much.
        """

        def also(txn: Writer) -> None:
            self._link_blob(txn, repository, digest, limit)

        return also

    def _link_blob(self, txn: Writer, repository: str, digest: Digest, limit: RoomLimit) -> None:
        if limit.most and not txn.has(Table.LINKS, link_key(repository, digest)):
            check_room(txn, repository, limit, self._blobs.record(txn, digest).size)
        link(txn, Table.LINKS, repository, digest)

    def mount_blob(
        self,
        repository: str,
        digest: Digest,
        source: str | None,
        visible: Callable[[str], bool] = lambda _: True,
        limit: RoomLimit = NO_LIMIT,
    ) -> bool:
        """Link a blob that another repository has. Returns whether it was found.

        Args:
            source: the repository to take it from; None for any.
            visible: whether it may be taken from a repository; where not, it is not found there.
            limit: of the repository that it is linked to.

        Raises:
            RepositoryFullError: it would hold too much.
        """
        with self._env.read() as txn:
            if not self._can_mount(txn, digest, source, visible):
                return False
        with self._env.write() as txn:
            if not self._can_mount(txn, digest, source, visible):
                return False
            self._link_blob(txn, repository, digest, limit)
        return True

    def delete_blob(self, repository: str, digest: Digest) -> None:
        """Unlink a blob from a repository; the last one to do so removes it.

        Raises:
            BlobUnknownError: the repository does not have it.
        """
        with self._env.write() as txn:
            if not txn.has(Table.LINKS, link_key(repository, digest)):
                raise BlobUnknownError(digest)
            orphaned = self.drop_blob(txn, repository, digest)
        if orphaned:
            self._blobs.forget_file(digest)

    def drop_blob(self, txn: Writer, repository: str, digest: Digest) -> bool:
        """Unlink a blob from a repository that has it, in a transaction of the caller's.

        Returns:
            whether that was the last link, and the record is gone: `BlobStore.forget_file` is to be called after it.
        """
        unlink(txn, Table.LINKS, repository, digest)
        orphaned = not is_held(txn, Table.LINKS, digest)
        if orphaned:
            self._blobs.remove(txn, digest)
        return orphaned

    def _can_mount(self, txn: Reader, digest: Digest, source: str | None, visible: Callable[[str], bool]) -> bool:
        if not txn.has(Table.BLOBS, digest.key):
            return False
        if source is not None:
            return visible(source) and txn.has(Table.LINKS, link_key(source, digest))
        return any(visible(name) for name in _sound_holders(txn, digest))

    # -- manifests -------------------------------------------------------------------------------------------

    def put_manifest(
        self,
        repository: str,
        digest: Digest,
        document: Manifest | Index,
        tags: Collection[str] = (),
        limit: RoomLimit = NO_LIMIT,
    ) -> None:
        """Store a manifest under its digest, and point tags to it. On return all of it is durable.

        One that the repository has already, under tags that are there, takes no room.

        Args:
            digest: of `document.raw`, verified by the caller.
            limit: of what the repository may hold.

        Raises:
            RepositoryFullError: it would hold too much.
            ManifestBlobUnknownError: it refers to a blob or manifest that the repository lacks.
            SizeInvalidError: it says another size of a blob than that has.
            ManifestInvalidError: or of a manifest.
            StoreFullError, ReadOnlyError: nothing was kept.
        """
        now = time.time_ns()
        stored = StoredManifest(digest, document.media_type, now, document.raw)

        def reserve(txn: Reader) -> int:
            known = _can_be_read(txn, digest) and txn.has(Table.MANIFEST_LINKS, link_key(repository, digest))
            tagged = all(txn.has(Table.TAGS, tag_key(repository, tag)) for tag in tags)
            return 0 if known and tagged else len(document.raw) + 8192

        with self._env.write(reserve=reserve) as txn:
            check_parts(txn, repository, document)
            if not txn.has(Table.MANIFEST_LINKS, link_key(repository, digest)):
                check_room(txn, repository, limit, len(document.raw))
            if not _can_be_read(txn, digest):
                txn.put(Table.MANIFESTS, digest.key, stored.encode())
            link(txn, Table.MANIFEST_LINKS, repository, digest)
            for tag in tags:
                self.drop_tag(txn, repository, tag)
                txn.put(Table.TAGS, tag_key(repository, tag), Tag(digest, now).encode())
            if document.subject is not None:
                key = referrer_key(repository, document.subject.digest, digest)
                txn.put(Table.REFERRERS, key, describe_referrer(digest, document))
            if is_collecting(txn):
                renew_around(txn, repository, digest)

    def manifest(self, repository: str, reference: Digest | str) -> StoredManifest:
        """A manifest of a repository, by digest or tag.

        Raises:
            ManifestUnknownError: the repository has none such.
            NameUnknownError: nor anything else.
        """
        with self._env.read() as txn:
            return self.find_manifest(txn, repository, reference)

    def ask_manifest(self, repository: str, reference: Digest | str) -> tuple[StoredManifest, bool]:
        """As `manifest`, for a client that may rely on it; and whether `renew_manifest` is to be called."""
        with self._env.read() as txn:
            found = self.find_manifest(txn, repository, reference)
            old = self.is_old(txn, Table.MANIFEST_LINKS, repository, found.digest)
        return found, old and isinstance(reference, Digest) and not self._env.readonly

    def find_manifest(self, txn: Reader, repository: str, reference: Digest | str) -> StoredManifest:
        """`manifest`, in a transaction of the caller's."""
        digest = reference
        if isinstance(digest, str):
            payload = txn.get(Table.TAGS, tag_key(repository, digest))
            if payload is None:
                raise self._missing(txn, repository, ManifestUnknownError(reference))
            digest = Tag.decode(tag_key(repository, digest), payload).digest
        payload = None
        if txn.has(Table.MANIFEST_LINKS, link_key(repository, digest)):
            payload = txn.get(Table.MANIFESTS, digest.key)
        if payload is None:
            raise self._missing(txn, repository, ManifestUnknownError(reference))
        return StoredManifest.decode(digest, payload)

    def delete_tag(self, repository: str, tag: str) -> None:
        """Remove a tag; the manifest stays.

        Raises:
            ManifestUnknownError, NameUnknownError: there is none.
        """
        with self._env.write() as txn:
            if not self.drop_tag(txn, repository, tag):
                raise self._missing(txn, repository, ManifestUnknownError(tag))

    def drop_tag(self, txn: Writer, repository: str, tag: str) -> bool:
        """Remove a tag, in a transaction of the caller's. Its manifest counts as untagged from now on.

        Returns:
            whether there was one.
        """
        key = tag_key(repository, tag)
        try:
            payload = txn.get(Table.TAGS, key)
            if payload is None:
                return False
            touch(txn, Table.MANIFEST_LINKS, repository, Tag.decode(key, payload).digest)
        except CorruptError as error:  # nobody knows which manifest it leaves; it must not keep others from pushing
            log.error("the tag %s:%s is written over or removed: %s", repository, tag, error)
        return txn.delete(Table.TAGS, key)

    def delete_manifest(self, repository: str, digest: Digest) -> None:
        """Remove a manifest from a repository, with the tags that point to it and its entry as a referrer.

        A tag whose record is damaged stays: nobody knows where it points.

        Raises:
            ManifestUnknownError, NameUnknownError: there is none.
        """
        with self._env.write() as txn:
            if not txn.has(Table.MANIFEST_LINKS, link_key(repository, digest)):
                raise self._missing(txn, repository, ManifestUnknownError(digest))
            for key in _tags_of(txn, repository, digest):
                txn.delete(Table.TAGS, key)
            self.drop_manifest(txn, repository, digest)

    def drop_manifest(self, txn: Writer, repository: str, digest: Digest) -> None:
        """Remove a manifest that no tag points to, and its entry as a referrer, in a transaction of the caller's."""
        unlink(txn, Table.MANIFEST_LINKS, repository, digest)
        for key in _referrer_keys(txn, repository, digest):
            txn.delete(Table.REFERRERS, key)
        if not is_held(txn, Table.MANIFEST_LINKS, digest):
            txn.delete(Table.MANIFESTS, digest.key)

    def holders(self, txn: Reader, digest: Digest) -> list[str]:
        """The repositories that have a blob."""
        return list(_sound_holders(txn, digest))

    def _missing(self, txn: Reader, repository: str, error: NotFoundError) -> NotFoundError:
        return error if is_there(txn, repository) else NameUnknownError(repository)


def _sound_holders(txn: Reader, digest: Digest) -> Iterator[str]:
    """The repositories that have a blob, by those links that can be read."""
    for key, payload in txn.scan_all(Table.LINKS, digest.key):
        if isinstance(payload, CorruptError):
            log.error("%s is not looked for where a link says: %s", digest, payload)
        else:
            yield holder_of(key, digest)


def _tags_of(txn: Reader, repository: str, digest: Digest) -> list[bytes]:
    """The keys of a repository's tags that point to a manifest, by those records that can be read."""
    found = []
    for key, payload in txn.scan_all(Table.TAGS, repository_prefix(repository)):
        if isinstance(payload, CorruptError):
            log.error("a tag of %s is left, whether it points to %s or not: %s", repository, digest, payload)
        elif Tag.decode(key, payload).digest == digest:
            found.append(key)
    return found


def _referrer_keys(txn: Reader, repository: str, digest: Digest) -> list[bytes]:
    """The keys of a manifest's entries as a referrer: one, if it has a subject."""
    try:
        payload = txn.get(Table.MANIFESTS, digest.key)
        subject = None if payload is None else _subject(StoredManifest.decode(digest, payload))
    except CorruptError as error:  # what it is about is said by the key of its entry alone
        log.error("a manifest is removed from %s: %s", repository, error)
        entries = txn.scan(Table.REFERRERS, repository_prefix(repository), check=False)
        return [key for key, _ in entries if key.endswith(digest.key)]
    return [] if subject is None else [referrer_key(repository, subject, digest)]


def _can_be_read(txn: Reader, digest: Digest) -> bool:
    """Whether a manifest is stored, and not damaged: what is acknowledged now must not rest on a record that is."""
    try:
        return txn.get(Table.MANIFESTS, digest.key) is not None
    except CorruptError:
        return False


def _subject(stored: StoredManifest) -> Digest | None:
    """The subject of a manifest that was validated when it was stored."""
    subject = json.loads(stored.raw).get("subject")
    return None if subject is None else Digest.parse(subject["digest"])
