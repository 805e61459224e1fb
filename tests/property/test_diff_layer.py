"""Random changes: the layer of them, applied to what was before, makes what is now.

Applied by our own merging and by `umoci unpack`, which share nothing with the writer; planned with and without hints.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, given, settings

from pagepool.overlay import plan_diff
from tests.image.umoci import check_same, needs_umoci, read_tree
from tests.overlay.layers import empty, make_layer, rows, whole_layer
from tests.support.randomtrees import apply, populate, steps

if TYPE_CHECKING:
    from tests.support.nodes import NodeFileSystem
    from tests.support.randomtrees import Step


def _before_and_now(first: list[Step], then: list[Step]) -> tuple[NodeFileSystem, NodeFileSystem]:
    base = empty()
    populate(base)
    apply(base, first)
    now = base.copy()
    now.kept = max(base.nodes)
    apply(now, then)
    return base, now


@given(steps(6), steps(8))
@settings(max_examples=100, deadline=None)
def test_the_layer_makes_what_is_now(first: list[Step], then: list[Step]) -> None:
    base, now = _before_and_now(first, then)
    below = whole_layer(base)
    assert read_tree([below]) == rows(base)
    for layer in (make_layer(now, base), make_layer(now, base, now)):
        assert read_tree([below, layer]) == rows(now)


@given(steps(6), steps(8))
@settings(max_examples=100, deadline=None)
def test_nothing_is_written_that_did_not_change(first: list[Step], then: list[Step]) -> None:
    base, now = _before_and_now(first, then)
    before, after = rows(base), rows(now)
    changed = {change.path or b"." for change in plan_diff(now, base)}
    same = {path for path in before.keys() & after.keys() if before[path] == after[path]}
    assert not changed & same
    # Names that lost another one of theirs need not be written; all else has to be.
    missed = {path for path in after.keys() - changed - same if before.get(path, ())[:-1] != after[path][:-1]}
    assert not missed


@needs_umoci[0]
@needs_umoci[1]
@given(steps(6), steps(8))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_umoci_makes_the_same(first: list[Step], then: list[Step]) -> None:
    base, now = _before_and_now(first, then)
    with tempfile.TemporaryDirectory() as directory:
        layers = [whole_layer(base), make_layer(now, base, now)]
        assert read_tree(layers) == rows(now)
        check_same(Path(directory), layers)
