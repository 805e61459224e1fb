"""A store with one of everything, the program, and how a repair is checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from pagepool.digest import Digest
from pagepool_service.repair import layers
from pagepool_service.repair import run as running
from pagepool_service.store.schema import ContentKind
from pagepool_service.store.store import Store
from tests.backup.conftest import data, made
from tests.cli.conftest import run
from tests.store.checking import check
from tests.store.helpers import gzipped
from tests.store.samples import APP

__all__ = ["data", "made", "run"]


@pytest.fixture
def checked_here(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """fsck in this process, but where it may crash, or the command is tested; and no waiting for a disk."""
    monkeypatch.setattr(layers, "_AGAIN_S", (0.0, 0.0))
    if not {"crashing", "run"} & set(request.fixturenames):
        monkeypatch.setattr(running, "check_store", lambda data, quick, watch: check(data, quick=quick))  # noqa: ARG005


@pytest.fixture
def crashing() -> None:
    """Of tests whose checks may crash."""


@pytest.fixture
def alone(data: Path) -> Path:
    """A store in which nothing has the files of the plain layer APP but that layer itself."""
    with Store.open(data) as store:
        store.registry.delete_blob("multi", Digest.of(gzipped(APP)))
        assert store.blobs.stat(Digest.of(APP)).content is ContentKind.RECIPE
    return data
