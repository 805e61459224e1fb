"""The registry's catalogue: which repository has which blobs, manifests, tags and referrers.

Owns the tables `links`, `manifests`, `manifest_links`, `tags` and `referrers`, and the rule that content is
kept once and is readable only through a repository that links to it. Names and digests are validated by the
caller: nothing here takes text that a client sent, but the `last` of a listing.

A damaged record keeps no listing from naming all others: it is named beside them. A damaged referrer is listed as its
manifest has it.

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
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pagepool.digest import Digest
from pagepool.errors import (
    BlobUnknownError,
    CorruptError,
    ManifestBlobUnknownError,
    ManifestInvalidError,
    ManifestUnknownError,
    NameInvalidError,
    NameUnknownError,
    NotFoundError,
    PagepoolError,
    SizeInvalidError,
    TagInvalidError,
)
from pagepool.oci import Descriptor, Index, parse_manifest, validate_repository, validate_tag
from pagepool.oci.mediatypes import is_foreign_layer
from pagepool_service.store.catalogue import (
    FORWARD,
    StoredManifest,
    Tag,
    after_repository,
    after_tag,
    holder_of,
    link_key,
    link_time,
    referrer_key,
    referrers_prefix,
    repository_prefix,
    tag_key,
)
from pagepool_service.store.cycle import is_collecting
from pagepool_service.store.environment import CHECKSUM_SIZE, Table
from pagepool_service.store.links import is_held, link, renew_around, touch, unlink
from pagepool_service.store.room import NO_LIMIT, RoomLimit, check_room
from pagepool_service.store.schema import BlobRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pagepool.oci import Manifest
    from pagepool_service.store.blobs import BlobStore
    from pagepool_service.store.environment import Environment, Reader, Writer

log = logging.getLogger("pagepool.registry")

RENEWED_AFTER_NS = 3600 * 10**9
"""A link that somebody relies on is renewed if its time is so long ago: not each request costs a commit."""
# Descriptors of one answer of the referrers API: an index that any client takes (manifests may have 4 MiB).
REFERRERS_BYTES = 3 << 20


@dataclass(frozen=True, slots=True)
class Page:
    """Some names of a listing, in order; `more` says whether there are others behind them.

    Args:
        damaged: names whose record cannot be read, which are not among `names`, and what is wrong with each.
    """

    names: list[str]
    more: bool
    damaged: dict[str, CorruptError] = field(default_factory=dict)

    @property
    def last(self) -> str:
        """Behind which name the next page begins; "" if this one is empty."""
        return self.names[-1] if self.names else max(self.damaged, default="")


@dataclass(frozen=True, slots=True)
class ReferrersPage:
    """Some descriptors of a listing, as JSON objects; `last` is where to go on, or None at the end."""

    descriptors: list[dict[str, Any]]
    last: Digest | None


@dataclass(frozen=True, slots=True)
class TaggedImage:
    """A tag of some repository, and the digest of the manifest it points to."""

    repository: str
    tag: str
    updated_ns: int
    digest: Digest


@dataclass(frozen=True, slots=True)
class DamagedTag:
    """A tag whose record cannot be read: nobody knows where it points."""

    repository: str
    tag: str
    error: CorruptError


class Registry:
    """The catalogue. Methods block; any thread may call them.

    Args:
        env: the store's environment.
        blobs: whose records go when the last repository has unlinked a blob.
    """

    def __init__(self, env: Environment, blobs: BlobStore) -> None:
        self._env = env
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
        return any(visible(holder_of(key, digest)) for key, _ in txn.scan(Table.LINKS, digest.key))

    # -- manifests -------------------------------------------------------------------------------------------

    def put_manifest(
        self,
        repository: str,
        digest: Digest,
        document: Manifest | Index,
        tags: Iterable[str] = (),
        limit: RoomLimit = NO_LIMIT,
    ) -> None:
        """Store a manifest under its digest, and point tags to it. On return all of it is durable.

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
        with self._env.write(reserve=len(document.raw) + 8192) as txn:
            _check_parts(txn, repository, document)
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

        Raises:
            ManifestUnknownError, NameUnknownError: there is none.
        """
        with self._env.write() as txn:
            if not txn.has(Table.MANIFEST_LINKS, link_key(repository, digest)):
                raise self._missing(txn, repository, ManifestUnknownError(digest))
            prefix = repository_prefix(repository)
            found = [key for key, payload in txn.scan(Table.TAGS, prefix) if Tag.decode(key, payload).digest == digest]
            for key in found:
                txn.delete(Table.TAGS, key)
            self.drop_manifest(txn, repository, digest)

    def drop_manifest(self, txn: Writer, repository: str, digest: Digest) -> None:
        """Remove a manifest that no tag points to, and its entry as a referrer, in a transaction of the caller's."""
        unlink(txn, Table.MANIFEST_LINKS, repository, digest)
        payload = txn.get(Table.MANIFESTS, digest.key)
        if payload is not None:
            subject = _subject(StoredManifest.decode(digest, payload))
            if subject is not None:
                txn.delete(Table.REFERRERS, referrer_key(repository, subject, digest))
        if not is_held(txn, Table.MANIFEST_LINKS, digest):
            txn.delete(Table.MANIFESTS, digest.key)

    # -- listings --------------------------------------------------------------------------------------------

    def list_repositories(self, limit: int, last: str = "", visible: Callable[[str], bool] = lambda _: True) -> Page:
        """Repositories that have a manifest, in byte order, those after `last`; of these, those that are visible."""
        names: list[str] = []
        damaged: dict[str, CorruptError] = {}
        start: bytes | None = after_repository(last)
        with self._env.read() as txn:
            while start is not None:
                records, start = txn.scan_all(Table.MANIFEST_LINKS, start=start), None
                for key, payload in records:
                    repository = _halves(key)[0].decode(errors="replace")
                    error = payload if isinstance(payload, CorruptError) else None
                    if error is not None and not _can_be_named(repository, error):
                        continue
                    if visible(repository):
                        if repository not in damaged and len(names) + len(damaged) == limit:
                            return _end_page(names, damaged)
                        if error is None:
                            damaged.pop(repository, None)
                            names.append(repository)
                        else:
                            damaged.setdefault(repository, error)
                    if error is None:  # nor where a damaged key says: others may be missed
                        start = after_repository(repository)
                        break
        return Page(names, False, damaged)

    def list_tags(self, repository: str, limit: int, last: str = "") -> Page:
        """Tags of a repository, in byte order, those after `last`.

        Raises:
            NameUnknownError: no such repository.
        """
        names: list[str] = []
        damaged: dict[str, CorruptError] = {}
        prefix = repository_prefix(repository)
        with self._env.read() as txn:
            for key, payload in txn.scan_all(Table.TAGS, prefix, start=after_tag(repository, last)):
                tag = key[len(prefix) :].decode(errors="replace")
                error = payload if isinstance(payload, CorruptError) else None
                if error is not None and not _can_be_named(repository, error, tag):
                    continue
                if len(names) + len(damaged) == limit:
                    return _end_page(names, damaged)
                if error is None:
                    names.append(tag)
                else:
                    damaged[tag] = error
            if not names and not damaged and not _exists(txn, repository):
                raise NameUnknownError(repository)
        return Page(names, False, damaged)

    def list_images(
        self,
        limit: int,
        last: tuple[str, str] | None = None,
        visible: Callable[[str], bool] = lambda _: True,
        on_damage: Callable[[DamagedTag], object] = lambda _: None,
    ) -> tuple[list[TaggedImage], bool]:
        """Tags of all visible repositories, in byte order, those after `last`; and whether more follow.

        Only where they point: manifests have megabytes, and are for the caller to read one at a time.

        Args:
            on_damage: told of visible tags whose record cannot be read, which count as the others do.
        """
        images: list[TaggedImage] = []
        count = 0
        start: bytes | None = FORWARD if last is None else after_tag(*last)
        with self._env.read() as txn:
            while start is not None:
                records, start = txn.scan_all(Table.TAGS, start=start), None
                for key, payload in records:
                    repository, tag = (part.decode(errors="replace") for part in _halves(key))
                    if isinstance(payload, CorruptError) and not _can_be_named(repository, payload, tag):
                        continue
                    if not visible(repository):
                        if isinstance(payload, CorruptError):
                            continue
                        start = after_repository(repository)
                        break
                    if count == limit:
                        return images, True
                    count += 1
                    if isinstance(payload, CorruptError):
                        on_damage(DamagedTag(repository, tag, payload))
                        continue
                    found = Tag.decode(key, payload)
                    images.append(TaggedImage(repository, tag, found.updated_ns, found.digest))
        return images, False

    def list_referrers(
        self,
        repository: str,
        subject: Digest,
        *,
        artifact_type: str | None = None,
        limit: int = 1000,
        last: Digest | None = None,
    ) -> ReferrersPage:
        """Descriptors of the manifests whose subject is `subject`, by digest, those after `last`.

        At least one is returned if there are any, however large; an unknown repository has none.

        Raises:
            CorruptError: the record of one is damaged, and its manifest as well. Who asks for signatures must not take
                it that there are no others.
        """
        found: list[dict[str, Any]] = []
        size = 0
        prefix = referrers_prefix(repository, subject)
        start = prefix if last is None else referrer_key(repository, subject, last) + b"\0"
        with self._env.read() as txn:
            for key, payload in txn.scan_all(Table.REFERRERS, prefix, start=start):
                raw = (
                    _describe_anew(txn, repository, subject, key[len(prefix) :], payload)
                    if isinstance(payload, CorruptError)
                    else bytes(payload)
                )
                descriptor = json.loads(raw)
                if artifact_type is not None and descriptor.get("artifactType", "") != artifact_type:
                    continue
                size += len(raw)
                if found and (len(found) == limit or size > REFERRERS_BYTES):
                    return ReferrersPage(found, Digest.parse(found[-1]["digest"]))
                found.append(descriptor)
        return ReferrersPage(found, None)

    def holders(self, txn: Reader, digest: Digest) -> list[str]:
        """The repositories that have a blob."""
        return [holder_of(key, digest) for key, _ in txn.scan(Table.LINKS, digest.key)]

    def _missing(self, txn: Reader, repository: str, error: NotFoundError) -> NotFoundError:
        return error if _exists(txn, repository) else NameUnknownError(repository)


def _exists(txn: Reader, repository: str) -> bool:
    prefix = repository_prefix(repository)
    tables = (Table.MANIFEST_LINKS, Table.LINKS)
    return any(next(txn.scan(table, prefix, check=False), None) is not None for table in tables)


def _halves(key: bytes) -> tuple[bytes, bytes]:
    """A forward key before and behind its NUL."""
    name, _, rest = key.partition(b"\0")
    return name, rest


def _end_page(names: list[str], damaged: dict[str, CorruptError]) -> Page:
    """A page behind which there are others. It ends at a sound name, if it has any: of others the key may be wrong."""
    return Page(names, True, {name: error for name, error in damaged.items() if not names or name < names[-1]})


def _can_be_named(repository: str, error: CorruptError, tag: str = "latest") -> bool:
    """Whether what a damaged record is called can be told; its key may be what is damaged. The log has both."""
    log.error("of the repository %s: %s", repository, error)
    try:
        validate_repository(repository)
        validate_tag(tag)
    except (NameInvalidError, TagInvalidError):
        return False
    return True


def _describe_anew(txn: Reader, repository: str, subject: Digest, key: bytes, error: CorruptError) -> bytes:
    """What a damaged record of a referrer had, out of the referrer's manifest.

    Args:
        key: of the referrer.

    Raises:
        CorruptError: that cannot be read either, or is none of a manifest about the subject that the repository has.
    """
    try:
        digest = Digest.from_key(key)
        payload = txn.get(Table.MANIFESTS, key) if txn.has(Table.MANIFEST_LINKS, link_key(repository, digest)) else None
        if payload is None:
            raise error
        stored = StoredManifest.decode(digest, payload)
        document = parse_manifest(stored.raw, stored.media_type)
    except PagepoolError:
        raise error from None
    if document.subject is None or document.subject.digest != subject:
        raise error
    return describe_referrer(digest, document)


def _can_be_read(txn: Reader, digest: Digest) -> bool:
    """Whether a manifest is stored, and not damaged: what is acknowledged now must not rest on a record that is."""
    try:
        return txn.get(Table.MANIFESTS, digest.key) is not None
    except CorruptError:
        return False


def _check_parts(txn: Reader, repository: str, document: Manifest | Index) -> None:
    """Everything a document needs must be in the repository, but a subject, and layers that may be kept elsewhere."""
    if isinstance(document, Index):
        for entry in document.manifests:
            key = link_key(repository, entry.digest)
            # An index may list things that are no manifests; those are blobs.
            if txn.has(Table.MANIFEST_LINKS, key):
                _check_entry(txn, entry)
            elif txn.has(Table.LINKS, key):
                _check_size(txn, entry)
            else:
                raise ManifestBlobUnknownError(str(entry.digest), f"{repository} has no such manifest")
        return
    for entry in document.blobs:
        if txn.has(Table.LINKS, link_key(repository, entry.digest)):
            _check_size(txn, entry)
        elif not may_lack(entry):
            raise ManifestBlobUnknownError(str(entry.digest), f"{repository} has no such blob")


def may_lack(entry: Descriptor) -> bool:
    """Whether a repository need not have what its manifest names so: that it names it gives it no right to it."""
    return is_foreign_layer(entry.media_type) and bool(entry.urls)


def _check_entry(txn: Reader, entry: Descriptor) -> None:
    """Nor do they pull a manifest of another size than an index says."""
    # Not read: an index may name thousands of manifests of megabytes, and nobody writes meanwhile.
    value = txn.get_unchecked(Table.MANIFESTS, entry.digest.key)
    size = entry.size if value is None else StoredManifest.size_of(value[:-CHECKSUM_SIZE])
    if size != entry.size:
        raise ManifestInvalidError(f"entry {entry.digest}", f"it says {entry.size} bytes of a manifest that has {size}")


def _check_size(txn: Reader, entry: Descriptor) -> None:
    """Clients refuse to pull a blob of another size than its manifest says: better refuse the push."""
    payload = txn.get(Table.BLOBS, entry.digest.key)
    size = entry.size if payload is None else BlobRecord.decode(payload, str(entry.digest)).size
    if size != entry.size:
        raise SizeInvalidError(entry.size, f"blob {entry.digest} has {size} bytes")


def describe_referrer(digest: Digest, document: Manifest | Index) -> bytes:
    """What the referrers API says of a document."""
    descriptor = Descriptor(
        document.media_type,
        digest,
        len(document.raw),
        annotations=document.annotations,
        artifact_type=document.artifact_type,
    )
    return json.dumps(descriptor.to_json(), separators=(",", ":")).encode()


def _subject(stored: StoredManifest) -> Digest | None:
    """The subject of a manifest that was validated when it was stored."""
    subject = json.loads(stored.raw).get("subject")
    return None if subject is None else Digest.parse(subject["digest"])
