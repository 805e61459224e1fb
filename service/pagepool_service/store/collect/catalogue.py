"""Take out of repositories what their rules do not keep: tags, manifests, and blobs that no manifest needs.

One repository after the other. What goes is decided in one snapshot (`policy`), and each removal looks again, in its
transaction, whether the link or tag is the very record of that snapshot: whoever pushes or asks for something renews
its link (`registry`), and while a cycle runs whoever pushes a manifest renews those of all its parts. So nothing goes
that somebody has come to rely on meanwhile.

The last link of a blob takes its record along. A repository with a manifest that cannot be read, or is
lost, keeps all its blobs and manifests: nobody knows which it needs.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pagepool.digest import Digest
from pagepool.errors import CorruptError, PagepoolError
from pagepool.oci import Index, parse_manifest
from pagepool_service.store.catalogue import (
    StoredManifest,
    Tag,
    after_repository,
    link_time,
    repository_of,
    repository_prefix,
    split_tag_key,
    tag_key,
)
from pagepool_service.store.collect.policy import ManifestFacts, find_attached, plan_expiry, plan_manifests
from pagepool_service.store.environment import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from pagepool_service.store.clock import Timeline
    from pagepool_service.store.collect.gate import Gate
    from pagepool_service.store.collect.policy import Policy
    from pagepool_service.store.collect.report import Report
    from pagepool_service.store.environment import Environment, Reader, Writer
    from pagepool_service.store.store import Store


@dataclass(slots=True)
class _Repository:
    """What a snapshot says of a repository."""

    name: str
    tags: dict[str, tuple[Digest, int, bytes]] = field(default_factory=dict)  # manifest, time, record
    links: dict[bytes, bytes] = field(default_factory=dict)  # manifest -> link record
    facts: dict[bytes, ManifestFacts] = field(default_factory=dict)
    whole: bool = True  # whether each manifest could be read
    attached: dict[str, bytes] = field(default_factory=dict)  # tag made of a digest -> the manifest of that digest


class CatalogueSweep:
    """Goes through the repositories of a store.

    Args:
        gate: makes the write transactions; None for a dry run.
        uploading: the repositories that somebody uploads to now.
        timeline: counts ages.
    """

    def __init__(
        self,
        store: Store,
        policy: Policy,
        gate: Gate | None,
        report: Report,
        uploading: Callable[[], set[str]],
        timeline: Timeline,
    ) -> None:
        self._store = store
        self._env = store.env
        self._policy = policy
        self._gate = gate
        self._report = report
        self._uploading = uploading
        self._timeline = timeline
        self._now_ns = timeline.now.wall_ns
        self._gone: Counter[bytes] = Counter()  # in a dry run: links that would go, by blob

    def run(self, watch: Callable[[int], None] = lambda _: None) -> None:
        """Go through all repositories; `watch` is told of each."""
        for name in repositories(self._env):
            self._sweep(name)
            watch(1)

    def orphans(self) -> set[bytes]:
        """In a dry run: blobs that would lose their last link."""
        found: set[bytes] = set()
        with self._env.read() as txn:
            for key, links in self._gone.items():
                if sum(1 for _ in txn.scan(Table.LINKS, key)) <= links:
                    found.add(key)
        return found

    def _sweep(self, name: str) -> None:
        repository = self._read(name)
        expired = self._expire_tags(repository)
        if repository.whole:
            kept = self._sweep_manifests(repository, expired)
            self._sweep_links(repository, kept)
        else:
            self._report.note_damage(f"{name} keeps all its blobs and manifests: a manifest of it cannot be read")

    # -- looking ---------------------------------------------------------------------------------------------

    def _read(self, name: str) -> _Repository:
        found = _Repository(name)
        prefix = repository_prefix(name)
        with self._env.read() as txn:
            for key, payload in txn.scan_surely(Table.TAGS, prefix):
                tag = Tag.decode(key, payload)
                found.tags[split_tag_key(key)[1]] = tag.digest, tag.updated_ns, bytes(payload)
            links = txn.scan_surely(Table.MANIFEST_LINKS, prefix)
            found.links = {key[len(prefix) :]: bytes(value) for key, value in links}
        for key, link in found.links.items():
            facts = self._facts(name, key, link_time(link))
            if facts is None:
                found.whole = False
                facts = ManifestFacts(self._now_ns)
            found.facts[key] = facts
        return found

    def _facts(self, name: str, key: bytes, since_ns: int) -> ManifestFacts | None:
        """What a manifest needs; None if it cannot be read, or is lost. One that is gone by now needs nothing."""
        digest = Digest.from_key(key)
        try:
            with self._env.read() as txn:
                payload = txn.get(Table.MANIFESTS, key)
                if payload is None:
                    gone = self._store.registry.link_record(txn, Table.MANIFEST_LINKS, name, digest) is None
                    return ManifestFacts(since_ns) if gone else None
                stored = StoredManifest.decode(digest, payload)
            document = parse_manifest(stored.raw, stored.media_type)
        except PagepoolError:
            return None
        subject = b"" if document.subject is None else document.subject.digest.key
        if isinstance(document, Index):
            entries = tuple(entry.digest.key for entry in document.manifests)
            return ManifestFacts(since_ns, entries, subject, entries)  # an entry may be a blob
        return ManifestFacts(since_ns, (), subject, tuple(entry.digest.key for entry in document.blobs))

    # -- removing --------------------------------------------------------------------------------------------

    def _expire_tags(self, repository: _Repository) -> set[str]:
        """Remove tags beyond the newest ones. Their manifests count as untagged from now on."""
        most = self._policy.most_tags(repository.name)
        if most:
            manifests = {tag: digest.key for tag, (digest, _, _) in repository.tags.items()}
            repository.attached = find_attached(manifests, repository.facts)
        times = {tag: updated for tag, (_, updated, _) in repository.tags.items()}
        expired = plan_expiry(times, most, repository.attached)
        if expired and self._timeline.is_in_doubt(times.values()):
            self._report.problems.append(
                f"{repository.name} keeps all its tags: the clock was set back, and nobody knows which are the newest"
            )
            expired = set()
        for tag in expired:
            key = repository.tags[tag][0].key
            if key in repository.facts:
                found = repository.facts[key]
                repository.facts[key] = ManifestFacts(self._now_ns, found.children, found.subject, found.blobs)
        self._remove_tags(repository, expired)
        self._report.kept["tags"] += len(repository.tags) - len(expired)
        return expired

    def _remove_tags(self, repository: _Repository, tags: Collection[str]) -> None:
        """Remove those of some tags that nobody has set meanwhile."""

        def remove(txn: Writer, tag: str) -> None:
            if self._drop_tag(txn, repository, tag):
                # Its link was renewed.
                digest = repository.tags[tag][0]
                link = self._store.registry.link_record(txn, Table.MANIFEST_LINKS, repository.name, digest)
                if link is not None:
                    repository.links[digest.key] = link

        if self._gate is None:
            self._report.freed["tags"] += len(tags)
            self._report.tags += [f"{repository.name}:{tag}" for tag in sorted(tags)]
        else:
            self._gate.each(sorted(tags), remove)

    def _drop_tag(self, txn: Writer, repository: _Repository, tag: str) -> bool:
        now = txn.get(Table.TAGS, tag_key(repository.name, tag))
        if now is None or bytes(now) != repository.tags[tag][2]:
            return False
        self._report.freed["tags"] += 1
        return self._store.registry.drop_tag(txn, repository.name, tag)

    def _sweep_manifests(self, repository: _Repository, expired: set[str]) -> set[bytes]:
        """Remove manifests that nothing keeps, and the tags that are made of their digests. Returns the others."""
        tags, attached = repository.tags, repository.attached
        tagged = [tags[tag][0].key for tag in tags if tag not in expired and tag not in attached]
        age_s = self._policy.untagged_s
        since_ns = None if age_s is None else self._timeline.since_ns(age_s)
        if age_s == 0:
            since_ns = self._now_ns + 1
        edges = [(subject, tags[tag][0].key) for tag, subject in attached.items()]
        kept, reasons = plan_manifests(repository.facts, tagged, since_ns, edges)
        left = set(kept)
        holders: dict[bytes, list[str]] = {}  # by manifest: the tags that go with another one
        for tag in attached:
            holders.setdefault(tags[tag][0].key, []).append(tag)

        def remove(txn: Writer, key: bytes) -> None:
            digest = Digest.from_key(key)
            names = holders.get(key, ())
            seen = self._store.registry.link_record(txn, Table.MANIFEST_LINKS, repository.name, digest)
            if seen is None or seen != repository.links[key] or any(attached[tag] in left for tag in names):
                left.add(key)  # somebody has asked for it, or for what it is about, or pushed it again
                return
            for tag in names:
                self._drop_tag(txn, repository, tag)
            self._store.registry.drop_manifest(txn, repository.name, digest)
            self._report.freed["manifests"] += 1

        # Signatures last: one whose subject is asked for at this moment stays with it.
        going = sorted((key for key in repository.facts if key not in kept), key=lambda key: key in holders)
        if self._gate is None:
            self._report.freed["manifests"] += len(going)
        else:
            self._gate.each(going, remove)
        for reason, count in reasons.items():
            self._report.kept[f"manifests: {reason}"] += count
        lost = [tag for tag, subject in attached.items() if subject not in left]
        self._remove_tags(repository, lost)
        self._report.kept["tags"] -= len(lost)
        return left

    def _sweep_links(self, repository: _Repository, manifests: set[bytes]) -> None:
        """Remove blobs from a repository that none of its manifests needs."""
        needed = {blob for key in manifests for blob in repository.facts[key].blobs}
        since_ns = self._timeline.since_ns(self._policy.grace_s)
        uploading = repository.name in self._uploading()
        prefix = repository_prefix(repository.name)
        going: list[tuple[bytes, bytes]] = []
        with self._env.read() as txn:
            for key, link in txn.scan(Table.LINKS, prefix):
                blob = key[len(prefix) :]
                if blob in needed:
                    reason = "blobs: of a manifest"
                elif uploading:
                    reason = "blobs: of a repository that is uploaded to"
                # Also without a grace time: what came, or was renewed, since the cycle began may be of a manifest that
                # was pushed after the manifests were looked at.
                elif link_time(link) >= since_ns:
                    reason = "blobs: of no manifest, in their time"
                else:
                    going.append((blob, bytes(link)))
                    continue
                self._report.kept[reason] += 1
        if self._gate is None:
            self._report.freed["links"] += len(going)
            self._gone.update(blob for blob, _ in going)
            return
        orphaned: list[Digest] = []
        self._gate.each(going, lambda txn, item: self._unlink(txn, repository.name, item, orphaned))
        for digest in orphaned:
            if self._store.blobs.spool_path(digest).exists():
                self._store.blobs.forget_file(digest)

    def _unlink(self, txn: Writer, name: str, item: tuple[bytes, bytes], orphaned: list[Digest]) -> None:
        blob, seen = item
        digest = Digest.from_key(blob)
        if self._store.registry.link_record(txn, Table.LINKS, name, digest) != seen or name in self._uploading():
            self._report.kept["blobs: of no manifest, in their time"] += 1
            return
        if self._store.registry.drop_blob(txn, name, digest):
            orphaned.append(digest)
            self._report.freed["blobs"] += 1
        self._report.freed["links"] += 1


def repositories(env: Environment) -> Iterator[str]:
    """The names of all repositories that have a blob or manifest, in byte order."""
    start = after_repository("")
    while True:
        with env.read() as txn:
            found = [_name_from(txn, table, start) for table in (Table.LINKS, Table.MANIFEST_LINKS)]
        names = [name for name in found if name is not None]
        if not names:
            return
        name = min(names, key=str.encode)
        yield name
        start = after_repository(name)


def _name_from(txn: Reader, table: Table, start: bytes) -> str | None:
    record = next(txn.scan(table, start=start, check=False), None)
    if record is None:
        return None
    try:
        return repository_of(record[0])
    except ValueError as error:
        raise CorruptError(table.label, record[0].hex(), f"its key cannot be read: {error}") from error
