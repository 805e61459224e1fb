"""Collection against a model: any pushes, deletions, retaggings and leases, between cycles and in the middle of them.

The model keeps names and values in dicts, and works out for itself what is needed. PAGEPOOL_COLLECT_STORIES stories
are told (a few by default), from PAGEPOOL_COLLECT_SEED on. In a story each turn of a cycle may be followed by
something that somebody does, since turns are where others come in.
"""

from __future__ import annotations

import os
import random
import time
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from pagepool_service.store.collect import Collector, Policy
from pagepool_service.store.collect import gate as gates
from pagepool_service.store.environment import Table
from pagepool_service.store.fsck import check_store
from pagepool_service.store.schema import Location
from pagepool_service.store.store import Store
from pagepool_service.store.totals import Totals
from tests.store.collecting import Layer, Pushed, assert_whole, contents, keys, push_image, push_index
from tests.store.helpers import ingest_all

if TYPE_CHECKING:
    from pathlib import Path

    from pagepool.digest import Digest

STORIES = int(os.environ.get("PAGEPOOL_COLLECT_STORIES", "2"))
SEED = int(os.environ.get("PAGEPOOL_COLLECT_SEED", "1"))
REPOSITORIES = ("a", "a/b")
FILES = contents(20)
SOME = random.Random("layers")
LAYERS = [
    Layer({f"{SOME.randrange(3)}/{n}": FILES[n] for n in SOME.sample(range(20), SOME.randrange(1, 9))}, n % 2 == 0)
    for n in range(8)
]
AT_ONCE = Policy(grace_s=0, untagged_s=0)
_TOLERATED = 0.05  # 2 % of stored bytes, which are not in proportion to plain ones


@dataclass
class Model:
    """What was pushed, what tags say, and which leases there are."""

    store: Store
    pushed: dict[tuple[str, Digest], Pushed] = field(default_factory=dict)
    tags: dict[tuple[str, str], Digest] = field(default_factory=dict)
    leases: dict[bytes, tuple[str, bytes, set[bytes]]] = field(default_factory=dict)  # -> repository, tree, layers
    number: int = 0

    def act(self, randomness: random.Random) -> None:
        """One more thing that somebody does."""
        self.forget_what_is_gone()
        choice = randomness.random()
        repository = randomness.choice(REPOSITORIES)
        own = [image for (name, _), image in self.pushed.items() if name == repository]
        self.number += 1
        if choice < 0.4 or not own:
            tags = [f"t{randomness.randrange(3)}"] if randomness.random() < 0.7 else []
            subject = randomness.choice(own).digest if own and randomness.random() < 0.25 else None
            layers = randomness.sample(LAYERS, randomness.randrange(1, 3))
            note = str(randomness.randrange(4))
            self._note(
                repository, push_image(self.store, repository, layers, tags=tags, subject=subject, note=note), tags
            )
        elif choice < 0.5:
            children = [one for one in randomness.sample(own, min(2, len(own))) if self._is_there(repository, one)]
            if children:
                tag = f"i{randomness.randrange(2)}"
                self._note(repository, push_index(self.store, repository, children, tags=[tag]), [tag])
        elif choice < 0.65:
            ours = [tag for name, tag in self.tags if name == repository]
            if ours:
                tag = randomness.choice(ours)
                self.store.registry.delete_tag(repository, tag)
                del self.tags[repository, tag]
        elif choice < 0.75:
            self._delete(repository, randomness.choice(own))
        elif choice < 0.9:
            ingest_all(self.store)
        else:
            self._lease(repository, randomness.choice(own))

    def _note(self, repository: str, image: Pushed, tags: list[str]) -> None:
        self.pushed[repository, image.digest] = image
        for tag in tags:
            self.tags[repository, tag] = image.digest

    def _is_there(self, repository: str, image: Pushed) -> bool:
        with self.store.env.read() as txn:
            return self.store.registry.link_record(txn, Table.MANIFEST_LINKS, repository, image.digest) is not None

    def _delete(self, repository: str, image: Pushed) -> None:
        if self._is_there(repository, image):
            self.store.registry.delete_manifest(repository, image.digest)
        self.pushed.pop((repository, image.digest), None)
        self.tags = {key: digest for key, digest in self.tags.items() if key[0] != repository or digest != image.digest}

    def _lease(self, repository: str, image: Pushed) -> None:
        if self.leases and self.number % 2:
            lease, (name, tree, _) = self.leases.popitem()
            self.store.leases.release(name, tree, lease)
            return
        with self.store.env.read() as txn:
            found = [self.store.blobs.record(txn, blob) for blob in image.blobs if txn.has(Table.BLOBS, blob.key)]
        layers = [record.diff_id for record in found if record.diff_id is not None]
        tree = os.urandom(32)
        taken = self.store.leases.take(repository, tree, "node", 3600, (image.digest, layers))
        self.leases[taken.id] = repository, tree, {layer.key for layer in layers}

    def needed(self) -> dict[str, set[Digest]]:
        """The manifests that each repository must have, by repeating the rules until nothing is added."""
        needed: dict[str, set[Digest]] = {}
        for repository in REPOSITORIES:
            mine = {digest: image for (name, digest), image in self.pushed.items() if name == repository}
            kept = {digest for (name, _), digest in self.tags.items() if name == repository}
            before = -1
            while len(kept) != before:
                before = len(kept)
                for digest, image in mine.items():
                    if digest in kept:
                        kept |= {child.digest for child in image.children} & mine.keys()
                        kept |= {image.subject} & mine.keys() if image.subject is not None else set()
                    elif image.subject in kept:
                        kept.add(digest)
            needed[repository] = kept
        return needed

    def check_whole(self) -> None:
        """What must be there comes back."""
        for repository, digests in self.needed().items():
            for digest in digests:
                image = self.pushed[repository, digest]
                assert self._is_there(repository, image)
                for blob in image.blobs:
                    self.store.registry.stat_blob(repository, blob)
                assert_whole(self.store, repository, Pushed(digest, (), None, image.blobs))
        for _, _, layers in self.leases.values():
            assert layers <= keys(self.store, Table.LAYERS)

    def check_exact(self) -> None:
        """And nothing else is, but for what lies dead in frames that live."""
        needed = self.needed()
        manifests = {digest.key for digests in needed.values() for digest in digests}
        images = [self.pushed[repository, digest] for repository, digests in needed.items() for digest in digests]
        blobs = {blob.key for image in images for blob in image.blobs}
        assert keys(self.store, Table.MANIFESTS) == manifests
        assert keys(self.store, Table.BLOBS) == blobs
        leased = set().union(*(layers for _, _, layers in self.leases.values()))
        states = [self.store.blobs.stat(blob) for image in images for blob in image.blobs]
        assert keys(self.store, Table.LAYERS) == leased | {one.diff_id.key for one in states if one.diff_id is not None}
        if not self.leases:
            extents = set().union(*(image.extents for image in images)) if images else set()
            assert keys(self.store, Table.EXTENTS) >= extents
            with self.store.env.read() as txn:
                totals = Totals.load(txn)
                found = {key: Location.decode(value).length for key, value in txn.scan(Table.EXTENTS)}
            dead = sum(length for key, length in found.items() if key not in extents)
            assert dead + totals.dead_bytes <= _TOLERATED * sum(found.values())

    def forget_what_is_gone(self) -> None:
        """Manifests that were collected by now: none of them was needed."""
        needed = self.needed()
        for (repository, digest), image in list(self.pushed.items()):
            if not self._is_there(repository, image):
                assert digest not in needed[repository], f"{repository}@{digest} is gone"
                del self.pushed[repository, digest]


@pytest.mark.parametrize("seed", range(SEED, SEED + STORIES))
def test_stories(data: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    print(f"PAGEPOOL_COLLECT_SEED={seed}")
    randomness = random.Random(f"story {seed}")
    with Store.open(data) as store:
        model = Model(store)
        busy = [False]

        def rest(_seconds: float) -> None:
            if busy[0] and randomness.random() < 0.5:
                busy[0] = False  # what is done here collects nothing
                model.act(randomness)
                busy[0] = True

        monkeypatch.setattr(gates, "time", SimpleNamespace(monotonic=time.monotonic, sleep=rest))
        for _ in range(4):
            for _ in range(randomness.randrange(3, 10)):
                model.act(randomness)
            busy[0] = True
            Collector(store, AT_ONCE).run()
            busy[0] = False
            model.forget_what_is_gone()
            model.check_whole()
            ingest_all(store)
            for _ in range(2):  # the first may be kept from something by what a job had begun
                report = Collector(store, AT_ONCE).run()
            assert not report.problems
            model.forget_what_is_gone()
            model.check_whole()
            model.check_exact()
    report_of_all = check_store(data)
    assert report_of_all.problems == []
    assert report_of_all.notes == []
