"""What repositories have, as lists: repositories, tags, images, referrers.

Long lists come in pages. A damaged record keeps no list from naming all others: it is named beside them. A damaged
referrer is listed as its manifest has it.

Format of the records: docs/format/catalogue.md.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from pagepool.digest import Digest
from pagepool.errors import CorruptError, NameInvalidError, NameUnknownError, PagepoolError, TagInvalidError
from pagepool.oci import Descriptor, parse_manifest, validate_repository, validate_tag
from pagepool_service.store.catalogue import (
    FORWARD,
    StoredManifest,
    Tag,
    after_repository,
    after_tag,
    link_key,
    referrer_key,
    referrers_prefix,
    repository_prefix,
)
from pagepool_service.store.environment import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pagepool.oci import Index, Manifest
    from pagepool_service.store.environment import Environment, Reader

log = logging.getLogger("pagepool.registry")

# Descriptors of one answer of the referrers API: an index that any client takes (manifests may have 4 MiB).
REFERRERS_BYTES = 3 << 20
_MOST_DAMAGED: Final = 1000
"""Of a page; the log has all."""

_Name = TypeVar("_Name", str, tuple[str, str])


@dataclass(frozen=True, slots=True)
class Page:
    """Some names of a listing, in order; `more` says whether there are others behind them.

    Args:
        damaged: names whose record cannot be read, which are not among `names`, nor counted, and what is wrong with
            each.
    """

    names: list[str]
    more: bool
    damaged: dict[str, CorruptError] = field(default_factory=dict)

    @property
    def last(self) -> str:
        """Behind which name the next page begins; "" if this one is empty. Of what is damaged the key may be wrong."""
        return self.names[-1] if self.names else ""


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


class _Damaged(Generic[_Name]):
    """What is damaged of a page, in the order in which it lies there. Its keys may be out of their places."""

    def __init__(self) -> None:
        self.all: dict[_Name, CorruptError] = {}
        self._passed = 0

    def add(self, name: _Name, error: CorruptError) -> None:
        """Note one; no more than an answer may have."""
        if len(self.all) < _MOST_DAMAGED:
            self.all.setdefault(name, error)

    def pass_by(self, name: _Name) -> None:
        """A sound name was come to: it is not damaged, and what lies before it is on this page."""
        self.all.pop(name, None)
        self._passed = len(self.all)

    def before(self, ends: Sequence[_Name]) -> dict[_Name, CorruptError]:
        """What a page that ends at a sound name has: what the next one will come to is left to that.

        Args:
            ends: that name, if the page has any.
        """
        return {
            name: error
            for number, (name, error) in enumerate(self.all.items())
            if number < self._passed or any(name < end for end in ends)
        }


class Listings:
    """Reads the lists. Methods block; any thread may call them.

    Args:
        env: of the store.
    """

    def __init__(self, env: Environment) -> None:
        self._env = env

    def repositories(self, limit: int, last: str = "", visible: Callable[[str], bool] = lambda _: True) -> Page:
        """Repositories that have a manifest, in byte order, those after `last`; of these, those that are visible."""
        names: list[str] = []
        damaged = _Damaged[str]()
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
                        if error is not None:
                            damaged.add(repository, error)
                        elif len(names) == limit:
                            return Page(names, True, damaged.before(names[-1:]))
                        else:
                            names.append(repository)
                            damaged.pass_by(repository)
                    if error is None:  # nor where a damaged key says: others may be missed
                        start = after_repository(repository)
                        break
        return Page(names, False, damaged.all)

    def tags(self, repository: str, limit: int, last: str = "") -> Page:
        """Tags of a repository, in byte order, those after `last`.

        Raises:
            NameUnknownError: no such repository.
        """
        names: list[str] = []
        damaged = _Damaged[str]()
        prefix = repository_prefix(repository)
        with self._env.read() as txn:
            for key, payload in txn.scan_all(Table.TAGS, prefix, start=after_tag(repository, last)):
                tag = key[len(prefix) :].decode(errors="replace")
                error = payload if isinstance(payload, CorruptError) else None
                if error is not None and not _can_be_named(repository, error, tag):
                    continue
                if error is not None:
                    damaged.add(tag, error)
                elif len(names) == limit:
                    return Page(names, True, damaged.before(names[-1:]))
                else:
                    names.append(tag)
                    damaged.pass_by(tag)
            if not names and not damaged.all and not is_there(txn, repository):
                raise NameUnknownError(repository)
        return Page(names, False, damaged.all)

    def images(
        self,
        limit: int,
        last: tuple[str, str] | None = None,
        visible: Callable[[str], bool] = lambda _: True,
        on_damage: Callable[[DamagedTag], object] = lambda _: None,
    ) -> tuple[list[TaggedImage], bool]:
        """Tags of all visible repositories, in byte order, those after `last`; and whether more follow.

        Only where they point: manifests have megabytes, and are for the caller to read one at a time.

        Args:
            on_damage: told of visible tags whose record cannot be read, which are not counted.
        """
        images: list[TaggedImage] = []
        damaged = _Damaged[tuple[str, str]]()
        more = False
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
                    if isinstance(payload, CorruptError):
                        damaged.add((repository, tag), payload)
                        continue
                    if len(images) == limit:
                        more = True
                        break
                    found = Tag.decode(key, payload)
                    images.append(TaggedImage(repository, tag, found.updated_ns, found.digest))
                    damaged.pass_by((repository, tag))
        ends = [(image.repository, image.tag) for image in images[-1:]]
        for (repository, tag), error in (damaged.before(ends) if more else damaged.all).items():
            on_damage(DamagedTag(repository, tag, error))
        return images, more

    def referrers(
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


def is_there(txn: Reader, repository: str) -> bool:
    """Whether a repository has anything."""
    prefix = repository_prefix(repository)
    tables = (Table.MANIFEST_LINKS, Table.LINKS)
    return any(next(txn.scan(table, prefix, check=False), None) is not None for table in tables)


def _halves(key: bytes) -> tuple[bytes, bytes]:
    """A forward key before and behind its NUL."""
    name, _, rest = key.partition(b"\0")
    return name, rest


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
