"""Trees of images whose layers go while they are merged: none is ever made of a part."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pagepool.digest import Digest
from pagepool.errors import CorruptError
from pagepool.oci import parse_manifest
from pagepool_service.images import READY, resolve_image
from pagepool_service.store.collect import Collector, Policy
from pagepool_service.store.environment import Table
from pagepool_service.store.store import Store
from pagepool_service.trees import Trees
from tests.service.pushes import image_parts
from tests.store.helpers import ingest_all, push

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pagepool_service.images import ImageView

_FILES = {f"file-{number:04}": b"%d" % number for number in range(3500)}
_NOW = Policy(grace_s=0, untagged_s=0)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "data") as opened:
        yield opened


@pytest.fixture
def view(store: Store) -> ImageView:
    """An image that is ready, of a recipe of several chunks."""
    manifest, config, layer = image_parts(_FILES)
    for blob in (config, layer):
        push(store, blob, repository="app")
    store.registry.put_manifest("app", Digest.of(manifest), parse_manifest(manifest), ["latest"])
    ingest_all(store)
    with store.env.read() as txn:
        assert txn.count(Table.RECIPES) > 2
    found = resolve_image(store, "app", "latest")
    assert found.state == READY
    return found


def test_collected_while_it_is_merged(store: Store, view: ImageView) -> None:
    """Files of a layer were missing in the tree, which was kept for when the image is pushed again."""

    def collect(_members: int) -> None:
        if store.registry.listings.repositories(1).names:
            store.registry.delete_manifest("app", view.digest)
            for blob in view.manifest.blobs:
                store.registry.delete_blob("app", blob.digest)
            assert Collector(store, _NOW).run().freed["recipes"] == 1

    trees = Trees(store)
    with pytest.raises(CorruptError, match="nothing covers byte"):
        trees.tree(view, collect)
    with pytest.raises(CorruptError, match="nothing covers byte 0"):
        trees.tree(view)


def test_a_layer_whose_record_is_gone(store: Store, view: ImageView) -> None:
    """It was left out, as a repair may find it, or have it read again."""
    assert Trees(store).tree(view).size > len(_FILES)
    with store.env.write() as txn:
        for layer in view.layers:
            assert layer.record is not None
            assert layer.record.diff_id is not None
            txn.delete(Table.LAYERS, layer.record.diff_id.key)
    again = resolve_image(store, "app", "latest")
    with pytest.raises(CorruptError, match="is not there"):
        Trees(store).tree(again)
