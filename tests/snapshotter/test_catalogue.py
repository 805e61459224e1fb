"""What a snapshotter has written down: what containerd relies on, and what a kill may do to it."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from pagepool.errors import InvalidError
from pagepool.snapshotter.catalogue import (
    TARGET,
    Catalogue,
    ImageRecord,
    Kind,
    SnapshotExistsError,
    SnapshotStateError,
    SnapshotUnknownError,
)

_IMAGE = ImageRecord("host", "app", f"sha256:{'1' * 64}", 3, "host/app:1")


@pytest.fixture
def catalogue(tmp_path: Path) -> Iterator[Catalogue]:
    found = Catalogue(tmp_path / "db")
    yield found
    found.close()


def _add(catalogue: Catalogue, name: str, parent: str = "", kind: Kind = Kind.ACTIVE) -> int:
    with catalogue.creating(kind, name, parent, {}) as created:
        return created.id


def _commit(catalogue: Catalogue, key: str, name: str) -> None:
    catalogue.commit(key, name, {}, 100, 2)


def test_a_chain_is_found_from_its_end(catalogue: Catalogue) -> None:
    _add(catalogue, "a")
    _commit(catalogue, "a", "A")
    _add(catalogue, "b", "A")
    _commit(catalogue, "b", "B")
    _add(catalogue, "c", "B")
    assert [found.name for found in catalogue.ancestors("c")] == ["B", "A"]
    found = catalogue.stat("B")
    assert (found.kind, found.parent, found.size, found.inodes) == (Kind.COMMITTED, "A", 100, 2)
    with pytest.raises(SnapshotUnknownError):
        catalogue.stat("b")


def test_what_may_not_be(catalogue: Catalogue) -> None:
    _add(catalogue, "a")
    for name, parent, error in (
        ("a", "", SnapshotExistsError),
        ("b", "missing", SnapshotUnknownError),
        ("b", "a", InvalidError),  # is not committed
        ("", "", InvalidError),
    ):
        with pytest.raises(error):
            _add(catalogue, name, parent)
    _add(catalogue, "view", kind=Kind.VIEW)
    with pytest.raises(SnapshotStateError):
        _commit(catalogue, "view", "B")
    with pytest.raises(SnapshotUnknownError):
        _commit(catalogue, "missing", "B")
    _commit(catalogue, "a", "A")
    _add(catalogue, "a", "A")
    with pytest.raises(SnapshotExistsError):
        _commit(catalogue, "a", "A")
    with pytest.raises(SnapshotStateError):
        catalogue.remove("A")
    with pytest.raises(SnapshotUnknownError):
        catalogue.remove("missing")
    assert {found.name for found in catalogue.find(())} == {"A", "a", "view"}


def test_what_fails_is_not_written_down(catalogue: Catalogue) -> None:
    with pytest.raises(OSError, match="no room"), catalogue.creating(Kind.ACTIVE, "a", "", {}):
        raise OSError("no room")
    assert catalogue.find(()) == []
    first = _add(catalogue, "a")
    catalogue.remove("a")
    assert _add(catalogue, "a") > first  # a directory that is left is never another's


def test_labels(catalogue: Catalogue) -> None:
    with catalogue.creating(Kind.ACTIVE, "a", "", {"one": "1", "empty": ""}):
        pass
    assert catalogue.stat("a").labels == {"one": "1"}
    before = catalogue.stat("a")
    found = catalogue.update("a", {"two": "2", "three": "3"}, ["labels.two"])
    assert (found.labels, found.created_ns) == ({"one": "1", "two": "2"}, before.created_ns)
    assert found.updated_ns > before.updated_ns
    assert catalogue.update("a", {}, ["labels.one"]).labels == {"two": "2"}
    assert catalogue.update("a", {"x.y": "é"}, []).labels == {"x.y": "é"}
    assert [one.name for one in catalogue.find(['labels."x.y"==é'])] == ["a"]
    with pytest.raises(InvalidError, match="parent"):
        catalogue.update("a", {}, ["parent"])
    with pytest.raises(SnapshotUnknownError):
        catalogue.update("missing", {}, [])
    catalogue.commit("a", "A", {"new": "1"}, 0, 0)
    assert catalogue.stat("A").labels == {"new": "1"}


def test_claims(catalogue: Catalogue) -> None:
    catalogue.claim("c1", "", {TARGET: "c1"}, _IMAGE, 1)
    first = catalogue.find_target("c1", "")
    assert first is not None
    assert first.image is not None
    assert (first.image.name, first.depth, first.kind) == ("host/app:1", 1, Kind.COMMITTED)
    catalogue.claim("c2", first.name, {TARGET: "c2"}, _IMAGE, 2)
    catalogue.claim("c2", first.name, {TARGET: "c2"}, _IMAGE, 2)  # by two at once
    assert len(catalogue.find(())) == 2
    assert catalogue.find_target("c2", "") is None  # upon another parent it is another one
    second = catalogue.find_target("c2", first.name)
    assert second is not None
    assert len(catalogue.images()) == 1
    catalogue.remove(second.name)
    assert len(catalogue.images()) == 1
    catalogue.remove(first.name)
    assert catalogue.images() == []


def test_a_full_disk(catalogue: Catalogue) -> None:
    """What fails leaves no transaction behind, and what makes room goes on."""
    _add(catalogue, "a")
    pages = catalogue._database.execute("PRAGMA page_count").fetchone()[0]
    catalogue._database.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(OSError, match="full"), catalogue.creating(Kind.ACTIVE, "b", "", {"large": "x" * 100_000}):
        pass
    catalogue.remove("a")
    assert catalogue.find(()) == []


def test_a_file_of_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "db"
    Catalogue(path).close()
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 7")
    database.close()
    with pytest.raises(InvalidError, match="its format is 7"):
        Catalogue(path)
    path.write_bytes(os.urandom(8192))
    with pytest.raises(InvalidError, match="cannot be used"):
        Catalogue(path)


class _Model(RuleBasedStateMachine):
    """The catalogue beside a dictionary, opened anew now and then."""

    path: Path
    names = st.sampled_from("abcdef")

    def __init__(self) -> None:
        super().__init__()
        self.path.unlink(missing_ok=True)
        self.catalogue = Catalogue(self.path)
        self.known: dict[str, tuple[Kind, str]] = {}

    @rule(name=names, parent=st.sampled_from(("", *"abcdef")), kind=st.sampled_from((Kind.ACTIVE, Kind.VIEW)))
    def create(self, name: str, parent: str, kind: Kind) -> None:
        may = name not in self.known and (not parent or self.known.get(parent, (None,))[0] is Kind.COMMITTED)
        with suppress(SnapshotExistsError, SnapshotUnknownError, InvalidError):
            _add(self.catalogue, name, parent, kind)
            assert may
            self.known[name] = kind, parent
            return
        assert not may

    @rule(key=names, name=names)
    def commit(self, key: str, name: str) -> None:
        may = name not in self.known and self.known.get(key, (None,))[0] is Kind.ACTIVE
        with suppress(SnapshotExistsError, SnapshotUnknownError, SnapshotStateError):
            _commit(self.catalogue, key, name)
            assert may
            self.known[name] = Kind.COMMITTED, self.known.pop(key)[1]
            return
        assert not may

    @rule(name=names)
    def remove(self, name: str) -> None:
        may = name in self.known and not any(parent == name for _, parent in self.known.values())
        with suppress(SnapshotUnknownError, SnapshotStateError):
            self.catalogue.remove(name)
            assert may
            del self.known[name]
            return
        assert not may

    @rule()
    def reopen(self) -> None:
        self.catalogue.close()
        self.catalogue = Catalogue(self.path)

    @rule()
    def compare(self) -> None:
        found = {one.name: (one.kind, one.parent) for one in self.catalogue.find(())}
        assert found == self.known
        for name, (_, parent) in self.known.items():
            assert self.catalogue.stat(name).parent == parent

    def teardown(self) -> None:
        self.compare()
        self.catalogue.close()


def test_it_is_as_a_dictionary(tmp_path: Path) -> None:
    model = type("Model", (_Model,), {"path": tmp_path / "db"})
    checks = [HealthCheck.too_slow]
    run_state_machine_as_test(
        model, settings=settings(max_examples=10, stateful_step_count=30, deadline=None, suppress_health_check=checks)
    )
