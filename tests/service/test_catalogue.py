"""The catalogue against a model: dictionaries that share nothing with it.

Hypothesis makes up sequences of pushes, deletes and mounts over a few names, and after each of them everything that
can be asked is asked of both.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pagepool.digest import Digest
from pagepool.errors import BlobUnknownError, ManifestBlobUnknownError, ManifestUnknownError, NameUnknownError
from pagepool.oci import Index, Manifest, parse_manifest
from pagepool_service.store.catalogue import after_repository, after_tag, repository_prefix
from pagepool_service.store.environment import Table
from pagepool_service.store.store import Store
from pagepool_service.store.sums import Summer

REPOSITORIES = ["a", "a-b", "a/b", "ab"]
TAGS = ["0", "A", "latest", "x.y"]
BLOBS = [b"", b"{}", b"one", b"two"]
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_INDEX = "application/vnd.oci.image.index.v1+json"

repositories = st.sampled_from(REPOSITORIES)
tags = st.sampled_from(TAGS)
blobs = st.sampled_from(BLOBS)


def described(media_type: str, data: bytes) -> dict[str, Any]:
    """A descriptor."""
    return {"mediaType": media_type, "digest": str(Digest.of(data)), "size": len(data)}


def manifest_of(config: bytes, layers: list[bytes], subject: bytes | None) -> bytes:
    """A manifest."""
    document: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "config": described(_CONFIG, config),
        "layers": [described(_LAYER, layer) for layer in layers],
    }
    if subject is not None:
        document["subject"] = described(_MANIFEST, subject)
    return json.dumps(document).encode()


@dataclass
class Model:
    """One repository: what it has."""

    blobs: set[Digest] = field(default_factory=set)
    manifests: dict[Digest, bytes] = field(default_factory=dict)
    tags: dict[str, Digest] = field(default_factory=dict)

    @property
    def exists(self) -> bool:
        """Whether it is known at all."""
        return bool(self.blobs or self.manifests)


class CatalogueMachine(RuleBasedStateMachine):
    """Does the same to the store and to the model."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="catalogue-"))
        self.store = Store.open(self.directory / "data")
        self.model = {name: Model() for name in REPOSITORIES}

    def teardown(self) -> None:
        """Remove the store."""
        self.store.close()
        shutil.rmtree(self.directory)

    @rule(name=repositories, data=blobs)
    def push_blob(self, name: str, data: bytes) -> None:
        """Admit a blob."""
        summer = Summer()
        summer.update(data)
        digest = Digest.of(data)
        self.store.blobs.admit_bytes(data, summer.sums(), self.store.registry.linker(name, digest))
        self.model[name].blobs.add(digest)

    @rule(name=repositories, source=st.none() | repositories, data=blobs)
    def mount_blob(self, name: str, source: str | None, data: bytes) -> None:
        """Mount one, from a repository or from anywhere."""
        digest = Digest.of(data)
        sources = REPOSITORIES if source is None else [source]
        expected = any(digest in self.model[other].blobs for other in sources)
        assert self.store.registry.mount_blob(name, digest, source) is expected
        if expected:
            self.model[name].blobs.add(digest)

    @rule(name=repositories, data=blobs)
    def delete_blob(self, name: str, data: bytes) -> None:
        """Unlink one."""
        digest = Digest.of(data)
        if digest in self.model[name].blobs:
            self.store.registry.delete_blob(name, digest)
            self.model[name].blobs.remove(digest)
        else:
            with pytest.raises(BlobUnknownError):
                self.store.registry.delete_blob(name, digest)

    @rule(
        name=repositories,
        config=blobs,
        layers=st.lists(blobs, max_size=2),
        subject=st.none() | blobs,
        chosen=st.lists(tags, max_size=2),
    )
    def push_manifest(
        self, name: str, config: bytes, layers: list[bytes], subject: bytes | None, chosen: list[str]
    ) -> None:
        """Push a manifest whose parts may be missing."""
        needed = {Digest.of(data) for data in [config, *layers]}
        self._put(name, manifest_of(config, layers, subject), chosen, needed <= self.model[name].blobs)

    @rule(name=repositories, listed=st.lists(blobs, max_size=2), chosen=st.lists(tags, max_size=2))
    def push_index(self, name: str, listed: list[bytes], chosen: list[str]) -> None:
        """Push an index of manifests, whichever of the repository's there are, and of blobs."""
        entries = [described(_LAYER, data) for data in listed]
        entries += [described(_MANIFEST, raw) for raw in list(self.model[name].manifests.values())[:1]]
        raw = json.dumps({"schemaVersion": 2, "mediaType": _INDEX, "manifests": entries}).encode()
        self._put(name, raw, chosen, {Digest.of(data) for data in listed} <= self.model[name].blobs)

    @rule(name=repositories, tag=tags)
    def delete_tag(self, name: str, tag: str) -> None:
        """Remove a tag."""
        if tag in self.model[name].tags:
            self.store.registry.delete_tag(name, tag)
            del self.model[name].tags[tag]
        else:
            with pytest.raises(ManifestUnknownError if self.model[name].exists else NameUnknownError):
                self.store.registry.delete_tag(name, tag)

    @rule(name=repositories, other=repositories)
    def delete_manifest(self, name: str, other: str) -> None:
        """Remove a manifest that this or another repository has."""
        digest = next(iter(self.model[other].manifests), Digest.of(b"missing"))
        if digest in self.model[name].manifests:
            self.store.registry.delete_manifest(name, digest)
            del self.model[name].manifests[digest]
            kept = {tag: target for tag, target in self.model[name].tags.items() if target != digest}
            self.model[name].tags = kept
        else:
            with pytest.raises((ManifestUnknownError, NameUnknownError)):
                self.store.registry.delete_manifest(name, digest)

    @invariant()
    def same_blobs(self) -> None:
        """Readable through the repositories that have them, and stored while there is one."""
        for data in BLOBS:
            digest = Digest.of(data)
            holders = [name for name in REPOSITORIES if digest in self.model[name].blobs]
            with self.store.env.read() as txn:
                assert self.store.registry.holders(txn, digest) == sorted(holders)
            assert self.store.blobs.exists(digest) is bool(holders)
            for name in REPOSITORIES:
                if name in holders:
                    assert self.store.registry.stat_blob(name, digest).size == len(data)
                else:
                    with pytest.raises(BlobUnknownError):
                        self.store.registry.stat_blob(name, digest)

    @invariant()
    def same_manifests(self) -> None:
        """By digest and by tag, byte for byte; and no record more."""
        for name, model in self.model.items():
            for digest, raw in model.manifests.items():
                assert self.store.registry.manifest(name, digest).raw == raw
            for tag, digest in model.tags.items():
                assert self.store.registry.manifest(name, tag).digest == digest
        with self.store.env.read() as txn:
            expected = {digest for model in self.model.values() for digest in model.manifests}
            assert {Digest.from_key(key) for key, _ in txn.scan(Table.MANIFESTS)} == expected

    @invariant()
    def same_listings(self) -> None:
        """Whole and in pages of one."""
        registry = self.store.registry
        with_manifests = sorted(name for name, model in self.model.items() if model.manifests)
        assert registry.listings.repositories(10).names == with_manifests
        page = registry.listings.repositories(1)
        assert (page.names, page.more) == (with_manifests[:1], len(with_manifests) > 1)
        for name, model in self.model.items():
            if not model.exists:
                with pytest.raises(NameUnknownError):
                    registry.listings.tags(name, 10)
                continue
            found, last = [], ""
            while names := registry.listings.tags(name, 1, last).names:
                found += names
                last = names[0]
            assert found == sorted(model.tags)

    @invariant()
    def same_referrers(self) -> None:
        """Those whose manifests the repository has."""
        for name, model in self.model.items():
            for data in BLOBS:
                subject = Digest.of(data)
                expected = [
                    str(digest)
                    for digest, raw in sorted(model.manifests.items())
                    if json.loads(raw).get("subject", {}).get("digest") == str(subject)
                ]
                page = self.store.registry.listings.referrers(name, subject)
                assert [entry["digest"] for entry in page.descriptors] == expected
                assert page.last is None

    @invariant()
    def links_have_their_reverse(self) -> None:
        """Forward and reverse keys say the same."""
        with self.store.env.read() as txn:
            for table in (Table.LINKS, Table.MANIFEST_LINKS):
                keys = [key for key, _ in txn.scan(table)]
                forward = {tuple(key.split(b"\0", 1)) for key in keys if key[0] >= 0x20}
                reverse = {(key[33:], key[:33]) for key in keys if key[0] < 0x20}
                assert forward == reverse

    def _put(self, name: str, raw: bytes, chosen: list[str], complete: bool) -> None:
        document: Manifest | Index = parse_manifest(raw)
        digest = Digest.of(raw)
        if not complete:
            with pytest.raises(ManifestBlobUnknownError):
                self.store.registry.put_manifest(name, digest, document, chosen)
            return
        self.store.registry.put_manifest(name, digest, document, chosen)
        self.model[name].manifests[digest] = raw
        self.model[name].tags.update(dict.fromkeys(chosen, digest))


CatalogueMachine.TestCase.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
TestCatalogue = CatalogueMachine.TestCase


@pytest.mark.parametrize("text", ["", "a", "ä", "\0", "~", "\U0010ffff" * 200, "\ud800", "x" * 4000])
def test_keys_to_go_on_from_are_short_enough(text: str) -> None:
    """Whatever a client sends: LMDB refuses more than 511 bytes."""
    assert 0 < len(after_repository(text)) <= 511
    key = after_tag("r" * 255, text)
    assert key.startswith(repository_prefix("r" * 255))
    assert len(key) <= 511
