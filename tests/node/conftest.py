"""Stacks that are unmounted afterwards, and what a node that does not run has on the disk."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pagepool.node.places import NodePlaces
from pagepool.node.records import SourceRecord
from tests.node.stack import Stack, lazy_stack, needs_stack
from tests.support.trees import TreeBuilder

CONTENT = b"content" * 1000


@pytest.fixture
def mounted() -> Iterator[tuple[Stack, int]]:
    """A stack whose lazy mount nobody serves yet, and its device."""
    needs_stack()
    # A server that a test has let go of may still be writing down what it serves.
    kept = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    with kept as directory, lazy_stack(Path(directory).resolve()) as mounted:
        yield mounted


@pytest.fixture
def places(tmp_path: Path) -> NodePlaces:
    """Of a node that does not run."""
    places = NodePlaces(tmp_path / "state", tmp_path / "run")
    places.make()
    return places


@pytest.fixture
def record(places: NodePlaces) -> SourceRecord:
    """Of a tree with a file of `CONTENT`, of a service that nobody answers for."""
    builder = TreeBuilder()
    builder.file("file", CONTENT)
    tree = builder.file_system().tree
    (places.tree_files / tree.digest.hex()).write_bytes(tree._data)
    return SourceRecord(tree.digest.hex(), "http://127.0.0.1:9", "repository", "image:1")
